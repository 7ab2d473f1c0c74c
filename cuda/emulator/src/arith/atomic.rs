//! The operations of `atom` and `red`.

use super::format::{BF16, F16, F32, Format, sum};
use super::lanes::{high, low, ones};
use crate::program::{AtomicOp, Rounding, Type};

/// The new value of an atomic on `old` (bits of `ty`), with operands `b` and, for `cas`, `c`. `ftz`: an f32 addition flushes
/// subnormal inputs and results to zero of their sign, as global memory does and shared memory does not. `None` where there
/// is no such operation.
#[must_use]
pub fn atomic(op: AtomicOp, ty: Type, ftz: bool, old: u64, b: u64, c: u64) -> Option<u64> {
    let is_word = matches!(ty.bytes(), 4 | 8) && !matches!(ty, Type::F16x2 | Type::Bf16x2);
    let all = ones(8 * ty.bytes().min(8));
    let (old, b, c) = (old & all, b & all, c & all);
    match op {
        AtomicOp::Exch if is_word => Some(b),
        AtomicOp::Cas if is_word || ty == Type::B16 => Some(if old == b { c } else { old }),
        AtomicOp::And if is_word => Some(old & b),
        AtomicOp::Or if is_word => Some(old | b),
        AtomicOp::Xor if is_word => Some(old ^ b),
        AtomicOp::Inc if ty == Type::U32 => Some(if old >= b { 0 } else { old + 1 }),
        AtomicOp::Dec if ty == Type::U32 => Some(if old == 0 || old > b { b } else { old - 1 }),
        AtomicOp::Add | AtomicOp::Min | AtomicOp::Max => match ty {
            Type::U32 | Type::U64 | Type::S32 | Type::S64 => Some(integer(op, ty, old, b) & all),
            Type::F64 if op == AtomicOp::Add => {
                let x = f64::from_bits(old) + f64::from_bits(b);
                Some(super::f64::result(x, [old, b]))
            }
            Type::F32 if op == AtomicOp::Add => {
                let flush = |bits: u64| if ftz { F32.flush(bits) } else { bits };
                Some(flush(float(F32, op, flush(old), flush(b))))
            }
            Type::F16 => Some(float(F16, op, old, b)),
            Type::Bf16 => Some(float(BF16, op, old, b)),
            Type::F16x2 => Some(float(F16, op, low(old), low(b)) | float(F16, op, high(old), high(b)) << 16),
            Type::Bf16x2 => Some(float(BF16, op, low(old), low(b)) | float(BF16, op, high(old), high(b)) << 16),
            _ => None,
        },
        _ => None,
    }
}

fn integer(op: AtomicOp, ty: Type, old: u64, b: u64) -> u64 {
    // Sign-extended, 32-bit numbers compare as 64-bit ones do.
    let extend = |x: u64| if ty == Type::S32 { i64::from(x as i32) } else { x as i64 };
    let less = if ty.is_signed() { extend(old) < extend(b) } else { old < b };
    match op {
        AtomicOp::Add => old.wrapping_add(b),
        AtomicOp::Min => {
            if less {
                old
            } else {
                b
            }
        }
        _ => {
            if less {
                b
            } else {
                old
            }
        }
    }
}

/// Rounded to nearest. Minimum and maximum are those of the instructions `min` and `max`: a number beats a NaN.
fn float(format: Format, op: AtomicOp, old: u64, b: u64) -> u64 {
    let m = &crate::program::Modifiers::default();
    match op {
        AtomicOp::Add => format.narrow(sum(format.widen(old), format.widen(b), Rounding::Rn), Rounding::Rn),
        AtomicOp::Min => super::sign::extreme::<false>(format, m, old, b),
        _ => super::sign::extreme::<true>(format, m, old, b),
    }
}
