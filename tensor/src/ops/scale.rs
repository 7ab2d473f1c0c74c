//! A tensor times a number that lives in another tensor, such as the gradient of a loss, without the host reading it.

use crate::cpu::{Cpu, simd};
use crate::cuda::{self, Cuda};
use crate::{DType, Error, Float, Result, Tensor, TensorMut, dispatch, kernel, same_device};

/// Arguments of [`SCALE`]: out = x · by.
pub struct ScaleArgs<'a> {
    /// Any shape and float dtype, contiguous.
    pub x: &'a Tensor,
    /// One element, f32.
    pub by: &'a Tensor,
    /// Shape and dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub SCALE = "scale", ScaleArgs, scale_cpu, scale_cuda);

/// Arguments of [`ADD_SCALED`]: out += x · by.
pub struct AddScaledArgs<'a> {
    /// Shape of `out`, f32, contiguous.
    pub x: &'a Tensor,
    /// One element, f32.
    pub by: &'a Tensor,
    /// Any shape, f32; read and written.
    pub out: TensorMut<'a>,
}
kernel!(pub ADD_SCALED = "add_scaled", AddScaledArgs, add_scaled_cpu, add_scaled_cuda);

/// Elements handed to one task.
const CHUNK: usize = 1 << 14;

/// `x` times the one element of `by`, in the dtype of `x`.
///
/// # Errors
/// When `by` has not one element, `x` is of no float type, or devices differ.
pub fn scale(x: &Tensor, by: &Tensor) -> Result<Tensor> {
    let device = same_device("scale", &[x, by])?;
    let mut out = device.alloc(x.shape(), x.dtype())?;
    let (x, by) = (x.contiguous()?, one_element(by)?);
    device.run(&SCALE, ScaleArgs { x: &x, by: &by, out: out.view() })?;
    Ok(out.finish())
}

/// `out += x` times the one element of `by`; `x` and `out` are f32 of one shape.
///
/// # Errors
/// When shapes, dtypes or devices differ.
pub fn add_scaled(x: &Tensor, by: &Tensor, out: TensorMut<'_>) -> Result<()> {
    let device = same_device("add_scaled", &[x, by])?;
    if x.shape() != out.shape() || out.device() != device {
        return Err(Error::shape("add_scaled", format!("{:?} into {:?}", x.shape(), out.shape())));
    }
    let (x, by) = (x.contiguous()?, one_element(by)?);
    device.run(&ADD_SCALED, AddScaledArgs { x: &x, by: &by, out })
}

fn one_element(by: &Tensor) -> Result<Tensor> {
    if by.len() != 1 {
        return Err(Error::shape("scale", format!("by {:?}, not one element", by.shape())));
    }
    by.to_dtype(DType::F32)?.contiguous()
}

fn scale_cpu(cpu: &Cpu, mut args: ScaleArgs<'_>) -> Result<()> {
    let by = args.by.as_slice::<f32>()?[0];
    dispatch!(float args.x.dtype(), "scale", T => {
        scale_elements::<T>(cpu, args.x.as_slice()?, by, args.out.as_mut_slice()?);
        Ok(())
    })
}

fn scale_elements<T: Float>(cpu: &Cpu, x: &[T], by: f32, out: &mut [T]) {
    let simd = cpu.simd();
    cpu.chunks(out, CHUNK, |i, out| {
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        let x = T::as_f32(simd, &x[i * CHUNK..][..out.len()], &mut xs);
        T::write_f32(simd, out, &mut ys, |y| multiply(simd, x, by, y));
    });
}

fn add_scaled_cpu(cpu: &Cpu, mut args: AddScaledArgs<'_>) -> Result<()> {
    let (x, by) = (args.x.as_slice::<f32>()?, args.by.as_slice::<f32>()?[0]);
    cpu.chunks(args.out.as_mut_slice::<f32>()?, CHUNK, |i, out| {
        crate::cpu::reduce::axpy(cpu.simd(), by, &x[i * CHUNK..][..out.len()], out);
    });
    Ok(())
}

fn scale_cuda(cuda: &Cuda, args: ScaleArgs<'_>) -> Result<()> {
    let ScaleArgs { x, by, out } = args;
    let args = [cuda::read(x)?, cuda::read(by)?, cuda::written(&out)?, cuda::count(out.len())];
    cuda::over_elements(cuda, "scale", &format!("scale_{}", x.dtype()), out.len(), &args)
}

fn add_scaled_cuda(cuda: &Cuda, args: AddScaledArgs<'_>) -> Result<()> {
    let AddScaledArgs { x, by, out } = args;
    let args = [cuda::read(x)?, cuda::read(by)?, cuda::written(&out)?, cuda::count(out.len())];
    cuda::over_elements(cuda, "scale", "add_scaled", out.len(), &args)
}

simd! {
    fn multiply(x: &[f32], by: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * by;
        }
    }
}
