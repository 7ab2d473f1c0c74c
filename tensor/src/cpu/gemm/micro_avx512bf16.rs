//! 14 x 32 in AVX-512 BF16: 28 accumulators, two registers of B, one broadcast of A; two steps along k an instruction.

use crate::cpu::fetch;
use std::arch::x86_64::*;

use half::bf16;

/// Rows of a tile.
pub(super) const MR: usize = 14;
/// Columns of a tile.
pub(super) const NR: usize = 32;
/// Steps along k that lie together in a row of packed A.
pub(super) const GROUP: usize = 2;

/// See [`super::kernel::Tile`]. A is packed as `[k / 2][14 rows][2]`, B as `[k / 2][32 columns][2]`.
///
/// # Safety
/// As stated there, with AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn tile(
    k: usize,
    alpha: f32,
    add: bool,
    [a, b]: [*const bf16; 2],
    _: Option<[*const bf16; 2]>,
    c: *mut f32,
    ldc: usize,
) {
    let mut acc = [[_mm512_setzero_ps(); 2]; MR];
    (0..MR).for_each(|i| fetch(c.wrapping_add(i * ldc)));
    for kk in (0..k).step_by(2) {
        // SAFETY: kk < k, and k is even, so MR pairs of A and NR of B are valid there (the caller's).
        unsafe {
            let (a, b) = (a.add(kk * MR).cast::<i32>(), b.add(kk * NR).cast::<i32>());
            let (b0, b1) = (pairs(_mm512_loadu_si512(b.cast())), pairs(_mm512_loadu_si512(b.add(16).cast())));
            for (i, [x0, x1]) in acc.iter_mut().enumerate() {
                let a = pairs(_mm512_set1_epi32(a.add(i).read_unaligned()));
                *x0 = _mm512_dpbf16_ps(*x0, a, b0);
                *x1 = _mm512_dpbf16_ps(*x1, a, b1);
            }
        }
    }
    let alpha = _mm512_set1_ps(alpha);
    for (i, row) in acc.into_iter().enumerate() {
        for (j, x) in row.into_iter().enumerate() {
            // SAFETY: row i < MR, columns 16 j .. 16 j + 16 <= NR of C are valid (the caller's).
            unsafe {
                let c = c.add(i * ldc + 16 * j);
                let y = if add { _mm512_fmadd_ps(alpha, x, _mm512_loadu_ps(c)) } else { _mm512_mul_ps(alpha, x) };
                _mm512_storeu_ps(c, y);
            }
        }
    }
}

/// The same bits as 16 pairs of bf16.
#[inline(always)]
fn pairs(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes that take any bits.
    unsafe { std::mem::transmute(x) }
}
