//! Products in AMX tiles that a task sets up once: to set them up for each product, as [`Kernel::multiply`] does, costs as much as a
//! tenth of the pass, so small are they.
//!
//! [`Kernel::multiply`]: crate::cpu::gemm::Kernel::multiply

use crate::cpu::amx::{self, ROWS, STEPS};
use crate::cpu::gemm::Shape;
use crate::cpu::{Level, Simd};
use half::bf16;
use std::arch::asm;
use std::marker::PhantomData;

/// Rows and columns of a block of C: two by two tiles.
const BLOCK: usize = 2 * ROWS;

/// This thread's tiles, set up until this is dropped.
pub(super) struct Tiles {
    /// Not to be sent to another thread.
    here: PhantomData<*const ()>,
}

impl Tiles {
    /// Those of this thread, where the level has any.
    pub(super) fn hold(simd: Simd) -> Option<Self> {
        (simd.level() == Level::Amx).then(|| {
            // SAFETY: the level proves AMX.
            unsafe { amx::enter() };
            Tiles { here: PhantomData }
        })
    }

    /// C [m, n] = A B, or += that if `add`, of operands packed for the AMX kernel; m and n are whole panels and strips.
    pub(super) fn multiply(&self, shape: Shape, a: &[bf16], b: &[bf16], c: &mut [f32], ldc: usize) {
        let Shape { m, n, add, .. } = shape;
        let k = shape.k.next_multiple_of(STEPS);
        if m == 0 || n == 0 {
            return;
        }
        assert!(k > 0 && m.is_multiple_of(BLOCK) && n.is_multiple_of(BLOCK) && n <= ldc, "attention: parts of tiles");
        assert!(m * k <= a.len() && n * k <= b.len() && (m - 1) * ldc + n <= c.len(), "attention: operand too short");
        for j in (0..n).step_by(BLOCK) {
            for i in (0..m).step_by(BLOCK) {
                let (a, b, c) = (a[i * k..].as_ptr(), b[j * k..].as_ptr(), c[i * ldc + j..].as_mut_ptr());
                // SAFETY: this thread's tiles are set up while `self` lives. Panel i and strip j hold k steps, and 32 rows of 32 floats
                // of C are there (asserted).
                unsafe { block(k, add, a, b, c, ldc) }
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a `Tiles` is made where the level proves AMX.
        unsafe { amx::leave() }
    }
}

/// C [32, 32] = A B, or += that. Tiles 0 to 3 are the quarters of C, 4 and 5 those of A `[k / 32][32 rows][32]`, 6 and 7 of B
/// `[k / 2][32 columns][2]`.
///
/// # Safety
/// This thread's tiles are set up; k > 0 is a multiple of 32; `a` and `b` are valid for 32 k elements, `c` for 32 rows of 32 floats,
/// `ldc` apart.
unsafe fn block(k: usize, add: bool, a: *const bf16, b: *const bf16, c: *mut f32, ldc: usize) {
    // SAFETY: each round reads 2 KiB of A and of B, of which a load of a tile of B takes 64 bytes of every 128: 16 pairs of steps of one
    // half of the columns. All of C is read if it is added to, and written (the caller's).
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
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm6, [{b} + {pair}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {pair} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {row} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {rounds}",
            "jnz 2b",
            "tilestored [{c} + {row_of_c}], tmm0",
            "tilestored [{c} + {row_of_c} + 64], tmm1",
            "tilestored [{bottom} + {row_of_c}], tmm2",
            "tilestored [{bottom} + {row_of_c} + 64], tmm3",
            add = in(reg) u32::from(add),
            a = inout(reg) a => _,
            b = inout(reg) b => _,
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
