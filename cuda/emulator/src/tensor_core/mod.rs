//! `mma.sync` and the matrix layouts of a warp.

use crate::arith::Lanes;
use crate::program::Mma;

/// D = A B + C over the fragments of a warp: one [`Lanes`] a register of each operand. Products are exact, and are summed in
/// one fixed order, documented here.
pub fn mma(mma: &Mma, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
    let _ = (mma, a, b, c, d);
    todo!()
}

/// How many registers each operand of `mma` has: (a, b, c, d); `None` for a shape or types that PTX does not have.
#[must_use]
pub fn fragment_registers(mma: &Mma) -> Option<[usize; 4]> {
    let _ = mma;
    todo!()
}

/// One 8x8 matrix of 16-bit values, row by row, spread over a warp as `ldmatrix` does (two values a lane), transposed or not.
#[must_use]
pub fn spread(rows: &[[u16; 8]; 8], transpose: bool) -> Lanes {
    let _ = (rows, transpose);
    todo!()
}

/// The reverse of [`spread`].
#[must_use]
pub fn gather(lanes: &Lanes, transpose: bool) -> [[u16; 8]; 8] {
    let _ = (lanes, transpose);
    todo!()
}
