//! Which instructions there are.

use super::{Operands, eval};
use crate::program::Alu;

/// Whether [`eval`] knows this operation with this type and these modifiers: what the decoder asks, so that the executor
/// need not look at what `eval` returns.
#[must_use]
pub fn supports(alu: &Alu) -> bool {
    let none = [0; 32];
    eval(alu, Operands { a: &none, b: &none, c: &none, d: &none }, 8, 0, &mut 0, &mut [0; 32])
}
