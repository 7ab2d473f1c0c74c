//! f64 arithmetic.
//!
//! Rounding to nearest is the CPU's own (`sqrt` and [`fused`] are specified to the bit); the other modes are
//! [`super::soft64`]. A NaN operand gives that NaN, quiet, the first one if there are more; an invalid operation gives
//! [`Format::nan`](super::format::Format::nan).

use super::format::{F64, sum, two_sum};
use super::lanes::Warp;
use super::soft64;
use crate::program::{Alu, AluOp, Rounding};

/// An f64 instruction but for comparisons, selections and conversions.
pub(super) fn eval(alu: &Alu, warp: &mut Warp<'_>) -> bool {
    let rounding = alu.modifiers.rounding;
    let near = rounding == Rounding::Rn;
    match alu.op {
        AluOp::Add if near => binary(warp, |a, b| a + b),
        AluOp::Sub if near => binary(warp, |a, b| a - b),
        AluOp::Mul if near => binary(warp, |a, b| a * b),
        AluOp::Div if near => binary(warp, |a, b| a / b),
        AluOp::Fma if near => ternary(warp, fused),
        AluOp::Sqrt if near => unary(warp, f64::sqrt),
        AluOp::Rcp if alu.modifiers.approx => warp.map1(|a| gross(a, |a| 1.0 / a)),
        AluOp::Rsqrt if alu.modifiers.ftz => warp.map1(|a| gross(a, |a| 1.0 / a.sqrt())),
        AluOp::Rsqrt => unary(warp, |a| 1.0 / a.sqrt()),
        AluOp::Rcp if near => unary(warp, |a| 1.0 / a),
        AluOp::Add => binary(warp, |a, b| soft64::add(a, b, rounding)),
        AluOp::Sub => binary(warp, |a, b| soft64::add(a, -b, rounding)),
        AluOp::Mul => binary(warp, |a, b| soft64::mul(a, b, rounding)),
        AluOp::Div => binary(warp, |a, b| soft64::div(a, b, rounding)),
        AluOp::Fma => ternary(warp, |a, b, c| soft64::fma(a, b, c, rounding)),
        AluOp::Sqrt => unary(warp, |a| soft64::sqrt(a, rounding)),
        AluOp::Rcp => unary(warp, |a| soft64::div(1.0, a, rounding)),
        _ => false,
    }
}

/// The result, or the NaN of these operands. (A CPU's own choice of NaN differs from machine to machine.)
#[inline(always)]
pub(super) fn result<const N: usize>(x: f64, operands: [u64; N]) -> u64 {
    if !x.is_nan() {
        return x.to_bits();
    }
    const QUIET: u64 = 1 << 51;
    operands.into_iter().find(|bits| F64.is_nan(*bits)).map_or(F64.nan(), |bits| bits | QUIET)
}

#[inline(always)]
fn unary(warp: &mut Warp<'_>, f: impl Fn(f64) -> f64) -> bool {
    warp.map1(|a| result(f(f64::from_bits(a)), [a]))
}

#[inline(always)]
fn binary(warp: &mut Warp<'_>, f: impl Fn(f64, f64) -> f64) -> bool {
    warp.map2(|a, b| result(f(f64::from_bits(a), f64::from_bits(b)), [a, b]))
}

#[inline(always)]
fn ternary(warp: &mut Warp<'_>, f: impl Fn(f64, f64, f64) -> f64) -> bool {
    warp.map3(|a, b, c| result(f(f64::from_bits(a), f64::from_bits(b), f64::from_bits(c)), [a, b, c]))
}

/// a * b + c rounded to nearest once: `mul_add`, which is slow where the CPU's baseline has no such instruction, and so is
/// left to numbers that are very large or very small.
///
/// The method is Boldo and Melquiond's ("Emulation of FMA and correctly rounded sums", 2008): the product and two sums are
/// split into what rounding keeps and its exact error; of the three terms that remain the smaller two are added rounding to
/// odd, so that the last addition rounds as if it saw the exact value. In the range asked for nothing over- or underflows.
#[inline(always)]
pub(crate) fn fused(a: f64, b: f64, c: f64) -> f64 {
    const RANGE: std::ops::Range<f64> = 1e-120..1e120;
    if ![a, b, c].iter().all(|x| RANGE.contains(&x.abs())) {
        return a.mul_add(b, c);
    }
    let (product, product_error) = two_product(a, b);
    let (middle, middle_error) = two_sum(c, product_error);
    let (upper, upper_error) = two_sum(product, middle);
    upper + sum(middle_error, upper_error, Rounding::Rn)
}

/// a * b rounded, and its error: Dekker's, by factors cut into halves of 26 bits.
#[inline(always)]
fn two_product(a: f64, b: f64) -> (f64, f64) {
    let cut = |x: f64| {
        let scaled = x * ((1 << 27) + 1) as f64;
        let upper = scaled - (scaled - x);
        (upper, x - upper)
    };
    let product = a * b;
    let ((a_upper, a_lower), (b_upper, b_lower)) = (cut(a), cut(b));
    let rest = a_upper * b_upper - product + a_upper * b_lower + a_lower * b_upper;
    (product, rest + a_lower * b_lower)
}

/// `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64`: they read and write the upper 32 bits only, flush subnormals, and know
/// one NaN, whose payload the ISA does not name.
fn gross(a: u64, f: impl Fn(f64) -> f64) -> u64 {
    const UPPER: u64 = !0xffff_ffff;
    let x = f(f64::from_bits(F64.flush(a & UPPER)));
    // A NaN whose payload lies in the lower bits is one still.
    if x.is_nan() || F64.is_nan(a) { 0x7fff_ffff_0000_0000 } else { F64.flush(x.to_bits() & UPPER) }
}
