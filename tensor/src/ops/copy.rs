//! Copies: any layout to row-major, with a change of dtype (rounding to nearest even); and fill.

use crate::blocks::{Elements, Old, Reader, TASK, write};
use crate::cpu::Cpu;
use crate::cuda::{self, Arg, Cuda, View};
use crate::{DType, Element, Error, Result, Tensor, TensorMut, dispatch, kernel};

/// Arguments of [`COPY`]: out = x, row-major and in another dtype.
pub struct CopyArgs<'a> {
    /// Any shape, layout and dtype.
    pub x: &'a Tensor,
    /// Shape of `x`, any dtype.
    pub out: TensorMut<'a>,
}
kernel!(pub COPY = "copy", CopyArgs, copy_cpu, copy_cuda);

/// Arguments of [`FILL`]: every element of out = value.
pub struct FillArgs<'a> {
    /// Rounded to the dtype of `out`.
    pub value: f32,
    /// Any shape and dtype.
    pub out: TensorMut<'a>,
}
kernel!(pub FILL = "fill", FillArgs, fill_cpu, fill_cuda);

/// A contiguous copy of `x` as `dtype`.
///
/// # Errors
/// When memory runs out.
pub fn copy(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let mut out = x.device().alloc(x.shape(), dtype)?;
    x.device().run(&COPY, CopyArgs { x, out: out.view() })?;
    Ok(out.finish())
}

/// Writes the elements of `x` over `out`, which has the same shape; dtypes may differ.
///
/// # Errors
/// When shapes or devices differ.
pub fn copy_into(x: &Tensor, out: TensorMut<'_>) -> Result<()> {
    if x.shape() != out.shape() {
        return Err(Error::shape("copy_into", format!("{:?} into {:?}", x.shape(), out.shape())));
    }
    if x.device() != out.device() {
        return Err(Error::device("copy_into", "tensors on two devices"));
    }
    x.device().run(&COPY, CopyArgs { x, out })
}

/// Sets every element of `out` to `value`.
///
/// # Errors
/// When the device refuses the launch.
pub fn fill(out: &mut TensorMut<'_>, value: f32) -> Result<()> {
    let device = out.device().clone();
    device.run(&FILL, FillArgs { value, out: out.reborrow() })
}

/// From one type to itself an element keeps its bits; every other pair goes through f32.
fn copy_cpu(cpu: &Cpu, mut args: CopyArgs<'_>) -> Result<()> {
    if args.x.dtype() != args.out.dtype() {
        let x = Reader::new(args.x, cpu.simd())?;
        return write(cpu, &mut args.out, Old::Ignored, &|range, out, [block, ..]| {
            out.copy_from_slice(x.read(range, block));
        });
    }
    dispatch!(any args.out.dtype(), T => {
        let x = Elements::<T>::new(args.x)?;
        cpu.chunks(args.out.as_mut_slice::<T>()?, TASK, |task, out| x.fill(task * TASK, out, |v| v));
        Ok(())
    })
}

fn fill_cpu(cpu: &Cpu, mut args: FillArgs<'_>) -> Result<()> {
    dispatch!(any args.out.dtype(), T => {
        let value = T::from_f32(args.value);
        cpu.chunks(args.out.as_mut_slice::<T>()?, TASK, |_, out| out.fill(value));
        Ok(())
    })
}

fn copy_cuda(cuda: &Cuda, args: CopyArgs<'_>) -> Result<()> {
    let CopyArgs { x, out } = args;
    let entry = match x.dtype() == out.dtype() {
        true => format!("copy_b{}", 8 * x.dtype().size()),
        false => format!("cast_{}_{}", x.dtype(), out.dtype()),
    };
    let view = View::new(x)?;
    let args = [cuda::read(x)?, view.arg(), cuda::written(&out)?, cuda::count(out.len())];
    cuda::over_elements(cuda, "copy", &entry, out.len(), &args)
}

fn fill_cuda(cuda: &Cuda, args: FillArgs<'_>) -> Result<()> {
    let FillArgs { value, out } = args;
    let entry = format!("fill_{}", out.dtype());
    let args = [Arg::F32(value), cuda::written(&out)?, cuda::count(out.len())];
    cuda::over_elements(cuda, "copy", &entry, out.len(), &args)
}
