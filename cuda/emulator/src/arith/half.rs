//! f16 and bf16 arithmetic, one value or two a register.
//!
//! Each operation is exact or rounded to odd in f64, then in f32, then rounded once: see [`super::format`].

use super::approx;
use super::format::{BF16, F16, Format, f16_to_f32, f32_to_bf16, f32_to_f16, f64_to_odd_f32, sum};
use super::lanes::{Warp, high, low};
use crate::program::{Alu, AluOp, Modifiers, Rounding, Type};

/// An f16 or bf16 instruction but for comparisons, selections and conversions.
pub(super) fn eval(alu: &Alu, warp: &mut Warp<'_>) -> bool {
    match alu.ty {
        Type::F16 => typed(F16, false, alu, warp),
        Type::F16x2 => typed(F16, true, alu, warp),
        Type::Bf16 => typed(BF16, false, alu, warp),
        Type::Bf16x2 => typed(BF16, true, alu, warp),
        _ => false,
    }
}

#[inline(always)]
fn typed(format: Format, packed: bool, alu: &Alu, warp: &mut Warp<'_>) -> bool {
    const RN: Rounding = Rounding::Rn;
    let m = alu.modifiers;
    match alu.op {
        AluOp::Add => map3(format, packed, m, warp, |a, b, _| sum(a, b, RN)),
        AluOp::Sub => map3(format, packed, m, warp, |a, b, _| sum(a, -b, RN)),
        AluOp::Mul => map3(format, packed, m, warp, |a, b, _| a * b),
        AluOp::Fma => map3(format, packed, m, warp, |a, b, c| sum(a * b, c, RN)),
        AluOp::Ex2 => map3(format, packed, m, warp, |a, _, _| approx::ex2(a)),
        AluOp::Tanh => map3(format, packed, m, warp, |a, _, _| approx::tanh(a)),
        _ => false,
    }
}

#[inline(always)]
fn map3(format: Format, packed: bool, m: Modifiers, warp: &mut Warp<'_>, f: impl Fn(f64, f64, f64) -> f64) -> bool {
    let input = |bits: u64| widen(format, if m.ftz { format.flush(bits) } else { bits });
    let one = |a: u64, b: u64, c: u64| output(format, &m, f(input(a), input(b), input(c)));
    if packed {
        warp.map3(|a, b, c| one(low(a), low(b), low(c)) | one(high(a), high(b), high(c)) << 16)
    } else {
        warp.map3(one)
    }
}

/// The value of a number.
#[inline(always)]
fn widen(format: Format, bits: u64) -> f64 {
    let value = if format == F16 { f16_to_f32(bits as u16) } else { f32::from_bits((bits as u32) << 16) };
    value.into()
}

/// A value rounded to nearest.
#[inline(always)]
fn narrow(format: Format, x: f64) -> u64 {
    let x = f64_to_odd_f32(x);
    u64::from(if format == F16 { f32_to_f16(x) } else { f32_to_bf16(x) })
}

/// The result rounded, flushed, and clamped: `.sat` to 0..1 with NaN as 0, `.relu` to no less than +0 with NaN as it is.
#[inline(always)]
fn output(format: Format, m: &Modifiers, x: f64) -> u64 {
    let bits = if m.ftz { format.narrow_flushed(x, Rounding::Rn) } else { narrow(format, x) };
    let is_negative = bits & format.sign() != 0;
    if m.sat {
        // Among bits of positive numbers the order is that of the numbers.
        return if format.is_nan(bits) || is_negative { 0 } else { bits.min(narrow(format, 1.0)) };
    }
    if m.relu && is_negative { 0 } else { bits }
}
