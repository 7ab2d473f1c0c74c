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
        AluOp::Div if m.approx => {
            let m = *m;
            warp.map2(move |a, b| approximate(&m, || approx::div(input(&m, a), input(&m, b))))
        }
        AluOp::Div => binary(warp, m, |a, b| a / b, quotient),
        AluOp::Rcp => unary(warp, m, |a| 1.0 / a, |a| quotient(1.0, a)),
        AluOp::Sqrt => unary(warp, m, f32::sqrt, root),
        AluOp::Rsqrt => approximation(warp, m, |a| (1.0 / f64::from(a).sqrt()) as f32),
        AluOp::Sin => approximation(warp, m, |a| approx::sin(a) as f32),
        AluOp::Cos => approximation(warp, m, |a| approx::cos(a) as f32),
        AluOp::Lg2 => approximation(warp, m, |a| approx::lg2(a) as f32),
        AluOp::Ex2 => approximation(warp, m, |a| approx::ex2(f64::from(a)) as f32),
        AluOp::Tanh => approximation(warp, m, |a| approx::tanh(f64::from(a)) as f32),
        _ => false,
    }
}

/// What an instruction with `.ftz` sees of an operand.
#[inline(always)]
fn input(m: &Modifiers, bits: u64) -> f32 {
    float(if m.ftz { F32.flush(bits) } else { bits })
}

/// The bits of a result: subnormals flushed, then saturated to 0..1 with NaN as 0, else with one NaN only.
#[inline(always)]
fn output(m: &Modifiers, bits: u64) -> u64 {
    let bits = if m.ftz { F32.flush(bits) } else { bits };
    if m.sat { saturate(bits) } else { canonical(bits) }
}

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

/// One operation of two values: rounded to nearest on the CPU, else as f64, exactly or rounded to odd.
#[inline(always)]
fn binary(warp: &mut Warp<'_>, m: &Modifiers, near: impl Fn(f32, f32) -> f32, odd: impl Fn(f64, f64) -> f64) -> bool {
    let m = *m;
    if m.rounding == Rounding::Rn {
        if !m.ftz && !m.sat {
            return warp.map2(|a, b| canonical(slot(near(float(a), float(b)))));
        }
        return warp.map2(|a, b| output(&m, slot(near(input(&m, a), input(&m, b)))));
    }
    warp.map2(|a, b| output(&m, F32.narrow(odd(input(&m, a).into(), input(&m, b).into()), m.rounding)))
}

/// Like [`binary`].
#[inline(always)]
fn unary(warp: &mut Warp<'_>, m: &Modifiers, near: impl Fn(f32) -> f32, odd: impl Fn(f64) -> f64) -> bool {
    let m = *m;
    if m.rounding == Rounding::Rn {
        return warp.map1(|a| output(&m, slot(near(input(&m, a)))));
    }
    warp.map1(|a| output(&m, F32.narrow(odd(input(&m, a).into()), m.rounding)))
}

/// A product of f32 values is exact as f64, so only the sum is rounded to odd.
fn fma(warp: &mut Warp<'_>, m: &Modifiers) -> bool {
    let m = *m;
    if m.rounding == Rounding::Rn && !m.ftz && !m.sat {
        return warp.map3(|a, b, c| canonical(slot(fused(float(a), float(b), float(c)))));
    }
    if m.rounding == Rounding::Rn {
        return warp.map3(|a, b, c| output(&m, slot(fused(input(&m, a), input(&m, b), input(&m, c)))));
    }
    warp.map3(|a, b, c| {
        let product = f64::from(input(&m, a)) * f64::from(input(&m, b));
        output(&m, F32.narrow(sum(product, input(&m, c).into(), m.rounding), m.rounding))
    })
}

/// a * b + c rounded to nearest once. Not `mul_add`, which is a call where the CPU's baseline has no such instruction.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    sum(f64::from(a) * f64::from(b), c.into(), Rounding::Rn) as f32
}

#[inline(always)]
fn approximation(warp: &mut Warp<'_>, m: &Modifiers, f: impl Fn(f32) -> f32) -> bool {
    let m = *m;
    warp.map1(|a| approximate(&m, || f(input(&m, a))))
}

#[inline(always)]
fn approximate(m: &Modifiers, f: impl Fn() -> f32) -> u64 {
    output(m, slot(f()))
}
