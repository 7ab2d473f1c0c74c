//! Elements of tensors and of packed operands.

use super::backward::{Scored, score_gradients};
use super::forward::Forward;
#[cfg(target_arch = "x86_64")]
use super::scores512::{self, Panels};
use super::softmax::{Strip, hide, softmax};
use super::{Block, Tile, few, products};
use crate::Float;
use crate::cpu::Simd;
use crate::cpu::gemm::{Elems, Kernel, Lanes, Shape, Strips, pack_lanes, pack_lanes_bf16};
#[cfg(target_arch = "x86_64")]
use crate::cpu::{Level, amx::Tiles};
use bytemuck::Pod;
use half::{bf16, f16};
use std::ops::Range;

/// An element of q, k, v and the like.
pub trait Stored: Float + Pod {
    #[doc(hidden)]
    fn elems(x: &[Self]) -> Elems<'_>;
}

impl Stored for f32 {
    fn elems(x: &[f32]) -> Elems<'_> {
        Elems::F32(x)
    }
}

impl Stored for bf16 {
    fn elems(x: &[bf16]) -> Elems<'_> {
        Elems::Bf16(x)
    }
}

impl Stored for f16 {
    fn elems(x: &[f16]) -> Elems<'_> {
        Elems::F16(x)
    }
}

/// The rows of `x`, `stride` apart, as lanes.
pub(super) fn by_row<T: Stored>(x: &[T], stride: usize) -> Lanes<'_> {
    Lanes { data: T::elems(x), lane_stride: stride, k_stride: 1 }
}

/// The columns of `x`, whose rows are `stride` apart, as lanes.
pub(super) fn by_column<T: Stored>(x: &[T], stride: usize) -> Lanes<'_> {
    Lanes { data: T::elems(x), lane_stride: 1, k_stride: stride }
}

/// Steps that [`Operand::steps`] packed.
pub(super) struct Steps<'a, E> {
    pub(super) packed: &'a [E],
    /// How many there are.
    pub(super) len: usize,
    /// Those to multiply: from a whole panel and group of the kernel's on.
    pub(super) taken: Range<usize>,
}

/// dS of a panel of rows and all strips of a tile of keys.
pub(super) struct ScoreGradients<'a, E> {
    /// `[row][nr]` of a strip, from the panel's first row on; and elements from one strip to the next.
    pub(super) strips: &'a [f32],
    pub(super) stride: usize,
    /// As a panel of a left-hand operand.
    pub(super) panel: &'a [E],
}

/// What a task holds for its products: they are so small that to set up AMX tiles for each, as [`Kernel::multiply`] does, would cost
/// as much as a tenth of the pass.
pub(super) struct Hold {
    simd: Simd,
    #[cfg(target_arch = "x86_64")]
    tiles: Option<Tiles>,
}

impl Hold {
    /// For products on this thread at this level.
    pub(super) fn new(simd: Simd) -> Self {
        Hold {
            simd,
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level proves AMX.
            tiles: (simd.level() == Level::Amx).then(|| unsafe { Tiles::set_up() }),
        }
    }
}

/// An element of packed operands: f32, or bf16 where a level multiplies that.
pub(super) trait Operand: Pod + Send + Sync {
    /// Rows of the backward pass whose scores are formed at a time.
    const ROWS: usize;

    /// Rows of the backward pass that each tile of keys is read for: whole [`Operand::ROWS`].
    const BLOCK: usize;

    /// Keys of a tile of the backward pass: whole strips of every micro-kernel (32 and 16 columns).
    const KEYS: usize;

    /// Whether [`Operand::onto_queries`] reads strips of dS as they are, and not panels.
    const STRIPS: bool;

    /// C [m, n] = A B, or += that: whole panels and strips of packed operands, C's rows `ldc` apart.
    fn multiply(held: &Hold, kernel: Kernel<Self>, shape: Shape, a: &[Self], b: &[Self], c: &mut [f32], ldc: usize);

    /// Packs `lanes` lanes of `k` steps as a left-hand operand.
    fn left(simd: Simd, kernel: Kernel<Self>, x: Lanes, lanes: usize, k: usize, out: &mut [Self]);

    /// Packs `lanes` lanes of `k` steps as a right-hand operand.
    fn right(simd: Simd, kernel: Kernel<Self>, x: Lanes, lanes: usize, k: usize, out: &mut [Self]);

    /// Lanes of [`Operand::steps`]: `d`, filled up.
    fn deep(kernel: Kernel<Self>, d: usize) -> usize;

    /// Packs `d` lanes of `k` steps, where the lanes of a step lie side by side, as the left-hand operand of [`Operand::weigh`].
    fn steps(simd: Simd, kernel: Kernel<Self>, x: Lanes, d: usize, k: usize, out: &mut [Self]);

    /// `sums` `[deep][nr]` = the product of steps and a strip, or += that if `add`.
    fn weigh(held: &Hold, kernel: Kernel<Self>, left: Steps<Self>, strip: &[Self], sums: &mut [f32], add: bool);

    /// The softmax of a strip of products `[key][nr]` (see [`softmax`]): the weights of `k` keys as a strip of a right-hand operand, in
    /// their place. There is room for whole groups of steps.
    fn weights<'a>(
        simd: Simd,
        kernel: Kernel<Self>,
        products: &'a mut [f32],
        keys: Range<usize>,
        scale: f32,
        strip: &Strip,
        state: &mut [f32],
    ) -> &'a [Self];

    /// Products `[row][nr]` become P and `dp` becomes dS, as strips of a right-hand operand, in their place; and dS, strip `i` of a tile
    /// of keys, for [`Operand::onto_queries`]: of [`Operand::STRIPS`] the rows of `dp` up to a whole panel become 0; without, it is
    /// packed into `panels`, a panel of rows of all [`Operand::KEYS`] after another.
    fn gradients<'a>(
        simd: Simd,
        kernel: Kernel<Self>,
        products: &'a mut [f32],
        dp: &'a mut [f32],
        of: &Scored,
        i: usize,
        panels: &mut [Self],
    ) -> [&'a [Self]; 2];

    /// `dq` `[mr][nr]`, whose rows are `ldc` apart, += dS of a panel of rows times keys `taken` (from a whole strip on), of which
    /// `keys` is one strip of columns of all in the tile.
    fn onto_queries(
        held: &Hold,
        kernel: Kernel<Self>,
        ds: &ScoreGradients<Self>,
        taken: Range<usize>,
        keys: &[Self],
        dq: &mut [f32],
        ldc: usize,
    );

    /// What the few rows of a block take from a tile of keys: the state of [`super::softmax`].
    fn attend_few<T: Stored>(pass: &Forward<Self>, block: &Block, tile: &Tile, inputs: [&[T]; 3], state: &mut [f32]);
}

impl Operand for f32 {
    /// The scores of them and a strip of keys stay in the first cache: whole panels of 14, 6 and 4 rows, so that bits depend on none.
    const ROWS: usize = 168;
    const BLOCK: usize = 2 * Self::ROWS;
    const KEYS: usize = 64;
    const STRIPS: bool = true;

    fn multiply(_: &Hold, kernel: Kernel, shape: Shape, a: &[f32], b: &[f32], c: &mut [f32], ldc: usize) {
        kernel.multiply(shape, a, b, c, ldc);
    }

    fn left(simd: Simd, kernel: Kernel, x: Lanes, lanes: usize, k: usize, out: &mut [f32]) {
        pack_lanes(simd, x, 0..lanes, 0..k, kernel.mr, out);
    }

    fn right(simd: Simd, kernel: Kernel, x: Lanes, lanes: usize, k: usize, out: &mut [f32]) {
        pack_lanes(simd, x, 0..lanes, 0..k, kernel.nr, out);
    }

    fn deep(_: Kernel, d: usize) -> usize {
        d.next_multiple_of(products::LANES)
    }

    fn steps(simd: Simd, _: Kernel, x: Lanes, d: usize, k: usize, out: &mut [f32]) {
        pack_lanes(simd, x, 0..d, 0..k, products::LANES, out);
    }

    fn weigh(held: &Hold, kernel: Kernel, left: Steps<f32>, strip: &[f32], sums: &mut [f32], add: bool) {
        let panels = left.packed.chunks_exact(left.len * products::LANES);
        for (panel, sums) in panels.zip(sums.chunks_exact_mut(products::LANES * kernel.nr)) {
            let steps = &panel[left.taken.start * products::LANES..];
            products::by_steps(held.simd, kernel.nr, steps, strip, sums, add);
        }
    }

    fn weights<'a>(
        simd: Simd,
        kernel: Kernel,
        products: &'a mut [f32],
        keys: Range<usize>,
        scale: f32,
        strip: &Strip,
        state: &mut [f32],
    ) -> &'a [f32] {
        let products = &mut products[..keys.len() * kernel.nr];
        softmax(simd, kernel.nr, products, keys.start, scale, strip, state);
        products
    }

    fn gradients<'a>(
        simd: Simd,
        kernel: Kernel,
        products: &'a mut [f32],
        dp: &'a mut [f32],
        of: &Scored,
        _: usize,
        _: &mut [f32],
    ) -> [&'a [f32]; 2] {
        let (Kernel { mr, nr, .. }, m) = (kernel, of.seen.len());
        let (p, (ds, rest)) = (&mut products[..m * nr], dp[..m.next_multiple_of(mr) * nr].split_at_mut(m * nr));
        score_gradients(simd, nr, p, ds, of);
        rest.fill(0.0);
        [p, ds]
    }

    fn onto_queries(
        held: &Hold,
        kernel: Kernel,
        ds: &ScoreGradients<f32>,
        taken: Range<usize>,
        keys: &[f32],
        dq: &mut [f32],
        ldc: usize,
    ) {
        let Kernel { mr, nr, .. } = kernel;
        let (strips, keys) = (&ds.strips[taken.start / nr * ds.stride..], &keys[taken.start * nr..taken.end * nr]);
        products::by_strips(held.simd, [mr, nr], strips, ds.stride, keys, dq, ldc);
    }

    fn attend_few<T: Stored>(pass: &Forward<f32>, block: &Block, tile: &Tile, inputs: [&[T]; 3], state: &mut [f32]) {
        few::attend(pass.cpu, pass.a, block, tile, inputs, state);
    }
}

#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(unused_variables, unreachable_code, reason = "no other architecture has a level that multiplies bf16")
)]
impl Operand for bf16 {
    /// Whole panels of 14 and of 32 rows: dK and dV are read and written once for so many.
    const ROWS: usize = 224;
    const BLOCK: usize = 4 * Self::ROWS;
    const KEYS: usize = 128;
    const STRIPS: bool = false;

    fn multiply(held: &Hold, kernel: Kernel<bf16>, shape: Shape, a: &[bf16], b: &[bf16], c: &mut [f32], ldc: usize) {
        match held {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this thread's tiles are set up while `held`, which no other thread has, lives.
            Hold { tiles: Some(_), .. } => unsafe { kernel.multiply_held(shape, a, b, None, c, ldc) },
            _ => kernel.multiply(shape, a, b, c, ldc),
        }
    }

    fn left(simd: Simd, kernel: Kernel<bf16>, x: Lanes, lanes: usize, k: usize, out: &mut [bf16]) {
        let strips = Strips { width: kernel.mr, group: kernel.group, depth: kernel.depth(k) };
        pack_lanes_bf16(simd, x, 0..lanes, 0..k, strips, out);
    }

    fn right(simd: Simd, kernel: Kernel<bf16>, x: Lanes, lanes: usize, k: usize, out: &mut [bf16]) {
        let strips = Strips { width: kernel.nr, group: 2, depth: kernel.depth(k) };
        pack_lanes_bf16(simd, x, 0..lanes, 0..k, strips, out);
    }

    fn deep(kernel: Kernel<bf16>, d: usize) -> usize {
        d.next_multiple_of(kernel.mr)
    }

    fn steps(simd: Simd, kernel: Kernel<bf16>, x: Lanes, d: usize, k: usize, out: &mut [bf16]) {
        Self::left(simd, kernel, x, d, k, out);
    }

    fn weigh(held: &Hold, kernel: Kernel<bf16>, left: Steps<bf16>, strip: &[bf16], sums: &mut [f32], add: bool) {
        let Kernel { mr, nr, .. } = kernel;
        let product = Shape { m: mr, n: nr, k: left.taken.len(), alpha: 1.0, add };
        let panels = left.packed.chunks_exact(kernel.packed_a(mr, left.len));
        for (panel, sums) in panels.zip(sums.chunks_exact_mut(mr * nr)) {
            Self::multiply(held, kernel, product, &panel[left.taken.start * mr..], strip, sums, nr);
        }
    }

    fn weights<'a>(
        simd: Simd,
        kernel: Kernel<bf16>,
        products: &'a mut [f32],
        keys: Range<usize>,
        scale: f32,
        strip: &Strip,
        state: &mut [f32],
    ) -> &'a [bf16] {
        let (k, len) = (keys.len(), kernel.depth(keys.len()) * kernel.nr);
        let products = &mut products[..len];
        hide(simd, kernel.nr, &mut products[..k * kernel.nr], keys.start, scale, strip);
        let (largest, sum) = state.split_at_mut(kernel.nr);
        match (products.as_chunks_mut::<32>(), largest.first_chunk_mut::<32>(), sum.first_chunk_mut::<32>()) {
            // SAFETY: a kernel of bf16 is made from a `Simd` that proves AVX-512 BF16.
            #[cfg(target_arch = "x86_64")]
            ((rows, []), Some(largest), Some(sum)) if kernel.nr == 32 => unsafe {
                scores512::softmax(rows, k, scale, largest, sum);
            },
            _ => unreachable!("no level multiplies bf16, {} columns at a time", kernel.nr),
        }
        &bytemuck::cast_slice(products)[..len]
    }

    fn gradients<'a>(
        simd: Simd,
        kernel: Kernel<bf16>,
        products: &'a mut [f32],
        dp: &'a mut [f32],
        of: &Scored,
        i: usize,
        panels: &mut [bf16],
    ) -> [&'a [bf16]; 2] {
        let (Kernel { mr, nr, group, .. }, m) = (kernel, of.seen.len());
        let len = kernel.depth(m) * nr;
        let [products, dp] = [products, dp].map(|x| &mut x[..len]);
        // Panels of whole rows of a strip take them as they are.
        let whole = [mr, nr, group] == [32; 3];
        match (products.as_chunks_mut::<32>(), dp.as_chunks_mut::<32>()) {
            #[cfg(target_arch = "x86_64")]
            ((products, []), (dp, [])) if nr == 32 => {
                let rows =
                    whole.then(|| Panels { panels: panels[i * mr * nr..].as_chunks_mut().0, stride: Self::KEYS });
                // SAFETY: a kernel of bf16 is made from a `Simd` that proves AVX-512 BF16.
                unsafe { scores512::gradients(products, dp, of, rows) }
            }
            _ => unreachable!("no level multiplies bf16, {nr} columns at a time"),
        }
        if !whole {
            for (ds, panel) in dp[..m * nr].chunks(mr * nr).zip(panels.chunks_exact_mut(mr * Self::KEYS)) {
                let panel = &mut panel[i * nr * mr..][..nr * mr];
                Self::left(simd, kernel, by_row(ds, nr), ds.len() / nr, nr, panel);
            }
            dp[m * nr..].fill(0.0);
            pair_up(kernel, dp);
        }
        [products, dp].map(|x| &bytemuck::cast_slice(x)[..len])
    }

    fn onto_queries(
        held: &Hold,
        kernel: Kernel<bf16>,
        ds: &ScoreGradients<bf16>,
        taken: Range<usize>,
        keys: &[bf16],
        dq: &mut [f32],
        ldc: usize,
    ) {
        let Kernel { mr, nr, .. } = kernel;
        let product = Shape { m: mr, n: nr, k: taken.len(), alpha: 1.0, add: true };
        Self::multiply(held, kernel, product, &ds.panel[taken.start * mr..], &keys[taken.start * nr..], dq, ldc);
    }

    fn attend_few<T: Stored>(pass: &Forward<bf16>, block: &Block, tile: &Tile, inputs: [&[T]; 3], state: &mut [f32]) {
        pass.attend_few(block, tile, inputs, state);
    }
}

/// Rows 2 i and 2 i + 1 of `nr` floats become row i of as many pairs of bf16, in place.
fn pair_up(kernel: Kernel<bf16>, rows: &mut [f32]) {
    match rows.as_chunks_mut::<32>() {
        // SAFETY: a kernel of bf16 is made from a `Simd` that proves AVX-512 BF16.
        #[cfg(target_arch = "x86_64")]
        (rows, []) if kernel.nr == 32 => unsafe { scores512::pair_up(rows) },
        _ => unreachable!("no level multiplies bf16, {} columns at a time", kernel.nr),
    }
}
