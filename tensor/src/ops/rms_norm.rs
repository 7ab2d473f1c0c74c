//! Root-mean-square norm (Zhang and Sennrich, 2019): y = x / sqrt(mean(x²) + eps) · w over the last dimension; of one
//! tensor, or of the sum of two, as after a residual connection.

mod rows;

use super::sum_to;
use crate::cpu::{Cpu, rows_per_task};
use crate::cuda::{self, Arg, Cuda};
use crate::{DType, Error, Float, Result, Tensor, TensorMut, dispatch, kernel, same_device};
use rows::{add, add_to, backward_both_row, backward_row, backward_weight_row, forward_row};

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

/// Arguments of [`ADD_RMS_NORM`]: sum = x + residual, and out = [`RMS_NORM`] of sum.
pub struct AddRmsNormArgs<'a> {
    /// [.., d], any float dtype, contiguous.
    pub x: &'a Tensor,
    /// Shape and dtype of `x`, contiguous.
    pub residual: &'a Tensor,
    /// `[d]`, f32, contiguous.
    pub weight: &'a Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Shape and dtype of `x`, to which the sum is rounded before it is normalised.
    pub sum: TensorMut<'a>,
    /// Shape and dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub ADD_RMS_NORM = "add_rms_norm", AddRmsNormArgs, add_forward_cpu, add_forward_cuda);

/// Arguments of [`ADD_RMS_NORM_BACKWARD`]: out = d_sum + [`RMS_NORM_BACKWARD`], the gradient of [`ADD_RMS_NORM`] by x and
/// by residual alike.
pub struct AddRmsNormBackwardArgs<'a> {
    /// What else the gradient of the sum has: shape and dtype of `sum`, contiguous.
    pub d_sum: &'a Tensor,
    /// The gradient of the norm's output: shape and dtype of `sum`, contiguous.
    pub dy: &'a Tensor,
    /// [.., d], any float dtype, contiguous.
    pub sum: &'a Tensor,
    /// `[d]`, f32, contiguous.
    pub weight: &'a Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Shape and dtype of `sum`, to which the norm's part is rounded before it is added.
    pub out: TensorMut<'a>,
}
kernel!(pub ADD_RMS_NORM_BACKWARD = "add_rms_norm_backward", AddRmsNormBackwardArgs, add_backward_cpu, add_backward_cuda);

/// Arguments of [`RMS_NORM_BACKWARD_BOTH`]: [`RMS_NORM_BACKWARD`] or [`ADD_RMS_NORM_BACKWARD`], and [`RMS_NORM_BACKWARD_WEIGHT`].
pub struct RmsNormBackwardBothArgs<'a> {
    /// What else the gradient of `x` has, to be added: shape and dtype of `x`, contiguous.
    pub d_sum: Option<&'a Tensor>,
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
    /// One sum a task: [tasks, d], f32. The op adds them up.
    pub partial: TensorMut<'a>,
}
kernel!(pub RMS_NORM_BACKWARD_BOTH = "rms_norm_backward_both", RmsNormBackwardBothArgs, backward_both_cpu, backward_both_cuda);

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
    let weight = wide_weight("rms_norm_backward", x, weight)?;
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
    let (dy, x) = (like("rms_norm_backward_weight", dy, x)?, x.contiguous()?);
    let mut partial = device.alloc(&[rows.div_ceil(rows_per_task(width)), width], DType::F32)?;
    device
        .run(&RMS_NORM_BACKWARD_WEIGHT, RmsNormBackwardWeightArgs { dy: &dy, x: &x, eps, partial: partial.view() })?;
    sum_to(&partial.finish(), &[width])
}

/// [`rms_norm_backward`], or [`add_rms_norm_backward`] where `d_sum` is given, and [`rms_norm_backward_weight`], in one pass over
/// memory on a CPU: the bits of the two ops.
///
/// # Errors
/// As these.
pub fn rms_norm_backward_both(
    d_sum: Option<&Tensor>,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "rms_norm_backward_both";
    let device = same_device(OP, &[d_sum.unwrap_or(dy), dy, x, weight])?;
    let (rows, width) = x.dims_rows(OP)?;
    let weight = wide_weight(OP, x, weight)?;
    let d_sum = d_sum.map(|d_sum| like(OP, d_sum, x)).transpose()?;
    let (dy, x) = (like(OP, dy, x)?, x.contiguous()?);
    let mut out = device.alloc(x.shape(), x.dtype())?;
    let mut partial = device.alloc(&[rows.div_ceil(rows_per_task(width)), width], DType::F32)?;
    let (d_sum, out_view, partial_view) = (d_sum.as_ref(), out.view(), partial.view());
    let args =
        RmsNormBackwardBothArgs { d_sum, dy: &dy, x: &x, weight: &weight, eps, out: out_view, partial: partial_view };
    device.run(&RMS_NORM_BACKWARD_BOTH, args)?;
    Ok((out.finish(), sum_to(&partial.finish(), &[width])?))
}

/// `x` + `residual`, which have one shape [.., d] and float dtype, and [`rms_norm`] of that sum: the bits of the two
/// ops, from one pass over memory. The gradient by the weight is [`rms_norm_backward_weight`] of the sum.
///
/// # Errors
/// When `x` and `residual` differ in shape or dtype, and as [`rms_norm`].
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let device = same_device("add_rms_norm", &[x, residual, weight])?;
    if x.shape() != residual.shape() {
        return Err(Error::shape("add_rms_norm", format!("{:?} and {:?}", x.shape(), residual.shape())));
    }
    if x.dtype() != residual.dtype() {
        return Err(Error::dtype("add_rms_norm", format!("{} and {}", x.dtype(), residual.dtype())));
    }
    let weight = wide_weight("add_rms_norm", x, weight)?;
    let (mut sum, mut out) = (device.alloc(x.shape(), x.dtype())?, device.alloc(x.shape(), x.dtype())?);
    let (x, residual) = (x.contiguous()?, residual.contiguous()?);
    let args = AddRmsNormArgs { x: &x, residual: &residual, weight: &weight, eps, sum: sum.view(), out: out.view() };
    device.run(&ADD_RMS_NORM, args)?;
    Ok((sum.finish(), out.finish()))
}

/// The gradient of [`add_rms_norm`] with respect to `x` and to `residual`, which is one: `d_sum`, the gradient that the
/// sum has from elsewhere, plus [`rms_norm_backward`] of the sum.
///
/// # Errors
/// As [`rms_norm_backward`], for `d_sum` too.
pub fn add_rms_norm_backward(d_sum: &Tensor, dy: &Tensor, sum: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    const OP: &str = "add_rms_norm_backward";
    let device = same_device(OP, &[d_sum, dy, sum, weight])?;
    let weight = wide_weight(OP, sum, weight)?;
    let (d_sum, dy, sum) = (like(OP, d_sum, sum)?, like(OP, dy, sum)?, sum.contiguous()?);
    let mut out = device.alloc(sum.shape(), sum.dtype())?;
    let args = AddRmsNormBackwardArgs { d_sum: &d_sum, dy: &dy, sum: &sum, weight: &weight, eps, out: out.view() };
    device.run(&ADD_RMS_NORM_BACKWARD, args)?;
    Ok(out.finish())
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
        let x = &x[i * len..][..out.len()];
        for (x, y) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            forward_row(simd, x, weight, eps, y);
        }
    });
}

fn add_forward_cpu(cpu: &Cpu, mut args: AddRmsNormArgs<'_>) -> Result<()> {
    let weight = args.weight.as_slice::<f32>()?;
    dispatch!(float args.x.dtype(), "add_rms_norm", T => {
        let (x, residual) = (args.x.as_slice()?, args.residual.as_slice()?);
        add_forward::<T>(cpu, x, residual, weight, args.eps, args.sum.as_mut_slice()?, args.out.as_mut_slice()?);
        Ok(())
    })
}

/// Each row is added up and normalised while it is in the cache.
fn add_forward<T: Float>(cpu: &Cpu, x: &[T], residual: &[T], weight: &[f32], eps: f32, sum: &mut [T], out: &mut [T]) {
    let (simd, width) = (cpu.simd(), weight.len());
    let len = width * rows_per_task(width);
    cpu.chunks2((sum, len), (out, len), |i, sum, out| {
        let (x, residual) = (&x[i * len..][..out.len()], &residual[i * len..][..out.len()]);
        let terms = x.chunks_exact(width).zip(residual.chunks_exact(width));
        let outputs = sum.chunks_exact_mut(width).zip(out.chunks_exact_mut(width));
        for ((x, residual), (sum, y)) in terms.zip(outputs) {
            add(simd, x, residual, sum);
            forward_row(simd, sum, weight, eps, y);
        }
    });
}

fn backward_cpu(cpu: &Cpu, mut args: RmsNormBackwardArgs<'_>) -> Result<()> {
    let weight = args.weight.as_slice::<f32>()?;
    dispatch!(float args.x.dtype(), "rms_norm_backward", T => {
        backward::<T>(cpu, None, args.dy.as_slice()?, args.x.as_slice()?, weight, args.eps, args.out.as_mut_slice()?);
        Ok(())
    })
}

fn add_backward_cpu(cpu: &Cpu, mut args: AddRmsNormBackwardArgs<'_>) -> Result<()> {
    let weight = args.weight.as_slice::<f32>()?;
    dispatch!(float args.sum.dtype(), "add_rms_norm_backward", T => {
        let (d_sum, dy, sum) = (args.d_sum.as_slice()?, args.dy.as_slice()?, args.sum.as_slice()?);
        backward::<T>(cpu, Some(d_sum), dy, sum, weight, args.eps, args.out.as_mut_slice()?);
        Ok(())
    })
}

/// The gradient of the norm, added to `before` where that is given.
fn backward<T: Float>(cpu: &Cpu, before: Option<&[T]>, dy: &[T], x: &[T], weight: &[f32], eps: f32, out: &mut [T]) {
    let (simd, width) = (cpu.simd(), weight.len());
    let len = width * rows_per_task(width);
    cpu.chunks(out, len, |i, out| {
        for (k, dx) in out.chunks_exact_mut(width).enumerate() {
            let start = i * len + k * width;
            let row = start..start + width;
            backward_row(simd, &dy[row.clone()], &x[row.clone()], weight, eps, dx);
            if let Some(before) = before {
                add_to(simd, &before[row], dx);
            }
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
        sum.fill(0.0);
        let rows = i * len..x.len().min((i + 1) * len);
        for (dy, x) in dy[rows.clone()].chunks_exact(width).zip(x[rows].chunks_exact(width)) {
            backward_weight_row(simd, dy, x, eps, sum);
        }
    });
}

fn backward_both_cpu(cpu: &Cpu, mut args: RmsNormBackwardBothArgs<'_>) -> Result<()> {
    let (weight, eps) = (args.weight.as_slice::<f32>()?, args.eps);
    dispatch!(float args.x.dtype(), "rms_norm_backward_both", T => {
        let d_sum = args.d_sum.map(Tensor::as_slice).transpose()?;
        let (out, partial) = (args.out.as_mut_slice()?, args.partial.as_mut_slice()?);
        backward_both::<T>(cpu, d_sum, args.dy.as_slice()?, args.x.as_slice()?, weight, eps, out, partial);
        Ok(())
    })
}

#[allow(clippy::too_many_arguments)] // two kernels in one
fn backward_both<T: Float>(
    cpu: &Cpu,
    before: Option<&[T]>,
    dy: &[T],
    x: &[T],
    weight: &[f32],
    eps: f32,
    out: &mut [T],
    partial: &mut [f32],
) {
    let (simd, width) = (cpu.simd(), weight.len());
    let len = width * rows_per_task(width);
    cpu.chunks2((out, len), (partial, width), |i, out, dw| {
        dw.fill(0.0);
        for (k, dx) in out.chunks_exact_mut(width).enumerate() {
            let start = i * len + k * width;
            let row = start..start + width;
            backward_both_row(simd, &dy[row.clone()], &x[row.clone()], weight, eps, dx, dw);
            if let Some(before) = before {
                add_to(simd, &before[row], dx);
            }
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

fn add_forward_cuda(cuda: &Cuda, args: AddRmsNormArgs<'_>) -> Result<()> {
    let AddRmsNormArgs { x, residual, weight, eps, sum, out } = args;
    let (rows, width) = x.dims_rows("add_rms_norm")?;
    let args = [
        cuda::read(x)?,
        cuda::read(residual)?,
        cuda::read(weight)?,
        Arg::F32(eps),
        cuda::written(&sum)?,
        cuda::written(&out)?,
        cuda::count(rows),
        cuda::number(width)?,
    ];
    cuda::over_rows(cuda, "rms_norm", &format!("add_rms_norm_{}", x.dtype()), rows, &args)
}

fn add_backward_cuda(cuda: &Cuda, args: AddRmsNormBackwardArgs<'_>) -> Result<()> {
    let AddRmsNormBackwardArgs { d_sum, dy, sum, weight, eps, out } = args;
    let (rows, width) = sum.dims_rows("add_rms_norm_backward")?;
    let args = [
        cuda::read(d_sum)?,
        cuda::read(dy)?,
        cuda::read(sum)?,
        cuda::read(weight)?,
        Arg::F32(eps),
        cuda::written(&out)?,
        cuda::count(rows),
        cuda::number(width)?,
    ];
    cuda::over_rows(cuda, "rms_norm", &format!("add_rms_norm_backward_{}", sum.dtype()), rows, &args)
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

/// The two kernels, one after the other.
fn backward_both_cuda(cuda: &Cuda, args: RmsNormBackwardBothArgs<'_>) -> Result<()> {
    let RmsNormBackwardBothArgs { d_sum, dy, x, weight, eps, out, partial } = args;
    match d_sum {
        Some(d_sum) => add_backward_cuda(cuda, AddRmsNormBackwardArgs { d_sum, dy, sum: x, weight, eps, out })?,
        None => backward_cuda(cuda, RmsNormBackwardArgs { dy, x, weight, eps, out })?,
    }
    backward_weight_cuda(cuda, RmsNormBackwardWeightArgs { dy, x, eps, partial })
}
