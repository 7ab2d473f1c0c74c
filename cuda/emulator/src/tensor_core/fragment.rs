//! Where each element of a matrix lies: the fragment layouts of the PTX ISA.
//!
//! With lane = 4 g + t, all shapes but one follow one rule: a register is a tile of 8 rows and 4 e columns, e = 32 bits over
//! the element's (1 for f64), and lane (g, t) holds columns t e .. of row g. A's tiles lie row under row, then column by
//! column; B's are turned over, so that g is the column. Of C and D with one element a register, two registers make a
//! tile of 8 x 8: columns 2 t and 2 t + 1.
//!
//! `m8n8k4` of f16 is four products in one, each of eight lanes: the quads i and i + 4.

use crate::arith::Lanes;
use crate::program::{Mma, Type};

/// A matrix of an `mma`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    A,
    B,
    C,
    D,
}

/// A row and a column of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) column: usize,
}

/// Elements in a register.
fn packed(ty: Type) -> usize {
    (4 / ty.bytes().min(4)) as usize
}

/// `m8n8k4` of f16.
#[inline(always)]
fn is_quad_pairs(mma: &Mma) -> bool {
    mma.a == Type::F16 && mma.m == 8
}

/// How many products the warp makes.
#[inline(always)]
pub(crate) fn groups(mma: &Mma) -> usize {
    if is_quad_pairs(mma) { 4 } else { 1 }
}

/// Calls `visit(lane, part, place)` for each element of a register that holds `E` of them.
#[inline(always)]
pub(super) fn each<const E: usize>(
    mma: &Mma,
    operand: Operand,
    group: usize,
    register: usize,
    mut visit: impl FnMut(usize, usize, Place),
) {
    if is_quad_pairs(mma) {
        for lane in (0..32).filter(|lane| lane / 4 % 4 == group) {
            for part in 0..E {
                visit(lane, part, quad_pair_place(mma, operand, lane, register * E + part));
            }
        }
        return;
    }
    // The first row and column of the register's tile, and the step from one lane of a row to the next.
    let (row, column, step) = match operand {
        Operand::A if mma.m == 16 => (8 * (register % 2), 4 * E * (register / 2), E),
        Operand::A | Operand::B => (0, 4 * E * register, E),
        Operand::C | Operand::D if E == 1 => (8 * (register / 2), register % 2, 2),
        Operand::C | Operand::D => (8 * register, 0, E),
    };
    for lane in 0..32 {
        for part in 0..E {
            let (down, right) = (row + lane / 4, column + lane % 4 * step + part);
            let place = if operand == Operand::B {
                Place { row: right, column: down }
            } else {
                Place { row: down, column: right }
            };
            visit(lane, part, place);
        }
    }
}

/// The layouts of `m8n8k4`: in each product, lanes of the upper half of the warp have what is 4 further.
fn quad_pair_place(mma: &Mma, operand: Operand, lane: usize, i: usize) -> Place {
    let (t, upper) = (lane % 4, if lane < 16 { 0 } else { 4 });
    match operand {
        Operand::A if mma.a_col => Place { row: i + upper, column: t },
        Operand::A => Place { row: t + upper, column: i },
        Operand::B if mma.b_row => Place { row: t, column: i + upper },
        Operand::B => Place { row: i, column: t + upper },
        Operand::C | Operand::D => {
            let ty = if operand == Operand::C { mma.c } else { mma.d };
            if ty == Type::F16 {
                Place { row: t + upper, column: i }
            } else {
                Place { row: (t & 1) + (i & 2) + upper, column: (i & 4) + (t & 2) + (i & 1) }
            }
        }
    }
}

/// How many registers each operand of `mma` has: (a, b, c, d); `None` for a shape or types that PTX does not have (or that
/// need more than sm_90).
#[must_use]
pub fn fragment_registers(mma: &Mma) -> Option<[usize; 4]> {
    use Type::{Bf16, E4m3, E5m2, F16, F32, F64, S8, S32, Tf32, U8};
    let Mma { m, n, k, a, b, c, d, satfinite, a_col, b_row } = *mma;
    let shape = (m, n, k);
    let exists = match (a, b, c, d) {
        // A result may be wider than the accumulator, not narrower.
        (F16, F16, F16, F16 | F32) | (F16, F16, F32, F32) if shape == (8, 8, 4) => true,
        (F16, F16, F16, F16) | (F16, F16, F32, F32) | (Bf16, Bf16, F32, F32) => {
            matches!(shape, (16, 8, 8 | 16))
        }
        (Tf32, Tf32, F32, F32) => matches!(shape, (16, 8, 4 | 8)),
        (F64, F64, F64, F64) => matches!(shape, (8, 8, 4) | (16, 8, 4 | 8 | 16)),
        (S8 | U8, S8 | U8, S32, S32) => matches!(shape, (8, 8, 16) | (16, 8, 16 | 32)),
        (E4m3 | E5m2, E4m3 | E5m2, F32, F32) | (E4m3 | E5m2, E4m3 | E5m2, F16, F16) => {
            matches!(shape, (16, 8, 16 | 32))
        }
        _ => false,
    };
    if !exists || satfinite && c != S32 || (a_col || b_row) && !is_quad_pairs(mma) {
        return None;
    }
    let lanes = 32 / groups(mma);
    let registers = |rows: u8, columns: u8, ty| usize::from(rows) * usize::from(columns) / lanes / packed(ty);
    Some([registers(m, k, a), registers(k, n, b), registers(m, n, c), registers(m, n, d)])
}

/// One 8x8 matrix of 16-bit values, row by row, spread over a warp as `ldmatrix` does (two values a lane), transposed or not.
#[must_use]
pub fn spread(rows: &[[u16; 8]; 8], transpose: bool) -> Lanes {
    let at = |row: usize, column: usize| u64::from(if transpose { rows[column][row] } else { rows[row][column] });
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        at(row, column) | at(row, column + 1) << 16
    })
}

/// The reverse of [`spread`].
#[must_use]
pub fn gather(lanes: &Lanes, transpose: bool) -> [[u16; 8]; 8] {
    let at = |row: usize, column: usize| (lanes[row * 4 + column / 2] >> (column % 2 * 16)) as u16;
    std::array::from_fn(|row| std::array::from_fn(|column| if transpose { at(column, row) } else { at(row, column) }))
}
