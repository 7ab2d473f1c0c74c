//! The values of scalar instructions, 32 lanes at a time.

use crate::program::{Alu, AtomicOp, Compare, Type};

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
///
/// False, and nothing written, where there is no such instruction: see [`supports`].
pub fn eval(alu: &Alu, operands: Operands<'_>, reg_bytes: u32, mask: u32, carry: &mut u32, out: &mut Lanes) -> bool {
    let _ = (alu, operands, reg_bytes, mask, carry, out);
    todo!()
}

/// Whether [`eval`] knows this operation with this type and these modifiers: what the decoder asks, so that the executor
/// need not look at what `eval` returns.
#[must_use]
pub fn supports(alu: &Alu) -> bool {
    let none = [0; 32];
    eval(alu, Operands { a: &none, b: &none, c: &none, d: &none }, 8, 0, &mut 0, &mut [0; 32])
}

/// The comparison of `set` and `setp` for the lanes of `mask`: a bit a lane. For `f16x2` and `bf16x2`, the lower half's bits
/// and the upper half's bits; the second is 0 for other types.
#[must_use]
pub fn compare(compare: Compare, ty: Type, ftz: bool, a: &Lanes, b: &Lanes, mask: u32) -> (u32, u32) {
    let _ = (compare, ty, ftz, a, b, mask);
    todo!()
}

/// Whether `set` and `setp` have this comparison for this type.
#[must_use]
pub fn compare_supports(compare: Compare, ty: Type) -> bool {
    let _ = (compare, ty);
    todo!()
}

/// The new value of an atomic on `old` (bits of `ty`), with operands `b` and, for `cas`, `c`. `ftz`: an f32 addition flushes
/// subnormal inputs and results to zero of their sign, as global memory does and shared memory does not. `None` where there
/// is no such operation.
#[must_use]
pub fn atomic(op: AtomicOp, ty: Type, ftz: bool, old: u64, b: u64, c: u64) -> Option<u64> {
    let _ = (op, ty, ftz, old, b, c);
    todo!()
}
