//! Elementwise functions of one tensor and their derivatives.

use crate::blocks::{Old, Reader, write};
use crate::cpu::{Cpu, math, simd};
use crate::cuda::{self, Arg, Cuda, View};
use crate::{Result, Tensor, TensorMut, kernel, same_device};
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// -x
    Neg,
    /// |x|, with derivative 0 at 0.
    Abs,
    /// eˣ
    Exp,
    /// The natural logarithm.
    Log,
    /// √x
    Sqrt,
    /// 1/√x
    Rsqrt,
    /// 1/x
    Recip,
    /// x²
    Square,
    /// sin x
    Sin,
    /// cos x
    Cos,
    /// tanh x
    Tanh,
    /// 1/(1 + e⁻ˣ)
    Sigmoid,
    /// max(x, 0), with derivative 0 at 0.
    Relu,
    /// x sigmoid(x)
    Silu,
    /// x Φ(x), by the error function (Hendrycks and Gimpel 2016).
    Gelu,
    /// The approximation of [`Unary::Gelu`] by tanh, which many models were trained with.
    GeluTanh,
}

/// Arguments of [`UNARY`]: out = `op` of x, element by element.
pub struct UnaryArgs<'a> {
    /// Which function.
    pub op: Unary,
    /// Any shape, layout and float dtype.
    pub x: &'a Tensor,
    /// Shape and dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub UNARY = "unary", UnaryArgs, unary_cpu, unary_cuda);

/// Arguments of [`UNARY_BACKWARD`]: dx = dy · op'(x).
pub struct UnaryBackwardArgs<'a> {
    /// Which function.
    pub op: Unary,
    /// Any shape, layout and float dtype.
    pub x: &'a Tensor,
    /// Shape and dtype of `x`, any layout.
    pub dy: &'a Tensor,
    /// Shape and dtype of `x`.
    pub dx: TensorMut<'a>,
}
kernel!(pub UNARY_BACKWARD = "unary_backward", UnaryBackwardArgs, unary_backward_cpu, unary_backward_cuda);

/// `op` of every element.
///
/// # Errors
/// When `x` is not of a float dtype.
pub fn unary(op: Unary, x: &Tensor) -> Result<Tensor> {
    let mut out = x.device().alloc(x.shape(), x.dtype().expect_float("unary")?)?;
    x.device().run(&UNARY, UnaryArgs { op, x, out: out.view() })?;
    Ok(out.finish())
}

/// dy · op'(x)
///
/// # Errors
/// When `x` and `dy` differ in shape, dtype or device.
pub fn unary_backward(op: Unary, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let device = same_device("unary_backward", &[x, dy])?;
    dy.expect_like("unary_backward", x)?;
    let mut dx = device.alloc(x.shape(), x.dtype().expect_float("unary_backward")?)?;
    device.run(&UNARY_BACKWARD, UnaryBackwardArgs { op, x, dy, dx: dx.view() })?;
    Ok(dx.finish())
}

fn unary_cpu(cpu: &Cpu, args: UnaryArgs<'_>) -> Result<()> {
    let UnaryArgs { op, x, mut out } = args;
    let x = Reader::new(x, cpu.simd())?;
    write(cpu, &mut out, Old::Ignored, &|range, out, [block, ..]| apply(cpu.simd(), op, x.read(range, block), out))
}

fn unary_backward_cpu(cpu: &Cpu, args: UnaryBackwardArgs<'_>) -> Result<()> {
    let UnaryBackwardArgs { op, x, dy, mut dx } = args;
    let (x, dy) = (Reader::new(x, cpu.simd())?, Reader::new(dy, cpu.simd())?);
    write(cpu, &mut dx, Old::Ignored, &|range, dx, [a, b, _]| {
        apply_slope(cpu.simd(), op, x.read(range.clone(), a), dy.read(range, b), dx);
    })
}

fn unary_cuda(cuda: &Cuda, args: UnaryArgs<'_>) -> Result<()> {
    let UnaryArgs { op, x, out } = args;
    let (entry, view) = (format!("unary_{}", x.dtype()), View::new(x)?);
    let args = [Arg::U32(op as u32), cuda::read(x)?, view.arg(), cuda::written(&out)?, cuda::count(out.len())];
    cuda::over_elements(cuda, "unary", &entry, out.len(), &args)
}

fn unary_backward_cuda(cuda: &Cuda, args: UnaryBackwardArgs<'_>) -> Result<()> {
    let UnaryBackwardArgs { op, x, dy, dx } = args;
    let (entry, x_view, dy_view) = (format!("unary_backward_{}", x.dtype()), View::new(x)?, View::new(dy)?);
    let args = [
        Arg::U32(op as u32),
        cuda::read(x)?,
        x_view.arg(),
        cuda::read(dy)?,
        dy_view.arg(),
        cuda::written(&dx)?,
        cuda::count(dx.len()),
    ];
    cuda::over_elements(cuda, "unary", &entry, dx.len(), &args)
}

/// √(2/π) and the cubic coefficient of the tanh approximation.
const SQRT_2_PI: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
const CUBIC: f32 = 0.044_715;

simd! {
    fn apply(op: Unary, x: &[f32], out: &mut [f32]) {
        match op {
            Unary::Neg => map(x, out, |x| -x),
            Unary::Abs => map(x, out, f32::abs),
            Unary::Exp => map(x, out, math::exp),
            Unary::Log => map(x, out, math::log),
            Unary::Sqrt => map(x, out, f32::sqrt),
            Unary::Rsqrt => map(x, out, math::rsqrt),
            Unary::Recip => map(x, out, |x| 1.0 / x),
            Unary::Square => map(x, out, |x| x * x),
            Unary::Sin => map(x, out, math::sin),
            Unary::Cos => map(x, out, math::cos),
            Unary::Tanh => map(x, out, math::tanh),
            Unary::Sigmoid => map(x, out, math::sigmoid),
            Unary::Relu => map(x, out, |x| if x > 0.0 || x.is_nan() { x } else { 0.0 }),
            Unary::Silu => map(x, out, |x| x * math::sigmoid(x)),
            Unary::Gelu => map(x, out, |x| x * phi(x)),
            Unary::GeluTanh => map(x, out, |x| x * phi_tanh(x)),
        }
    }

    fn apply_slope(op: Unary, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        match op {
            Unary::Neg => map2(x, dy, dx, |_, dy| -dy),
            Unary::Abs => map2(x, dy, dx, |x, dy| if x > 0.0 { dy } else if x < 0.0 { -dy } else { 0.0 * x }),
            Unary::Exp => map2(x, dy, dx, |x, dy| math::exp(x) * dy),
            Unary::Log => map2(x, dy, dx, |x, dy| dy / x),
            Unary::Sqrt => map2(x, dy, dx, |x, dy| 0.5 * dy / x.sqrt()),
            Unary::Rsqrt => map2(x, dy, dx, |x, dy| -0.5 * dy * math::rsqrt(x) / x),
            Unary::Recip => map2(x, dy, dx, |x, dy| -dy / x / x),
            Unary::Square => map2(x, dy, dx, |x, dy| 2.0 * x * dy),
            Unary::Sin => map2(x, dy, dx, |x, dy| math::cos(x) * dy),
            Unary::Cos => map2(x, dy, dx, |x, dy| -math::sin(x) * dy),
            Unary::Tanh => map2(x, dy, dx, |x, dy| {
                let y = math::tanh(x);
                (1.0 - y) * (1.0 + y) * dy
            }),
            Unary::Sigmoid => map2(x, dy, dx, |x, dy| math::sigmoid(x) * math::sigmoid(-x) * dy),
            Unary::Relu => map2(x, dy, dx, |x, dy| if x > 0.0 { dy } else { 0.0 * x.min(0.0) }),
            // (x s)' = s + x s (1 - s)
            Unary::Silu => map2(x, dy, dx, |x, dy| math::sigmoid(x) * x.mul_add(math::sigmoid(-x), 1.0) * dy),
            // (x Φ)' = Φ + x φ with φ = e^(-x²/2) / √(2π)
            Unary::Gelu => map2(x, dy, dx, |x, dy| (0.5 * SQRT_2_PI * x).mul_add(math::exp(-0.5 * x * x), phi(x)) * dy),
            // p = σ(2u): (x p)' = p + x 2u' p (1 - p)
            Unary::GeluTanh => map2(x, dy, dx, |x, dy| {
                let (p, q) = (phi_tanh(x), phi_tanh(-x));
                let slope = 2.0 * SQRT_2_PI * (3.0 * CUBIC * x).mul_add(x, 1.0);
                (x * slope * p).mul_add(q, p) * dy
            }),
        }
    }
}

/// The normal distribution function, (1 + erf(x/√2)) / 2.
#[inline(always)]
fn phi(x: f32) -> f32 {
    0.5 * (1.0 + math::erf(x * FRAC_1_SQRT_2))
}

/// (1 + tanh u) / 2 = sigmoid(2u) with u = √(2/π) (x + 0.044715 x³).
#[inline(always)]
fn phi_tanh(x: f32) -> f32 {
    math::sigmoid(2.0 * SQRT_2_PI * (CUBIC * x * x).mul_add(x, x))
}

#[inline(always)]
fn map(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    for (&x, out) in x.iter().zip(out) {
        *out = f(x);
    }
}

#[inline(always)]
fn map2(x: &[f32], dy: &[f32], dx: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    for ((&x, &dy), dx) in x.iter().zip(dy).zip(dx) {
        *dx = f(x, dy);
    }
}
