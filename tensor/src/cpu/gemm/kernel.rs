//! The micro-kernel of a SIMD level, and products of packed operands built from it.

use half::bf16;

use super::{KC, micro_portable};
#[cfg(target_arch = "x86_64")]
use super::{micro_amx, micro_avx2, micro_avx512, micro_avx512bf16};
#[cfg(target_arch = "x86_64")]
use crate::cpu::{Level, amx};
use crate::cpu::{Simd, span};

/// One tile: C [mr, nr] = alpha A B, or C += alpha A B if `add`, of `k` steps of packed operands. `ahead` is where tiles to come
/// read of A and of B, if that is not in L2: a line of each may be fetched in [`Kernel::steps_a_line`]; they are not read, and need
/// not be there.
///
/// # Safety
/// The CPU has the kernel's instructions, and [`Kernel::held`] has set them up; `k` is a multiple of the kernel's group;
/// `operands`, A and B, are valid for k * mr and k * nr elements; `c` is valid for reads and writes of mr rows of nr floats, `ldc`
/// apart, which nothing else accesses meanwhile.
pub(super) type Tile<E> = unsafe fn(
    k: usize,
    alpha: f32,
    add: bool,
    operands: [*const E; 2],
    ahead: Option<[*const E; 2]>,
    c: *mut f32,
    ldc: usize,
);

/// [`Kernel::steps_a_line`] of f32.
pub(super) const STEPS_A_LINE: usize = 8;

/// Bytes of a line of the cache.
pub(super) const LINE: usize = 64;

/// The most floats of a tile of any level: those of AMX.
const MAX_TILE: usize = 32 * 32;
const _: () = assert!(micro_portable::MR * micro_portable::NR <= MAX_TILE);
#[cfg(target_arch = "x86_64")]
const _: () =
    assert!(micro_amx::MR * micro_amx::NR <= MAX_TILE && micro_avx512::TALL * micro_avx512::LANES <= MAX_TILE);

#[repr(align(64))]
struct EdgeTile([f32; MAX_TILE]);

/// The micro-kernel of one SIMD level for operands of f32 or bf16; sums are f32. A is packed in panels of `mr` rows
/// (`[panel][k / group][mr][group]`), B in strips of `nr` columns (`[strip][k / g][nr][g]`, where g is 1 for f32 and 2 for bf16),
/// both filled up with zeros to whole panels and strips and to whole groups.
#[derive(Clone, Copy)]
pub(crate) struct Kernel<E: 'static = f32> {
    /// Rows of a tile.
    pub(crate) mr: usize,
    /// Columns of a tile.
    pub(crate) nr: usize,
    /// Steps along k that lie together in a row of A; k is filled up to a multiple of them.
    pub(crate) group: usize,
    /// How many steps one accumulator takes before it is added to C: of bf16 as many as there are.
    chain: usize,
    /// Blocks along k are whole multiples of so many steps: of f32 they then have the sums of one that is not cut.
    pub(crate) unit: usize,
    /// The most steps along k that are packed as one block.
    pub(crate) block: usize,
    /// Rows and columns of C that one task computes, about, where k is one block and where it is several: A's and B's blocks for them stay
    /// in L2 together, and sums that are not added to again go out soon.
    pub(crate) tile_of_task: [usize; 2],
    /// Steps of a tile in which one line of each operand is fetched ahead: what 14 to 16 tiles fetch of a strip or panel is all of it.
    steps_a_line: usize,
    /// Whether the tiles of AMX must be set up around a product.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no other architecture has them"))]
    tiles: bool,
    tile: Tile<E>,
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

/// The packed operands of the product that comes next, to be fetched while another runs, and its depth.
pub(in crate::cpu) struct Next<'a, E> {
    pub(super) a: &'a [E],
    pub(super) b: &'a [E],
    pub(super) k: usize,
}

impl Kernel {
    /// The kernel of products with many rows and columns.
    pub(crate) fn new(simd: Simd) -> Self {
        Kernel::of_shape(simd, usize::MAX, usize::MAX)
    }

    /// The kernel whose tile fits C [m, n] best. Which one it is changes no bit.
    pub(super) fn of_shape(simd: Simd, m: usize, n: usize) -> Self {
        let kernel = |mr, nr, tile| Kernel {
            mr,
            nr,
            group: 1,
            chain: KC,
            unit: KC,
            block: 2 * KC,
            tile_of_task: [224, 224],
            steps_a_line: STEPS_A_LINE,
            tiles: false,
            tile,
        };
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (m, n);
        match simd.level() {
            #[cfg(target_arch = "x86_64")]
            level if level >= Level::Avx512 => {
                use micro_avx512::{FLAT, LANES, MR, TALL, tile};
                match (m, n) {
                    (_, 0..=LANES) => kernel(TALL, LANES, tile::<TALL, 1>),
                    // A rank of 16 in whole tiles; 14 rows a tile would leave 12 of 28 empty.
                    (15..=24, _) => Kernel { block: KC, ..kernel(FLAT, 3 * LANES, tile::<FLAT, 3>) },
                    _ => kernel(MR, 2 * LANES, tile::<MR, 2>),
                }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => kernel(micro_avx2::MR, micro_avx2::NR, micro_avx2::tile),
            _ => kernel(micro_portable::MR, micro_portable::NR, micro_portable::tile),
        }
    }
}

impl Kernel<bf16> {
    /// `None` where the level has no products of bf16: operands are widened there.
    pub(crate) fn of_bf16(simd: Simd) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        let kernel = |mr, nr, group, block, tiles, tile| Kernel {
            mr,
            nr,
            group,
            chain: usize::MAX,
            unit: group,
            block,
            tile_of_task: [320, 448],
            steps_a_line: micro_amx::STEPS_A_LINE,
            tiles,
            tile,
        };
        match simd.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Amx => {
                use micro_amx::{GROUP, MR, NR, tile};
                // A strip of 640 steps and the lines that pass by fit into 48 KiB of L1.
                Some(kernel(MR, NR, GROUP, 640, true, tile))
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => {
                use micro_avx512bf16::{GROUP, MR, NR, tile};
                Some(kernel(MR, NR, GROUP, 512, false, tile))
            }
            _ => None,
        }
    }
}

impl<E: Copy> Kernel<E> {
    /// `k` filled up to whole groups: the depth of packed operands.
    pub(crate) fn depth(&self, k: usize) -> usize {
        k.next_multiple_of(self.group)
    }

    /// Elements of packed A [m, k].
    pub(crate) fn packed_a(&self, m: usize, k: usize) -> usize {
        m.next_multiple_of(self.mr) * self.depth(k)
    }

    /// Elements of packed B [k, n].
    pub(crate) fn packed_b(&self, n: usize, k: usize) -> usize {
        n.next_multiple_of(self.nr) * self.depth(k)
    }

    /// The product of packed operands into `c`, rows `ldc` apart.
    pub(crate) fn multiply(&self, shape: Shape, a: &[E], b: &[E], c: &mut [f32], ldc: usize) {
        // SAFETY: within `held`.
        self.held(|| unsafe { self.multiply_held(shape, a, b, None, c, ldc) });
    }

    /// [`Kernel::multiply`] for callers that have many small products. With `next`, what tiles to come will read is fetched from
    /// beyond L2.
    ///
    /// # Safety
    /// The calling thread is within [`Kernel::held`] of this kernel, or of another with the same [`Simd`] and tiles; or it has its
    /// [`amx::Tiles`].
    pub(in crate::cpu) unsafe fn multiply_held(
        &self,
        shape: Shape,
        a: &[E],
        b: &[E],
        next: Option<&Next<E>>,
        c: &mut [f32],
        ldc: usize,
    ) {
        let Shape { m, n, .. } = shape;
        let k = self.depth(shape.k);
        let holds = |x: &[E], lanes: usize, width: usize| {
            let needed = lanes.checked_next_multiple_of(width).and_then(|lanes| lanes.checked_mul(k));
            needed.is_some_and(|needed| needed <= x.len())
        };
        assert!(holds(a, m, self.mr) && holds(b, n, self.nr), "gemm: packed operands too short");
        let fits = n <= ldc && span(m, ldc, n).is_some_and(|needed| needed <= c.len());
        assert!(m == 0 || n == 0 || fits, "gemm: sums too short");
        for k0 in (0..k).step_by(self.chain) {
            let step = Shape { k: self.chain.min(k - k0), add: shape.add || k0 > 0, ..shape };
            let fetched = step.k / self.steps_a_line * LINE / size_of::<E>();
            // Where the steps after these begin, and how far its panels are apart.
            let then = next.map(|next| match k0 + step.k {
                all if all == k => (next.a.as_ptr(), next.b.as_ptr(), self.depth(next.k)),
                done => (a[done * self.mr..].as_ptr(), b[done * self.nr..].as_ptr(), k),
            });
            for (strips, j) in (0..n).step_by(self.nr).enumerate() {
                let strip = b[j * k + k0 * self.nr..].as_ptr();
                for (panels, i) in (0..m).step_by(self.mr).enumerate() {
                    let panel = a[i * k + k0 * self.mr..].as_ptr();
                    let part = Shape { m: self.mr.min(m - i), n: self.nr.min(n - j), ..step };
                    let ahead = then.map(|(a, b, depth)| {
                        let b = if j + self.nr < n { strip.wrapping_add(self.nr * k) } else { b };
                        [a.wrapping_add(i * depth + strips * fetched), b.wrapping_add(panels * fetched)]
                    });
                    // SAFETY: panel and strip hold `step.k` steps (asserted above: whole panels of k steps); the rectangle (i, j) of
                    // `part`'s size lies inside `c` (asserted), which is borrowed mutably.
                    unsafe { self.tile_at(part, panel, strip, ahead, c.as_mut_ptr().add(i * ldc + j), ldc) }
                }
            }
        }
    }

    /// Runs `f` with what the kernel's instructions need set up on this thread.
    pub(super) fn held(&self, f: impl FnOnce()) {
        // SAFETY: a kernel with tiles is made from a `Simd` that proves AMX.
        #[cfg(target_arch = "x86_64")]
        let _tiles = self.tiles.then(|| unsafe { amx::Tiles::set_up() });
        f();
    }

    /// One tile, also where C has fewer than mr rows or nr columns left: then in a copy, by the same steps.
    ///
    /// # Safety
    /// As for [`Tile`], with `shape.m` x `shape.n` elements of C.
    #[inline]
    unsafe fn tile_at(
        &self,
        shape: Shape,
        a: *const E,
        b: *const E,
        ahead: Option<[*const E; 2]>,
        c: *mut f32,
        ldc: usize,
    ) {
        let Shape { m, n, k, alpha, add } = shape;
        if m == self.mr && n == self.nr {
            // SAFETY: the caller's; a `Kernel` is made from a `Simd`, so its instructions are there.
            return unsafe { (self.tile)(k, alpha, add, [a, b], ahead, c, ldc) };
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
        unsafe { (self.tile)(k, alpha, add, [a, b], ahead, edge.as_mut_ptr(), self.nr) };
        for (i, row) in edge.chunks_exact(self.nr).enumerate().take(m) {
            // SAFETY: row i < m of n floats is the caller's to write.
            unsafe { std::slice::from_raw_parts_mut(c.add(i * ldc), n) }.copy_from_slice(&row[..n]);
        }
    }
}
