//! Root-mean-square norm (Zhang and Sennrich, 2019): y = x / sqrt(mean(x²) + eps) · w over the last dimension.

use super::sum_to;
use crate::cpu::reduce::dot_body;
use crate::cpu::{Cpu, math, rows_per_task, simd};
use crate::cuda::{self, Arg, Cuda};
use crate::{DType, Error, Float, Result, Tensor, TensorMut, dispatch, kernel, same_device};

/// Arguments of [`RMS_NORM`]: out = x / sqrt(mean(x²) + eps) · weight over the last dimension.
pub struct RmsNormArgs<'a> {
    /// [.., d], any float dtype, contiguous.
    pub x: &'a Tensor,
    /// `[d]`, f32, contiguous.
    pub weight: &'a Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Shape and dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub RMS_NORM = "rms_norm", RmsNormArgs, forward_cpu, forward_cuda);

/// Arguments of [`RMS_NORM_BACKWARD`]: the gradient of [`RMS_NORM`] by x.
pub struct RmsNormBackwardArgs<'a> {
    /// The gradient of the output: shape and dtype of `x`, contiguous.
    pub dy: &'a Tensor,
    /// [.., d], any float dtype, contiguous.
    pub x: &'a Tensor,
    /// `[d]`, f32, contiguous.
    pub weight: &'a Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Shape and dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub RMS_NORM_BACKWARD = "rms_norm_backward", RmsNormBackwardArgs, backward_cpu, backward_cuda);

/// Arguments of [`RMS_NORM_BACKWARD_WEIGHT`]: the gradient of [`RMS_NORM`] by the weight, in partial sums.
pub struct RmsNormBackwardWeightArgs<'a> {
    /// The gradient of the output: shape and dtype of `x`, contiguous.
    pub dy: &'a Tensor,
    /// [.., d], any float dtype, contiguous.
    pub x: &'a Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
    /// One sum a task: [tasks, d], f32. The op adds them up.
    pub partial: TensorMut<'a>,
}
kernel!(pub RMS_NORM_BACKWARD_WEIGHT = "rms_norm_backward_weight", RmsNormBackwardWeightArgs, backward_weight_cpu, backward_weight_cuda);

/// `x` [.., d] normalised over its last dimension and scaled by `weight` `[d]`, which may have another float dtype.
/// As Hugging Face's LlamaRMSNorm: computed in f32, rounded to the dtype of `x`, then scaled.
///
/// # Errors
/// When `weight` is not as wide as the rows of `x`, a dtype is no float type, or devices differ.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let device = same_device("rms_norm", &[x, weight])?;
    let weight = wide_weight("rms_norm", x, weight)?;
    let mut out = device.alloc(x.shape(), x.dtype())?;
    device.run(&RMS_NORM, RmsNormArgs { x: &x.contiguous()?, weight: &weight, eps, out: out.view() })?;
    Ok(out.finish())
}

/// The gradient of [`rms_norm`] with respect to `x`.
///
/// # Errors
/// As [`rms_norm`], and when `dy` is not like `x`.
pub fn rms_norm_backward(dy: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let device = same_device("rms_norm_backward", &[dy, x, weight])?;
    let weight = wide_weight("rms_norm", x, weight)?;
    let (dy, x) = (like("rms_norm_backward", dy, x)?, x.contiguous()?);
    let mut out = device.alloc(x.shape(), x.dtype())?;
    device.run(&RMS_NORM_BACKWARD, RmsNormBackwardArgs { dy: &dy, x: &x, weight: &weight, eps, out: out.view() })?;
    Ok(out.finish())
}

/// The gradient of [`rms_norm`] with respect to the weight, in f32.
///
/// # Errors
/// When `dy` is not like `x`.
pub fn rms_norm_backward_weight(dy: &Tensor, x: &Tensor, eps: f32) -> Result<Tensor> {
    let device = same_device("rms_norm_backward_weight", &[dy, x])?;
    let (rows, width) = x.dims_rows("rms_norm_backward_weight")?;
    let (dy, x) = (like("rms_norm_backward", dy, x)?, x.contiguous()?);
    let mut partial = device.alloc(&[rows.div_ceil(rows_per_task(width)), width], DType::F32)?;
    device
        .run(&RMS_NORM_BACKWARD_WEIGHT, RmsNormBackwardWeightArgs { dy: &dy, x: &x, eps, partial: partial.view() })?;
    sum_to(&partial.finish(), &[width])
}

/// A weight or bias of a norm in f32, checked against the rows of `x`.
pub(super) fn wide_weight(op: &str, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (_, width) = x.dims_rows(op)?;
    if *weight.shape() != [width] {
        return Err(Error::shape(op, format!("weight or bias {:?} for rows of {:?}", weight.shape(), x.shape())));
    }
    if !weight.dtype().is_float() {
        return Err(Error::dtype(op, format!("a weight or bias of {}", weight.dtype())));
    }
    weight.to_dtype(DType::F32)?.contiguous()
}

/// The gradient `dy` of an output like `x`, in the order and dtype of `x`.
pub(super) fn like(op: &str, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    if dy.shape() != x.shape() {
        return Err(Error::shape(op, format!("gradient {:?} of {:?}", dy.shape(), x.shape())));
    }
    dy.to_dtype(x.dtype())?.contiguous()
}

fn forward_cpu(cpu: &Cpu, mut args: RmsNormArgs<'_>) -> Result<()> {
    let weight = args.weight.as_slice::<f32>()?;
    dispatch!(float args.x.dtype(), "rms_norm", T => {
        forward::<T>(cpu, args.x.as_slice()?, weight, args.eps, args.out.as_mut_slice()?);
        Ok(())
    })
}

fn forward<T: Float>(cpu: &Cpu, x: &[T], weight: &[f32], eps: f32, out: &mut [T]) {
    let (simd, width) = (cpu.simd(), weight.len());
    let len = width * rows_per_task(width);
    cpu.chunks(out, len, |i, out| {
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        let x = &x[i * len..][..out.len()];
        for (x, y) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let x = T::as_f32(simd, x, &mut xs);
            T::write_f32(simd, y, &mut ys, |y| {
                normalise(simd, x, eps, y);
                T::round(simd, y);
                scale(simd, weight, y);
            });
        }
    });
}

fn backward_cpu(cpu: &Cpu, mut args: RmsNormBackwardArgs<'_>) -> Result<()> {
    let weight = args.weight.as_slice::<f32>()?;
    dispatch!(float args.x.dtype(), "rms_norm_backward", T => {
        backward::<T>(cpu, args.dy.as_slice()?, args.x.as_slice()?, weight, args.eps, args.out.as_mut_slice()?);
        Ok(())
    })
}

fn backward<T: Float>(cpu: &Cpu, dy: &[T], x: &[T], weight: &[f32], eps: f32, out: &mut [T]) {
    let (simd, width) = (cpu.simd(), weight.len());
    let len = width * rows_per_task(width);
    cpu.chunks(out, len, |i, out| {
        let (mut dys, mut xs, mut dxs) = (Vec::new(), Vec::new(), Vec::new());
        let (dy, x) = (&dy[i * len..][..out.len()], &x[i * len..][..out.len()]);
        for ((dy, x), dx) in dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(out.chunks_exact_mut(width)) {
            let (dy, x) = (T::as_f32(simd, dy, &mut dys), T::as_f32(simd, x, &mut xs));
            T::write_f32(simd, dx, &mut dxs, |dx| backward_row(simd, dy, x, weight, eps, dx));
        }
    });
}

fn backward_weight_cpu(cpu: &Cpu, mut args: RmsNormBackwardWeightArgs<'_>) -> Result<()> {
    dispatch!(float args.x.dtype(), "rms_norm_backward_weight", T => {
        let (_, width) = args.x.dims_rows("rms_norm_backward_weight")?;
        let partial = args.partial.as_mut_slice()?;
        backward_weight::<T>(cpu, args.dy.as_slice()?, args.x.as_slice()?, width, args.eps, partial);
        Ok(())
    })
}

fn backward_weight<T: Float>(cpu: &Cpu, dy: &[T], x: &[T], width: usize, eps: f32, partial: &mut [f32]) {
    let (simd, len) = (cpu.simd(), width * rows_per_task(width));
    cpu.chunks(partial, width, |i, sum| {
        let (mut dys, mut xs) = (Vec::new(), Vec::new());
        sum.fill(0.0);
        let rows = i * len..x.len().min((i + 1) * len);
        for (dy, x) in dy[rows.clone()].chunks_exact(width).zip(x[rows].chunks_exact(width)) {
            let (dy, x) = (T::as_f32(simd, dy, &mut dys), T::as_f32(simd, x, &mut xs));
            backward_weight_row(simd, dy, x, eps, sum);
        }
    });
}

fn forward_cuda(cuda: &Cuda, args: RmsNormArgs<'_>) -> Result<()> {
    let RmsNormArgs { x, weight, eps, out } = args;
    let (rows, width) = x.dims_rows("rms_norm")?;
    let args = [
        cuda::read(x)?,
        cuda::read(weight)?,
        Arg::F32(eps),
        cuda::written(&out)?,
        cuda::count(rows),
        cuda::number(width)?,
    ];
    cuda::over_rows(cuda, "rms_norm", &format!("rms_norm_{}", x.dtype()), rows, &args)
}

fn backward_cuda(cuda: &Cuda, args: RmsNormBackwardArgs<'_>) -> Result<()> {
    let RmsNormBackwardArgs { dy, x, weight, eps, out } = args;
    let (rows, width) = x.dims_rows("rms_norm_backward")?;
    let args = [
        cuda::read(dy)?,
        cuda::read(x)?,
        cuda::read(weight)?,
        Arg::F32(eps),
        cuda::written(&out)?,
        cuda::count(rows),
        cuda::number(width)?,
    ];
    cuda::over_rows(cuda, "rms_norm", &format!("rms_norm_backward_{}", x.dtype()), rows, &args)
}

fn backward_weight_cuda(cuda: &Cuda, args: RmsNormBackwardWeightArgs<'_>) -> Result<()> {
    let RmsNormBackwardWeightArgs { dy, x, eps, partial } = args;
    let (rows, width) = x.dims_rows("rms_norm_backward_weight")?;
    let args = [
        cuda::read(dy)?,
        cuda::read(x)?,
        Arg::F32(eps),
        cuda::written(&partial)?,
        cuda::count(rows),
        cuda::number(width)?,
        cuda::number(rows_per_task(width))?,
    ];
    let entry = format!("rms_norm_backward_weight_{}", x.dtype());
    cuda::start(cuda, "rms_norm", &entry, partial.shape()[0], cuda::THREADS, &args)
}

/// 1 / sqrt(mean(x²) + eps)
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    math::rsqrt(dot_body(x, x) / x.len() as f32 + eps)
}

simd! {
    /// y = x r with r = 1 / sqrt(mean(x²) + eps)
    fn normalise(x: &[f32], eps: f32, y: &mut [f32]) {
        let r = inverse_rms(x, eps);
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * r;
        }
    }

    /// y = y w
    fn scale(w: &[f32], y: &mut [f32]) {
        for (y, &w) in y.iter_mut().zip(w) {
            *y *= w;
        }
    }

    /// With g = dy w and n = x r: dx = r (g - n mean(g n)).
    fn backward_row(dy: &[f32], x: &[f32], w: &[f32], eps: f32, dx: &mut [f32]) {
        let r = inverse_rms(x, eps);
        for ((g, &dy), &w) in dx.iter_mut().zip(dy).zip(w) {
            *g = dy * w;
        }
        let mean = dot_body(dx, x) * r / x.len() as f32;
        for (g, &x) in dx.iter_mut().zip(x) {
            *g = r * (-mean * r).mul_add(x, *g);
        }
    }

    /// dw += dy x r
    fn backward_weight_row(dy: &[f32], x: &[f32], eps: f32, dw: &mut [f32]) {
        let r = inverse_rms(x, eps);
        for ((dw, &dy), &x) in dw.iter_mut().zip(dy).zip(x) {
            *dw = dy.mul_add(x * r, *dw);
        }
    }
}
