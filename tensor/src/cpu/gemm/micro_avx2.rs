//! 6 x 16 in AVX2 and FMA: 12 accumulators, two registers of B, one broadcast of A.

use crate::cpu::fetch;
use std::arch::x86_64::*;

/// Rows of a tile.
pub(super) const MR: usize = 6;
/// Columns of a tile.
pub(super) const NR: usize = 16;

/// See [`super::kernel::Tile`].
///
/// # Safety
/// As stated there, with AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile(
    k: usize,
    alpha: f32,
    add: bool,
    [a, b]: [*const f32; 2],
    _: Option<[*const f32; 2]>,
    c: *mut f32,
    ldc: usize,
) {
    let mut acc = [[_mm256_setzero_ps(); 2]; MR];
    (0..MR).for_each(|i| fetch(c.wrapping_add(i * ldc)));
    for kk in 0..k {
        // SAFETY: kk < k, so MR floats of A and NR of B are valid there (the caller's).
        unsafe {
            let (a, b) = (a.add(kk * MR), b.add(kk * NR));
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for (i, [x0, x1]) in acc.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*a.add(i));
                *x0 = _mm256_fmadd_ps(a, b0, *x0);
                *x1 = _mm256_fmadd_ps(a, b1, *x1);
            }
        }
    }
    let alpha = _mm256_set1_ps(alpha);
    for (i, row) in acc.into_iter().enumerate() {
        for (j, x) in row.into_iter().enumerate() {
            // SAFETY: row i < MR, columns 8 j .. 8 j + 8 <= NR of C are valid (the caller's).
            unsafe {
                let c = c.add(i * ldc + 8 * j);
                let y = if add { _mm256_fmadd_ps(alpha, x, _mm256_loadu_ps(c)) } else { _mm256_mul_ps(alpha, x) };
                _mm256_storeu_ps(c, y);
            }
        }
    }
}
