//! f32 arithmetic.
//!
//! Rounding to nearest is the CPU's own. The other modes go through f64, rounded to odd: see [`super::format`].

use super::approx;
use super::format::{F32, quotient, root, sum};
use super::lanes::Warp;
use crate::program::{Alu, AluOp, Modifiers, Rounding};

/// The number in a register.
#[inline(always)]
fn float(slot: u64) -> f32 {
    f32::from_bits(slot as u32)
}

#[inline(always)]
fn slot(x: f32) -> u64 {
    u64::from(x.to_bits())
}

/// An f32 instruction but for comparisons, selections and conversions.
pub(super) fn eval(alu: &Alu, warp: &mut Warp<'_>) -> bool {
    let m = &alu.modifiers;
    let rounding = m.rounding;
    match alu.op {
        AluOp::Add => binary(warp, m, |a, b| a + b, move |a, b| sum(a, b, rounding)),
        AluOp::Sub => binary(warp, m, |a, b| a - b, move |a, b| sum(a, -b, rounding)),
        AluOp::Mul => binary(warp, m, |a, b| a * b, |a, b| a * b),
        AluOp::Fma => fma(warp, m),
        AluOp::Div if m.approx => binary(warp, m, approx::div, |a, b| approx::div(a as f32, b as f32).into()),
        AluOp::Div => binary(warp, m, |a, b| a / b, quotient),
        AluOp::Rcp => unary(warp, m, |a| 1.0 / a, |a| quotient(1.0, a)),
        AluOp::Sqrt => unary(warp, m, f32::sqrt, root),
        AluOp::Rsqrt => approximation(warp, m, |a| 1.0 / f64::from(a).sqrt()),
        AluOp::Sin => approximation(warp, m, approx::sin),
        AluOp::Cos => approximation(warp, m, approx::cos),
        AluOp::Lg2 => approximation(warp, m, approx::lg2),
        AluOp::Ex2 => approximation(warp, m, |a| approx::ex2(a.into())),
        AluOp::Tanh => approximation(warp, m, |a| approx::tanh(a.into())),
        _ => false,
    }
}

/// What an instruction with `.ftz` sees of an operand.
#[inline(always)]
fn input(m: &Modifiers, bits: u64) -> f32 {
    float(if m.ftz { F32.flush(bits) } else { bits })
}

/// A value, exact or rounded to odd, as a result: rounded to nearest, flushed if `.ftz` says so, saturated if `.sat` does.
#[inline(always)]
fn nearest(m: &Modifiers, x: f64) -> u64 {
    // What rounds, to full precision, to less than the least normal number: below (1 - 2^-25) of it.
    const TINY: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1 << 25) as f64);
    let least = if m.ftz { TINY } else { 0.0 };
    let x = if x.abs() < least { 0f64.copysign(x) } else { x };
    let bits = canonical(slot(x as f32));
    if m.sat { saturate(bits) } else { bits }
}

/// The same in any rounding mode.
fn directed(m: &Modifiers, x: f64) -> u64 {
    let bits = if m.ftz { F32.narrow_flushed(x, m.rounding) } else { F32.narrow(x, m.rounding) };
    if m.sat { saturate(bits) } else { bits }
}

/// The one NaN for any.
#[inline(always)]
fn canonical(bits: u64) -> u64 {
    if F32.is_nan(bits) { F32.nan() } else { bits }
}

/// Clamped to 0..1; NaN and -0 become +0.
#[inline(always)]
fn saturate(bits: u64) -> u64 {
    let x = float(bits);
    if x > 0.0 { slot(x.min(1.0)) } else { 0 }
}

/// Whether the CPU's own operation is the instruction, but for the bits of NaN.
fn is_native(m: &Modifiers) -> bool {
    m.rounding == Rounding::Rn && !m.ftz && !m.sat
}

/// One operation of two values: on the CPU, or as f64, exactly or rounded to odd.
#[inline(always)]
fn binary(warp: &mut Warp<'_>, m: &Modifiers, native: impl Fn(f32, f32) -> f32, odd: impl Fn(f64, f64) -> f64) -> bool {
    let m = *m;
    if is_native(&m) {
        return warp.map2(|a, b| canonical(slot(native(float(a), float(b)))));
    }
    let odd = |a, b| odd(input(&m, a).into(), input(&m, b).into());
    if m.rounding == Rounding::Rn {
        return warp.map2(|a, b| nearest(&m, odd(a, b)));
    }
    warp.map2(|a, b| directed(&m, odd(a, b)))
}

/// Like [`binary`].
#[inline(always)]
fn unary(warp: &mut Warp<'_>, m: &Modifiers, native: impl Fn(f32) -> f32, odd: impl Fn(f64) -> f64) -> bool {
    let m = *m;
    if is_native(&m) {
        return warp.map1(|a| canonical(slot(native(float(a)))));
    }
    let odd = |a| odd(input(&m, a).into());
    if m.rounding == Rounding::Rn {
        return warp.map1(|a| nearest(&m, odd(a)));
    }
    warp.map1(|a| directed(&m, odd(a)))
}

/// A product of f32 values is exact as f64, so only the sum is rounded to odd. (Not `mul_add`, which is a call where the
/// CPU's baseline has no such instruction.)
fn fma(warp: &mut Warp<'_>, m: &Modifiers) -> bool {
    let m = *m;
    let odd = |a, b, c| {
        let product = f64::from(input(&m, a)) * f64::from(input(&m, b));
        sum(product, input(&m, c).into(), m.rounding)
    };
    if m.rounding == Rounding::Rn {
        return warp.map3(|a, b, c| nearest(&m, odd(a, b, c)));
    }
    warp.map3(|a, b, c| directed(&m, odd(a, b, c)))
}

/// One of [`approx`].
#[inline(always)]
fn approximation(warp: &mut Warp<'_>, m: &Modifiers, f: impl Fn(f32) -> f64) -> bool {
    let m = *m;
    warp.map1(|a| nearest(&m, f(input(&m, a))))
}
