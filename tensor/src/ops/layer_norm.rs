//! Layer norm (Ba, Kiros and Hinton, 2016): y = (x - mean) / sqrt(variance + eps) · w + b over the last dimension.

use super::rms_norm::{like, wide_weight};
use super::sum_to;
use crate::cpu::reduce::{dot_body, sum_body};
use crate::cpu::{Cpu, math, rows_per_task, simd};
use crate::cuda::{self, Arg, Cuda};
use crate::{DType, Float, Result, Tensor, TensorMut, dispatch, kernel, same_device};

/// Arguments of [`LAYER_NORM`]: out = (x - mean) / sqrt(variance + eps) · weight + bias over the last dimension.
pub struct LayerNormArgs<'a> {
    /// [.., d], any float dtype, contiguous.
    pub x: &'a Tensor,
    /// `[d]`, f32, contiguous.
    pub weight: &'a Tensor,
    /// `[d]`, f32, contiguous.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f32,
    /// Shape and dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub LAYER_NORM = "layer_norm", LayerNormArgs, forward_cpu, forward_cuda);

/// Arguments of [`LAYER_NORM_BACKWARD`]: the gradient of [`LAYER_NORM`] by x.
pub struct LayerNormBackwardArgs<'a> {
    /// The gradient of the output: shape and dtype of `x`, contiguous.
    pub dy: &'a Tensor,
    /// [.., d], any float dtype, contiguous.
    pub x: &'a Tensor,
    /// `[d]`, f32, contiguous.
    pub weight: &'a Tensor,
    /// Added to the variance.
    pub eps: f32,
    /// Shape and dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub LAYER_NORM_BACKWARD = "layer_norm_backward", LayerNormBackwardArgs, backward_cpu, backward_cuda);

/// Arguments of [`LAYER_NORM_BACKWARD_WEIGHT`]: the gradient of [`LAYER_NORM`] by the weight and the bias, in partial
/// sums.
pub struct LayerNormBackwardWeightArgs<'a> {
    /// The gradient of the output: shape and dtype of `x`, contiguous.
    pub dy: &'a Tensor,
    /// [.., d], any float dtype, contiguous.
    pub x: &'a Tensor,
    /// Added to the variance.
    pub eps: f32,
    /// One pair of sums a task (weight, bias): [tasks, 2, d], f32. The op adds them up.
    pub partial: TensorMut<'a>,
}
kernel!(pub LAYER_NORM_BACKWARD_WEIGHT = "layer_norm_backward_weight", LayerNormBackwardWeightArgs, backward_weight_cpu, backward_weight_cuda);

/// `x` [.., d] normalised over its last dimension, scaled by `weight` `[d]` and shifted by `bias` `[d]`, which may have
/// another float dtype. Computed in f32 and rounded once.
///
/// # Errors
/// When `weight` or `bias` is not as wide as the rows of `x`, a dtype is no float type, or devices differ.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let device = same_device("layer_norm", &[x, weight, bias])?;
    let (weight, bias) = (wide_weight("layer_norm", x, weight)?, wide_weight("layer_norm", x, bias)?);
    let mut out = device.alloc(x.shape(), x.dtype())?;
    device
        .run(&LAYER_NORM, LayerNormArgs { x: &x.contiguous()?, weight: &weight, bias: &bias, eps, out: out.view() })?;
    Ok(out.finish())
}

/// The gradient of [`layer_norm`] with respect to `x`.
///
/// # Errors
/// As [`layer_norm`], and when `dy` is not like `x`.
pub fn layer_norm_backward(dy: &Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let device = same_device("layer_norm_backward", &[dy, x, weight])?;
    let weight = wide_weight("layer_norm", x, weight)?;
    let (dy, x) = (like("layer_norm_backward", dy, x)?, x.contiguous()?);
    let mut out = device.alloc(x.shape(), x.dtype())?;
    device
        .run(&LAYER_NORM_BACKWARD, LayerNormBackwardArgs { dy: &dy, x: &x, weight: &weight, eps, out: out.view() })?;
    Ok(out.finish())
}

/// The gradients of [`layer_norm`] with respect to weight and bias, in f32.
///
/// # Errors
/// When `dy` is not like `x`.
pub fn layer_norm_backward_weight(dy: &Tensor, x: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let device = same_device("layer_norm_backward_weight", &[dy, x])?;
    let (rows, width) = x.dims_rows("layer_norm_backward_weight")?;
    let (dy, x) = (like("layer_norm_backward", dy, x)?, x.contiguous()?);
    let mut partial = device.alloc(&[rows.div_ceil(rows_per_task(width)), 2, width], DType::F32)?;
    device.run(
        &LAYER_NORM_BACKWARD_WEIGHT,
        LayerNormBackwardWeightArgs { dy: &dy, x: &x, eps, partial: partial.view() },
    )?;
    let sums = sum_to(&partial.finish(), &[2, width])?;
    Ok((sums.select(0, 0)?, sums.select(0, 1)?))
}

fn forward_cpu(cpu: &Cpu, mut args: LayerNormArgs<'_>) -> Result<()> {
    let (weight, bias) = (args.weight.as_slice::<f32>()?, args.bias.as_slice::<f32>()?);
    dispatch!(float args.x.dtype(), "layer_norm", T => {
        forward::<T>(cpu, args.x.as_slice()?, weight, bias, args.eps, args.out.as_mut_slice()?);
        Ok(())
    })
}

fn forward<T: Float>(cpu: &Cpu, x: &[T], weight: &[f32], bias: &[f32], eps: f32, out: &mut [T]) {
    let (simd, width) = (cpu.simd(), weight.len());
    let len = width * rows_per_task(width);
    cpu.chunks(out, len, |i, out| {
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        let x = &x[i * len..][..out.len()];
        for (x, y) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let x = T::as_f32(simd, x, &mut xs);
            T::write_f32(simd, y, &mut ys, |y| forward_row(simd, x, weight, bias, eps, y));
        }
    });
}

fn backward_cpu(cpu: &Cpu, mut args: LayerNormBackwardArgs<'_>) -> Result<()> {
    let weight = args.weight.as_slice::<f32>()?;
    dispatch!(float args.x.dtype(), "layer_norm_backward", T => {
        backward::<T>(cpu, args.dy.as_slice()?, args.x.as_slice()?, weight, args.eps, args.out.as_mut_slice()?);
        Ok(())
    })
}

fn backward<T: Float>(cpu: &Cpu, dy: &[T], x: &[T], weight: &[f32], eps: f32, out: &mut [T]) {
    let (simd, width) = (cpu.simd(), weight.len());
    let len = width * rows_per_task(width);
    cpu.chunks(out, len, |i, out| {
        let (mut dys, mut xs, mut dxs) = (Vec::new(), Vec::new(), Vec::new());
        let mut centred = vec![0.0; width];
        let (dy, x) = (&dy[i * len..][..out.len()], &x[i * len..][..out.len()]);
        for ((dy, x), dx) in dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(out.chunks_exact_mut(width)) {
            let (dy, x) = (T::as_f32(simd, dy, &mut dys), T::as_f32(simd, x, &mut xs));
            T::write_f32(simd, dx, &mut dxs, |dx| backward_row(simd, dy, x, weight, eps, &mut centred, dx));
        }
    });
}

fn backward_weight_cpu(cpu: &Cpu, mut args: LayerNormBackwardWeightArgs<'_>) -> Result<()> {
    dispatch!(float args.x.dtype(), "layer_norm_backward_weight", T => {
        let (_, width) = args.x.dims_rows("layer_norm_backward_weight")?;
        let partial = args.partial.as_mut_slice()?;
        backward_weight::<T>(cpu, args.dy.as_slice()?, args.x.as_slice()?, width, args.eps, partial);
        Ok(())
    })
}

fn backward_weight<T: Float>(cpu: &Cpu, dy: &[T], x: &[T], width: usize, eps: f32, partial: &mut [f32]) {
    let (simd, len) = (cpu.simd(), width * rows_per_task(width));
    cpu.chunks(partial, 2 * width, |i, sums| {
        let (mut dys, mut xs, mut centred) = (Vec::new(), Vec::new(), vec![0.0; width]);
        sums.fill(0.0);
        let (dw, db) = sums.split_at_mut(width);
        let rows = i * len..x.len().min((i + 1) * len);
        for (dy, x) in dy[rows.clone()].chunks_exact(width).zip(x[rows].chunks_exact(width)) {
            let (dy, x) = (T::as_f32(simd, dy, &mut dys), T::as_f32(simd, x, &mut xs));
            backward_weight_row(simd, dy, x, eps, &mut centred, dw, db);
        }
    });
}

fn forward_cuda(cuda: &Cuda, args: LayerNormArgs<'_>) -> Result<()> {
    let LayerNormArgs { x, weight, bias, eps, out } = args;
    let (rows, width) = x.dims_rows("layer_norm")?;
    let args = [
        cuda::read(x)?,
        cuda::read(weight)?,
        cuda::read(bias)?,
        Arg::F32(eps),
        cuda::written(&out)?,
        cuda::count(rows),
        cuda::number(width)?,
    ];
    cuda::over_rows(cuda, "layer_norm", &format!("layer_norm_{}", x.dtype()), rows, &args)
}

fn backward_cuda(cuda: &Cuda, args: LayerNormBackwardArgs<'_>) -> Result<()> {
    let LayerNormBackwardArgs { dy, x, weight, eps, out } = args;
    let (rows, width) = x.dims_rows("layer_norm_backward")?;
    let args = [
        cuda::read(dy)?,
        cuda::read(x)?,
        cuda::read(weight)?,
        Arg::F32(eps),
        cuda::written(&out)?,
        cuda::count(rows),
        cuda::number(width)?,
    ];
    cuda::over_rows(cuda, "layer_norm", &format!("layer_norm_backward_{}", x.dtype()), rows, &args)
}

fn backward_weight_cuda(cuda: &Cuda, args: LayerNormBackwardWeightArgs<'_>) -> Result<()> {
    let LayerNormBackwardWeightArgs { dy, x, eps, partial } = args;
    let (rows, width) = x.dims_rows("layer_norm_backward_weight")?;
    let args = [
        cuda::read(dy)?,
        cuda::read(x)?,
        Arg::F32(eps),
        cuda::written(&partial)?,
        cuda::count(rows),
        cuda::number(width)?,
        cuda::number(rows_per_task(width))?,
    ];
    let entry = format!("layer_norm_backward_weight_{}", x.dtype());
    cuda::start(cuda, "layer_norm", &entry, partial.shape()[0], cuda::THREADS, &args)
}

/// Writes x - mean(x) and gives 1 / sqrt(variance + eps).
#[inline(always)]
fn centre(x: &[f32], eps: f32, centred: &mut [f32]) -> f32 {
    let mean = sum_body(x) / x.len() as f32;
    for (c, &x) in centred.iter_mut().zip(x) {
        *c = x - mean;
    }
    math::rsqrt(dot_body(centred, centred) / x.len() as f32 + eps)
}

simd! {
    fn forward_row(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
        let r = centre(x, eps, y);
        for ((y, &w), &b) in y.iter_mut().zip(w).zip(b) {
            *y = (*y * r).mul_add(w, b);
        }
    }

    /// With g = dy w and n = (x - mean) r: dx = r (g - mean(g) - n mean(g n)).
    fn backward_row(dy: &[f32], x: &[f32], w: &[f32], eps: f32, centred: &mut [f32], dx: &mut [f32]) {
        let r = centre(x, eps, centred);
        for ((g, &dy), &w) in dx.iter_mut().zip(dy).zip(w) {
            *g = dy * w;
        }
        let mean_g = sum_body(dx) / x.len() as f32;
        let mean_gn = dot_body(dx, centred) * r / x.len() as f32;
        for (g, &c) in dx.iter_mut().zip(&*centred) {
            *g = r * (-mean_gn * r).mul_add(c, *g - mean_g);
        }
    }

    /// dw += dy n, db += dy
    fn backward_weight_row(dy: &[f32], x: &[f32], eps: f32, centred: &mut [f32], dw: &mut [f32], db: &mut [f32]) {
        let r = centre(x, eps, centred);
        for (((dw, db), &dy), &c) in dw.iter_mut().zip(db).zip(dy).zip(&*centred) {
            *dw = dy.mul_add(c * r, *dw);
            *db += dy;
        }
    }
}
