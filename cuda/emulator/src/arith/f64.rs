//! f64 arithmetic.
//!
//! Rounding to nearest is the CPU's own (`mul_add` and `sqrt` are specified by Rust to the bit); the other modes are
//! [`super::soft64`]. A NaN operand gives that NaN, quiet, the first one if there are more; an invalid operation gives
//! [`Format::nan`](super::format::Format::nan).

use super::format::F64;
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
        AluOp::Fma if near => ternary(warp, f64::mul_add),
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

/// `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64`: they read and write the upper 32 bits only, flush subnormals, and know
/// one NaN, whose payload the ISA does not name.
fn gross(a: u64, f: impl Fn(f64) -> f64) -> u64 {
    const UPPER: u64 = !0xffff_ffff;
    let x = f(f64::from_bits(F64.flush(a & UPPER)));
    // A NaN whose payload lies in the lower bits is one still.
    if x.is_nan() || F64.is_nan(a) { 0x7fff_ffff_0000_0000 } else { F64.flush(x.to_bits() & UPPER) }
}
