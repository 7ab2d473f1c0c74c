//! The values of scalar instructions, 32 lanes at a time.

use crate::program::{Alu, Compare, Type};

/// One register of a warp: a value for each lane, zero-extended to 64 bits.
pub type Lanes = [u64; 32];

/// The operands of an instruction for a warp.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// First, second, third, fourth operand in the order of the text.
    pub a: &'a Lanes,
    /// See `a`.
    pub b: &'a Lanes,
    /// See `a`.
    pub c: &'a Lanes,
    /// See `a`.
    pub d: &'a Lanes,
}

/// Computes `alu` for the lanes whose bit in `mask` is set, into `out`; other lanes of `out` keep what they hold. `carry`
/// has the carry flag of each lane as a bit, read and written as the modifiers say. Results are zero-extended from the
/// width of the result's type, but for `cvt` to a signed integer, which is sign-extended to `reg_bytes`.
pub fn eval(alu: &Alu, operands: Operands<'_>, reg_bytes: u32, mask: u32, carry: &mut u32, out: &mut Lanes) {
    let _ = (alu, operands, reg_bytes, mask, carry, out);
    todo!()
}

/// The comparison of `set` and `setp` for the lanes of `mask`: a bit a lane. For `f16x2` and `bf16x2`, the lower half's bits
/// and the upper half's bits.
#[must_use]
pub fn compare(compare: Compare, ty: Type, ftz: bool, a: &Lanes, b: &Lanes, mask: u32) -> (u32, u32) {
    let _ = (compare, ty, ftz, a, b, mask);
    todo!()
}

/// The new value of an atomic on `old` (bits of `ty`), with operands `b` and, for `cas`, `c`.
#[must_use]
pub fn atomic(op: crate::program::AtomicOp, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let _ = (op, ty, old, b, c);
    todo!()
}
