//! Operations on floats that look at bits only: signs, classes, minimum and maximum. One code for every format.
//!
//! NaN results are the format's own, but for f64, which keeps payloads: `abs` and `neg` touch the sign only, `min` and `max`
//! of two NaN give the second, quiet (what ptxas makes of them does so).

use super::format::{BF16, F16, F32, F64, Format};
use super::lanes::{Warp, high, low};
use crate::program::{Alu, AluOp, Modifiers, TestP, Type};

/// The format of a float type, and whether a register holds two.
pub(super) fn format_of(ty: Type) -> Option<(Format, bool)> {
    match ty {
        Type::F16 => Some((F16, false)),
        Type::F16x2 => Some((F16, true)),
        Type::Bf16 => Some((BF16, false)),
        Type::Bf16x2 => Some((BF16, true)),
        Type::F32 => Some((F32, false)),
        Type::F64 => Some((F64, false)),
        _ => None,
    }
}

/// `abs`, `neg`, `min`, `max`, `copysign` and `testp` of floats.
pub(super) fn eval(alu: &Alu, warp: &mut Warp<'_>) -> bool {
    match (alu.ty, alu.op) {
        (Type::F32, AluOp::Min) if alu.modifiers == Modifiers::default() => return warp.map2(plain_extreme::<false>),
        (Type::F32, AluOp::Max) if alu.modifiers == Modifiers::default() => return warp.map2(plain_extreme::<true>),
        _ => {}
    }
    match alu.ty {
        Type::F16 => typed(F16, false, alu, warp),
        Type::F16x2 => typed(F16, true, alu, warp),
        Type::Bf16 => typed(BF16, false, alu, warp),
        Type::Bf16x2 => typed(BF16, true, alu, warp),
        Type::F32 => typed(F32, false, alu, warp),
        Type::F64 => typed(F64, false, alu, warp),
        _ => false,
    }
}

#[inline(always)]
fn typed(format: Format, packed: bool, alu: &Alu, warp: &mut Warp<'_>) -> bool {
    let m = alu.modifiers;
    let sign = format.sign();
    match alu.op {
        AluOp::Abs => map3(format, packed, m, warp, |a, _, _| result(format, a, a & !sign)),
        AluOp::Neg => map3(format, packed, m, warp, |a, _, _| result(format, a, a ^ sign)),
        AluOp::Min => map3(format, packed, m, warp, |a, b, _| extreme::<false>(format, &m, a, b)),
        AluOp::Max => map3(format, packed, m, warp, |a, b, _| extreme::<true>(format, &m, a, b)),
        AluOp::Min3 => {
            map3(format, packed, m, warp, |a, b, c| extreme::<false>(format, &m, extreme::<false>(format, &m, a, b), c))
        }
        AluOp::Max3 => {
            map3(format, packed, m, warp, |a, b, c| extreme::<true>(format, &m, extreme::<true>(format, &m, a, b), c))
        }
        AluOp::Copysign if !packed => warp.map2(|a, b| a & sign | b & (sign - 1)),
        AluOp::Testp(test) if !packed => warp.map1(|a| u64::from(is(format, test, a))),
        _ => false,
    }
}

#[inline(always)]
fn map3(format: Format, packed: bool, m: Modifiers, warp: &mut Warp<'_>, f: impl Fn(u64, u64, u64) -> u64) -> bool {
    let input = |bits: u64| if m.ftz { format.flush(bits) } else { bits };
    let one = |a: u64, b: u64, c: u64| f(input(a), input(b), input(c));
    if packed {
        warp.map3(|a, b, c| one(low(a), low(b), low(c)) | one(high(a), high(b), high(c)) << 16)
    } else {
        warp.map3(one)
    }
}

/// `bits`, unless the operand is a NaN of a format that has one NaN.
#[inline(always)]
fn result(format: Format, operand: u64, bits: u64) -> u64 {
    if format != F64 && format.is_nan(operand) { format.nan() } else { bits }
}

/// The smaller or larger, with -0 below +0; the other where one is NaN, unless `.NaN` asks for NaN. With `.xorsign.abs`, of
/// the magnitudes, with the product's sign.
#[inline(always)]
pub(super) fn extreme<const MAX: bool>(format: Format, m: &Modifiers, a: u64, b: u64) -> u64 {
    let sign = format.sign();
    let (x, y) = if m.xorsign_abs { (a & !sign, b & !sign) } else { (a, b) };
    let (x_nan, y_nan) = (format.is_nan(x), format.is_nan(y));
    if x_nan && y_nan || m.nan && (x_nan || y_nan) {
        return if format == F64 { y | 1 << (F64.fraction - 1) } else { format.nan() };
    }
    let x_wins = (key(format, x) < key(format, y)) != MAX;
    let chosen = if y_nan || !x_nan && x_wins { x } else { y };
    if m.xorsign_abs { chosen | (a ^ b) & sign } else { chosen }
}

/// [`extreme`] of f32 without modifiers, by the CPU's comparisons.
#[inline(always)]
fn plain_extreme<const MAX: bool>(a: u64, b: u64) -> u64 {
    let [x, y] = [a, b].map(|bits| f32::from_bits(bits as u32));
    // Equal numbers differ at most in the sign of zero.
    let equal = if MAX { a & b } else { a | b };
    let x_wins = y.is_nan() || if MAX { x > y } else { x < y };
    let chosen = if x == y {
        equal
    } else if x_wins {
        a
    } else {
        b
    };
    if x.is_nan() && y.is_nan() { F32.nan() } else { chosen }
}

/// An integer in the order of the numbers, with -0 below +0.
#[inline(always)]
fn key(format: Format, bits: u64) -> i64 {
    let magnitude = (bits & (format.sign() - 1)) as i64;
    if bits & format.sign() != 0 { !magnitude } else { magnitude }
}

fn is(format: Format, test: TestP, bits: u64) -> bool {
    let magnitude = bits & (format.sign() - 1);
    let least_normal = 1 << format.fraction;
    match test {
        TestP::Finite => magnitude < format.infinity(),
        TestP::Infinite => magnitude == format.infinity(),
        TestP::Number => magnitude <= format.infinity(),
        TestP::NotANumber => magnitude > format.infinity(),
        TestP::Normal => magnitude >= least_normal && magnitude < format.infinity(),
        TestP::Subnormal => magnitude != 0 && magnitude < least_normal,
    }
}
