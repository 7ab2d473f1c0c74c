//! Softmax and its logarithm along the last dimension.

use crate::blocks::{Reader, write_rows};
use crate::cpu::reduce::{dot_body, max_body, sum_body};
use crate::cpu::{Cpu, math, simd};
use crate::cuda::{self, Arg, Cuda, View};
use crate::{Result, Tensor, TensorMut, kernel, same_device};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Softmax {
    /// eˣ / Σ eˣ
    Plain,
    /// x - log Σ eˣ
    Log,
}

/// Arguments of [`SOFTMAX`]: y = softmax of x, or its logarithm, over the last dimension.
pub struct SoftmaxArgs<'a> {
    /// Softmax or its logarithm.
    pub op: Softmax,
    /// [.., d], any layout and float dtype.
    pub x: &'a Tensor,
    /// Shape and dtype of `x`.
    pub y: TensorMut<'a>,
}
kernel!(pub SOFTMAX = "softmax", SoftmaxArgs, softmax_cpu, softmax_cuda);

/// Arguments of [`SOFTMAX_BACKWARD`]: the gradient of [`SOFTMAX`] by x.
pub struct SoftmaxBackwardArgs<'a> {
    /// Softmax or its logarithm.
    pub op: Softmax,
    /// As the forward pass gave it: [.., d], any layout and float dtype.
    pub y: &'a Tensor,
    /// Its gradient: shape and dtype of `y`, any layout.
    pub dy: &'a Tensor,
    /// Shape and dtype of `y`.
    pub dx: TensorMut<'a>,
}
kernel!(pub SOFTMAX_BACKWARD = "softmax_backward", SoftmaxBackwardArgs, softmax_backward_cpu, softmax_backward_cuda);

/// Softmax (or its logarithm) along the last dimension.
///
/// # Errors
/// When there is no last dimension or it is empty, or the dtype is no float.
pub fn softmax(op: Softmax, x: &Tensor) -> Result<Tensor> {
    x.dims_rows("softmax")?;
    let mut y = x.device().alloc(x.shape(), x.dtype().expect_float("softmax")?)?;
    x.device().run(&SOFTMAX, SoftmaxArgs { op, x, y: y.view() })?;
    Ok(y.finish())
}

/// The gradient of [`softmax`] by its input, from its output `y` and that one's gradient.
///
/// # Errors
/// When `y` and `dy` differ in shape, dtype or device.
pub fn softmax_backward(op: Softmax, y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let device = same_device("softmax_backward", &[y, dy])?;
    y.dims_rows("softmax_backward")?;
    dy.expect_like("softmax_backward", y)?;
    let mut dx = device.alloc(y.shape(), y.dtype().expect_float("softmax_backward")?)?;
    device.run(&SOFTMAX_BACKWARD, SoftmaxBackwardArgs { op, y, dy, dx: dx.view() })?;
    Ok(dx.finish())
}

fn softmax_cpu(cpu: &Cpu, args: SoftmaxArgs<'_>) -> Result<()> {
    let SoftmaxArgs { op, x, mut y } = args;
    let (_, n) = x.dims_rows("softmax")?;
    let x = Reader::new(x, cpu.simd())?;
    write_rows(cpu, &mut y, n, 1, &|row, y, scratch| {
        forward(cpu.simd(), op, x.read(row * n..(row + 1) * n, scratch), y);
    })
}

fn softmax_backward_cpu(cpu: &Cpu, args: SoftmaxBackwardArgs<'_>) -> Result<()> {
    let SoftmaxBackwardArgs { op, y, dy, mut dx } = args;
    let (_, n) = y.dims_rows("softmax_backward")?;
    let (y, dy) = (Reader::new(y, cpu.simd())?, Reader::new(dy, cpu.simd())?);
    write_rows(cpu, &mut dx, n, 2, &|row, dx, scratch| {
        let (a, b) = scratch.split_at_mut(n);
        let range = row * n..(row + 1) * n;
        backward(cpu.simd(), op, y.read(range.clone(), a), dy.read(range, b), dx);
    })
}

fn softmax_cuda(cuda: &Cuda, args: SoftmaxArgs<'_>) -> Result<()> {
    let SoftmaxArgs { op, x, y } = args;
    let (rows, width) = x.dims_rows("softmax")?;
    let view = View::new(x)?;
    let args =
        [Arg::U32(op as u32), cuda::read(x)?, view.arg(), cuda::written(&y)?, cuda::count(rows), cuda::number(width)?];
    cuda::over_rows(cuda, "softmax", &format!("softmax_{}", x.dtype()), rows, &args)
}

fn softmax_backward_cuda(cuda: &Cuda, args: SoftmaxBackwardArgs<'_>) -> Result<()> {
    let SoftmaxBackwardArgs { op, y, dy, dx } = args;
    let (rows, width) = y.dims_rows("softmax_backward")?;
    let (y_view, dy_view) = (View::new(y)?, View::new(dy)?);
    let args = [
        Arg::U32(op as u32),
        cuda::read(y)?,
        y_view.arg(),
        cuda::read(dy)?,
        dy_view.arg(),
        cuda::written(&dx)?,
        cuda::count(rows),
        cuda::number(width)?,
    ];
    cuda::over_rows(cuda, "softmax", &format!("softmax_backward_{}", y.dtype()), rows, &args)
}

simd! {
    fn forward(op: Softmax, x: &[f32], y: &mut [f32]) {
        let max = max_body(x);
        for (x, y) in x.iter().zip(&mut *y) {
            *y = math::exp(x - max);
        }
        let sum = sum_body(y);
        match op {
            Softmax::Plain => y.iter_mut().for_each(|y| *y /= sum),
            Softmax::Log => {
                let log = math::log(sum);
                x.iter().zip(y).for_each(|(x, y)| *y = (x - max) - log);
            }
        }
    }

    /// Plain: dx = y (dy - y · dy). Log: dx = dy - eʸ Σ dy.
    fn backward(op: Softmax, y: &[f32], dy: &[f32], dx: &mut [f32]) {
        match op {
            Softmax::Plain => {
                let dot = dot_body(y, dy);
                for ((y, dy), dx) in y.iter().zip(dy).zip(dx) {
                    *dx = y * (dy - dot);
                }
            }
            Softmax::Log => {
                let sum = sum_body(dy);
                for ((y, dy), dx) in y.iter().zip(dy).zip(dx) {
                    *dx = math::exp(*y).mul_add(-sum, *dy);
                }
            }
        }
    }
}
