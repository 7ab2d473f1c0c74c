//! 32 x 32 in AMX: four tiles of sums, two of A, two of B; 32 steps along k an instruction.

use std::arch::asm;
use std::arch::x86_64::*;

use half::bf16;

use crate::cpu::amx::{ROWS, STEPS};

/// Rows of a tile of C: two of the registers.
pub(super) const MR: usize = 2 * ROWS;
/// Columns of a tile of C.
pub(super) const NR: usize = 2 * ROWS;
/// Steps along k that lie together in a row of packed A.
pub(super) const GROUP: usize = STEPS;
/// Steps in which one line of each operand is fetched ahead: two in a round of 32.
pub(super) const STEPS_A_LINE: usize = STEPS / 2;

/// See [`super::kernel::Tile`]. A is packed as `[k / 32][32 rows][32]`, B as `[k / 2][32 columns][2]`.
///
/// # Safety
/// As stated there, with AMX for bf16 and AVX-512, and between [`crate::cpu::amx::enter`] and `leave`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn tile(
    k: usize,
    alpha: f32,
    add: bool,
    [a, b]: [*const bf16; 2],
    ahead: Option<[*const bf16; 2]>,
    c: *mut f32,
    ldc: usize,
) {
    // SAFETY: the caller's, for all of this function: `k` steps of A and of B are valid, and MR rows of NR floats of C.
    unsafe {
        // With nothing to fetch, what is there already: 3% of the small products of attention, and no second loop.
        let ahead = ahead.unwrap_or([a, b]);
        if alpha == 1.0 {
            return multiply(k, add, [a, b], ahead, c, ldc);
        }
        let mut product = Block([0.0; MR * NR]);
        multiply(k, false, [a, b], ahead, product.0.as_mut_ptr(), NR);
        let alpha = _mm512_set1_ps(alpha);
        for (i, row) in product.0.chunks_exact(NR).enumerate() {
            for j in [0, 16] {
                let (x, c) = (_mm512_loadu_ps(row[j..].as_ptr()), c.add(i * ldc + j));
                let y = if add { _mm512_fmadd_ps(alpha, x, _mm512_loadu_ps(c)) } else { _mm512_mul_ps(alpha, x) };
                _mm512_storeu_ps(c, y);
            }
        }
    }
}

#[repr(align(64))]
struct Block([f32; MR * NR]);

/// C [32, 32] = A B, or C += that if `add`. Tiles 0 to 3 are the quarters of C, 4 and 5 those of A, 6 and 7 of B. A streams past from
/// L2 while a strip of B stays in L1; `tileloaddt1` says so, and A's lines do not push the strip out.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn multiply(
    k: usize,
    add: bool,
    [a, b]: [*const bf16; 2],
    [next_a, next_b]: [*const bf16; 2],
    c: *mut f32,
    ldc: usize,
) {
    debug_assert!(k > 0 && k.is_multiple_of(STEPS));
    // SAFETY: tiles are set up (the caller's). Each round reads 2 x 1 KiB of A and of B, and there are k / 32 (the caller's): a load of
    // a tile of B takes 64 bytes of every 128, one half of the columns of 16 pairs of steps. 32 rows of 32 floats from `c` on are read
    // if they are added to, and written (the caller's). A prefetch reads nothing.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jz 3f",
            "tileloadd tmm0, [{c} + {row_of_c}]",
            "tileloadd tmm1, [{c} + {row_of_c} + 64]",
            "tileloadd tmm2, [{bottom} + {row_of_c}]",
            "tileloadd tmm3, [{bottom} + {row_of_c} + 64]",
            "jmp 2f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloaddt1 tmm4, [{a} + {row}]",
            "tileloadd tmm6, [{b} + {pair}]",
            "prefetcht1 [{next_a}]",
            "prefetcht1 [{next_a} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {pair} + 64]",
            "prefetcht1 [{next_b}]",
            "prefetcht1 [{next_b} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloaddt1 tmm5, [{a} + {row} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "add {next_a}, 128",
            "add {next_b}, 128",
            "dec {rounds}",
            "jnz 2b",
            "tilestored [{c} + {row_of_c}], tmm0",
            "tilestored [{c} + {row_of_c} + 64], tmm1",
            "tilestored [{bottom} + {row_of_c}], tmm2",
            "tilestored [{bottom} + {row_of_c} + 64], tmm3",
            add = in(reg) u32::from(add),
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            next_a = inout(reg) next_a => _,
            next_b = inout(reg) next_b => _,
            c = in(reg) c,
            bottom = in(reg) c.add(ROWS * ldc),
            row_of_c = in(reg) 4 * ldc,
            rounds = inout(reg) k / STEPS => _,
            row = in(reg) 64usize,
            pair = in(reg) 128usize,
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}
