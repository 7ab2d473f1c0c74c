//! The micro-kernel of a SIMD level, and products of packed operands built from it.

use super::{KC, micro_portable};
#[cfg(target_arch = "x86_64")]
use super::{micro_avx2, micro_avx512};
#[cfg(target_arch = "x86_64")]
use crate::cpu::Level;
use crate::cpu::{Simd, span};

/// One tile: C [mr, nr] = alpha A B, or C += alpha A B if `add`, with A as `[k][mr]` and B as `[k][nr]`.
///
/// # Safety
/// The CPU has the kernel's instructions; `a`, `b` are valid for k * mr and k * nr floats; `c` is valid for
/// reads and writes of mr rows of nr floats, `ldc` apart, which nothing else accesses meanwhile.
pub(super) type Tile =
    unsafe fn(k: usize, alpha: f32, add: bool, a: *const f32, b: *const f32, c: *mut f32, ldc: usize);

/// The largest tile of any level.
const MAX_TILE: usize = micro_portable::MR * micro_portable::NR;
#[cfg(target_arch = "x86_64")]
const MAX_TILE_X86: usize = micro_avx512::MR * micro_avx512::NR;

#[repr(align(64))]
#[cfg(target_arch = "x86_64")]
struct EdgeTile([f32; if MAX_TILE > MAX_TILE_X86 { MAX_TILE } else { MAX_TILE_X86 }]);
#[repr(align(64))]
#[cfg(not(target_arch = "x86_64"))]
struct EdgeTile([f32; MAX_TILE]);

/// The micro-kernel of one SIMD level. A is packed in panels of `mr` rows (`[panel][k][mr]`), B in strips
/// of `nr` columns (`[strip][k][nr]`), both filled up with zeros.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    /// Rows of a tile.
    pub(crate) mr: usize,
    /// Columns of a tile.
    pub(crate) nr: usize,
    tile: Tile,
}

/// The scalar side of a product: depth k, C [m, n] and what is done with it.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) alpha: f32,
    /// C += rather than C =.
    pub(crate) add: bool,
}

impl Kernel {
    pub(crate) fn new(simd: Simd) -> Self {
        match simd.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Kernel { mr: micro_avx512::MR, nr: micro_avx512::NR, tile: micro_avx512::tile },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Kernel { mr: micro_avx2::MR, nr: micro_avx2::NR, tile: micro_avx2::tile },
            _ => Kernel { mr: micro_portable::MR, nr: micro_portable::NR, tile: micro_portable::tile },
        }
    }

    /// The product of packed operands into `c`, rows `ldc` apart.
    pub(crate) fn multiply(&self, shape: Shape, a: &[f32], b: &[f32], c: &mut [f32], ldc: usize) {
        let fits = shape.n <= ldc && span(shape.m, ldc, shape.n).is_some_and(|needed| needed <= c.len());
        assert!(shape.m == 0 || shape.n == 0 || fits);
        // SAFETY: the assertion keeps all rows inside `c`, which is borrowed mutably.
        unsafe { self.multiply_at(shape, a, b, c.as_mut_ptr(), ldc) }
    }

    /// [`Kernel::multiply`] into a rectangle whose rows other threads may write beside.
    ///
    /// # Safety
    /// `c` is valid for reads and writes of m rows of n floats, `ldc` apart, which nothing else accesses
    /// meanwhile.
    pub(crate) unsafe fn multiply_at(&self, shape: Shape, a: &[f32], b: &[f32], c: *mut f32, ldc: usize) {
        let Shape { m, n, k, .. } = shape;
        let holds = |x: &[f32], lanes: usize, width: usize| {
            let needed = lanes.checked_next_multiple_of(width).and_then(|lanes| lanes.checked_mul(k));
            needed.is_some_and(|needed| needed <= x.len())
        };
        assert!(holds(a, m, self.mr) && holds(b, n, self.nr));
        for k0 in (0..k).step_by(KC) {
            let step = Shape { k: KC.min(k - k0), add: shape.add || k0 > 0, ..shape };
            for j in (0..n).step_by(self.nr) {
                let strip = b[j * k + k0 * self.nr..].as_ptr();
                for i in (0..m).step_by(self.mr) {
                    let panel = a[i * k + k0 * self.mr..].as_ptr();
                    let part = Shape { m: self.mr.min(m - i), n: self.nr.min(n - j), ..step };
                    // SAFETY: panel and strip hold `step.k` steps (asserted above: whole panels of k steps); the
                    // rectangle (i, j) of `part`'s size lies inside the caller's.
                    unsafe { self.tile_at(part, panel, strip, c.add(i * ldc + j), ldc) }
                }
            }
        }
    }

    /// One tile, also where C has fewer than mr rows or nr columns left: then in a copy, by the same steps.
    ///
    /// # Safety
    /// As for [`Tile`], with `shape.m` x `shape.n` elements of C.
    #[inline]
    unsafe fn tile_at(&self, shape: Shape, a: *const f32, b: *const f32, c: *mut f32, ldc: usize) {
        let Shape { m, n, k, alpha, add } = shape;
        if m == self.mr && n == self.nr {
            // SAFETY: the caller's; a `Kernel` is made from a `Simd`, so its instructions are there.
            return unsafe { (self.tile)(k, alpha, add, a, b, c, ldc) };
        }
        let mut edge = EdgeTile([0.0; _]);
        let edge = &mut edge.0[..self.mr * self.nr];
        if add {
            for (i, row) in edge.chunks_exact_mut(self.nr).enumerate().take(m) {
                // SAFETY: row i < m of n floats is the caller's to read.
                row[..n].copy_from_slice(unsafe { std::slice::from_raw_parts(c.add(i * ldc), n) });
            }
        }
        // SAFETY: `edge` holds a whole tile with rows nr apart.
        unsafe { (self.tile)(k, alpha, add, a, b, edge.as_mut_ptr(), self.nr) };
        for (i, row) in edge.chunks_exact(self.nr).enumerate().take(m) {
            // SAFETY: row i < m of n floats is the caller's to write.
            unsafe { std::slice::from_raw_parts_mut(c.add(i * ldc), n) }.copy_from_slice(&row[..n]);
        }
    }
}
