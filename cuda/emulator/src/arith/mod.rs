//! The values of scalar instructions, 32 lanes at a time.
//!
//! What the ISA fixes is computed to the bit. What it leaves open is decided once, where it can be as ptxas's code has it:
//! - NaN results of f16, bf16 and f32 are 0x7fff, 0x7fff and 0x7fffffff. Those of f64 keep the payload of the first operand
//!   that is NaN, quiet; an invalid operation gives 0xfff8000000000000. A NaN as an integer is 0, but 1 << (bits - 1) from
//!   f64 or to 64 bits.
//! - `.ftz` flushes a result that is below the least normal number after rounding to full precision.
//! - Approximations are within the ISA's bounds, in truth nearly always the nearest number, and the same on every machine.
//! - Integer division by zero gives all ones, as quotient and as remainder; the least number by -1 gives itself and 0.

mod approx;
mod atomic;
mod bits;
mod compare;
mod convert;
mod f32;
pub(crate) mod f64;
pub(crate) mod format;
mod half;
mod int;
mod lanes;
mod sign;
mod soft64;
mod supports;

pub use atomic::atomic;
pub use compare::{compare, compare_supports};
pub use lanes::{Lanes, Operands};
pub use supports::supports;

use crate::program::{Alu, AluOp, Type};
use lanes::Warp;

/// Computes `alu` for the lanes whose bit in `mask` is set, into `out`; other lanes of `out` keep what they hold. `carry`
/// has the carry flag of each lane as a bit, read and written as the modifiers say. Results are zero-extended from the
/// width of the result's type, but for `cvt` to a signed integer, which is sign-extended to `reg_bytes`.
///
/// False, and nothing written, where there is no such operation of this type: see [`supports`].
pub fn eval(alu: &Alu, operands: Operands<'_>, reg_bytes: u32, mask: u32, carry: &mut u32, out: &mut Lanes) -> bool {
    let warp = &mut Warp { read: operands, mask, out };
    match alu.op {
        AluOp::Selp => compare::selp(alu, warp),
        AluOp::Slct { float_selector } => compare::slct(alu, float_selector, warp),
        AluOp::Set { compare, combine, to } => compare::set(alu, compare, combine, to, warp),
        AluOp::Cvt { to, integer_rounding } => convert::cvt(alu, to, integer_rounding, reg_bytes, warp),
        AluOp::CvtPack { to } => convert::pack(alu, to, warp),
        AluOp::Abs | AluOp::Neg | AluOp::Min | AluOp::Max | AluOp::Min3 | AluOp::Max3 if alu.ty.is_float() => {
            sign::eval(alu, warp)
        }
        AluOp::Copysign | AluOp::Testp(_) => sign::eval(alu, warp),
        _ if is_bitwise(alu) => bits::eval(alu, warp),
        _ => match alu.ty {
            Type::F32 => f32::eval(alu, warp),
            Type::F64 => f64::eval(alu, warp),
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 => half::eval(alu, warp),
            _ => int::eval(alu, warp, carry),
        },
    }
}

/// Whether the operation is one of [`bits`]: moves, logic, shifts, fields.
fn is_bitwise(alu: &Alu) -> bool {
    match alu.op {
        // A shift to the right by a type that says how.
        AluOp::Shr => !matches!(alu.ty, Type::U16 | Type::U32 | Type::U64 | Type::S16 | Type::S32 | Type::S64),
        AluOp::Mov
        | AluOp::And
        | AluOp::Or
        | AluOp::Xor
        | AluOp::Not
        | AluOp::Cnot
        | AluOp::Shl
        | AluOp::Popc
        | AluOp::Clz
        | AluOp::Brev
        | AluOp::Bfe
        | AluOp::Bfi
        | AluOp::Bfind { .. }
        | AluOp::Lop3 { .. }
        | AluOp::Fns
        | AluOp::Szext { .. }
        | AluOp::Bmsk { .. }
        | AluOp::ShfL { .. }
        | AluOp::ShfR { .. }
        | AluOp::Prmt(_)
        | AluOp::Dp4a { .. }
        | AluOp::Dp2a { .. } => true,
        _ => false,
    }
}
