//! Tiles of f32 in AVX-512: MR rows of V registers of 16 columns, each of which has an accumulator; V registers of B and one broadcast
//! of A.

use super::kernel::{LINE, STEPS_A_LINE};
use crate::cpu::fetch;
use std::arch::x86_64::*;

/// Rows of the usual tile, of two registers: 28 accumulators.
pub(super) const MR: usize = 14;
/// Rows of the tile of one register, for products of at most 16 columns.
pub(super) const TALL: usize = 28;
/// Rows of the tile of three registers, for products of few rows: 24 accumulators.
pub(super) const FLAT: usize = 8;
/// Columns of a register.
pub(super) const LANES: usize = 16;

/// See [`super::kernel::Tile`], with MR rows and 16 V columns.
///
/// # Safety
/// As stated there, with AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn tile<const MR: usize, const V: usize>(
    k: usize,
    alpha: f32,
    add: bool,
    [a, b]: [*const f32; 2],
    ahead: Option<[*const f32; 2]>,
    c: *mut f32,
    ldc: usize,
) {
    let mut acc = [[_mm512_setzero_ps(); V]; MR];
    (0..MR).for_each(|i| fetch(c.wrapping_add(i * ldc)));
    let mut step = |kk: usize| {
        // SAFETY: kk < k, so MR floats of A and 16 V of B are valid there (the caller's).
        unsafe {
            let (a, b) = (a.add(kk * MR), b.add(kk * LANES * V));
            let mut columns = [_mm512_setzero_ps(); V];
            for (j, columns) in columns.iter_mut().enumerate() {
                *columns = _mm512_loadu_ps(b.add(LANES * j));
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(i));
                for (x, columns) in row.iter_mut().zip(columns) {
                    *x = _mm512_fmadd_ps(a, columns, *x);
                }
            }
        }
    };
    let mut done = 0;
    if let Some([a, b]) = ahead.map(|ahead| ahead.map(|x| x.cast::<i8>())) {
        for line in 0..k / STEPS_A_LINE {
            _mm_prefetch::<_MM_HINT_T1>(a.wrapping_add(line * LINE));
            _mm_prefetch::<_MM_HINT_T1>(b.wrapping_add(line * LINE));
            (done..done + STEPS_A_LINE).for_each(&mut step);
            done += STEPS_A_LINE;
        }
    }
    (done..k).for_each(step);
    let alpha = _mm512_set1_ps(alpha);
    for (i, row) in acc.into_iter().enumerate() {
        for (j, x) in row.into_iter().enumerate() {
            // SAFETY: row i < MR, columns 16 j .. 16 j + 16 of 16 V of C are valid (the caller's).
            unsafe {
                let c = c.add(i * ldc + LANES * j);
                let y = if add { _mm512_fmadd_ps(alpha, x, _mm512_loadu_ps(c)) } else { _mm512_mul_ps(alpha, x) };
                _mm512_storeu_ps(c, y);
            }
        }
    }
}
