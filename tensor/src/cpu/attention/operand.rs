//! Elements of tensors and of packed operands.

use super::forward::Forward;
use super::{Block, Tile, few};
use crate::Float;
use crate::cpu::gemm::{Elems, Kernel, Lanes, pack_lanes, pack_lanes_bf16};
use crate::cpu::{Simd, simd};
use bytemuck::Pod;
use half::{bf16, f16};

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

/// An element of packed operands: f32, or bf16 where a level multiplies that.
pub(super) trait Operand: Pod + Send + Sync {
    /// Packs `lanes` lanes of `k` steps as a left-hand operand.
    fn left(simd: Simd, kernel: Kernel<Self>, x: Lanes, lanes: usize, k: usize, out: &mut [Self]);

    /// Packs `lanes` lanes of `k` steps as a right-hand operand.
    fn right(simd: Simd, kernel: Kernel<Self>, x: Lanes, lanes: usize, k: usize, out: &mut [Self]);

    /// Makes one strip of a right-hand operand of sums `[k][nr]`, in their place. There is room for whole groups of steps.
    fn strip(simd: Simd, kernel: Kernel<Self>, k: usize, sums: &mut [f32]) -> &[Self];

    /// What the few rows of a block take from a tile of keys: the state of [`super::softmax`].
    fn attend_few<T: Stored>(pass: &Forward<Self>, block: &Block, tile: &Tile, inputs: [&[T]; 3], state: &mut [f32]);
}

impl Operand for f32 {
    fn left(simd: Simd, kernel: Kernel, x: Lanes, lanes: usize, k: usize, out: &mut [f32]) {
        pack_lanes(simd, x, 0..lanes, 0..k, kernel.mr, out);
    }

    fn right(simd: Simd, kernel: Kernel, x: Lanes, lanes: usize, k: usize, out: &mut [f32]) {
        pack_lanes(simd, x, 0..lanes, 0..k, kernel.nr, out);
    }

    fn strip(_: Simd, _: Kernel, _: usize, sums: &mut [f32]) -> &[f32] {
        sums
    }

    fn attend_few<T: Stored>(pass: &Forward<f32>, block: &Block, tile: &Tile, inputs: [&[T]; 3], state: &mut [f32]) {
        few::attend(pass.cpu, pass.a, block, tile, inputs, state);
    }
}

impl Operand for bf16 {
    fn left(simd: Simd, kernel: Kernel<bf16>, x: Lanes, lanes: usize, k: usize, out: &mut [bf16]) {
        pack_lanes_bf16(simd, x, 0..lanes, 0..k, [kernel.mr, kernel.group], out);
    }

    fn right(simd: Simd, kernel: Kernel<bf16>, x: Lanes, lanes: usize, k: usize, out: &mut [bf16]) {
        let [pairs, depth] = [k.next_multiple_of(2), kernel.depth(k)].map(|steps| steps * kernel.nr);
        for (first, strip) in (0..lanes).step_by(kernel.nr).zip(out.chunks_exact_mut(depth)) {
            let (strip, past_end) = strip.split_at_mut(pairs);
            pack_lanes_bf16(simd, x, first..lanes.min(first + kernel.nr), 0..k, [kernel.nr, 2], strip);
            past_end.fill(bf16::ZERO);
        }
    }

    fn strip(simd: Simd, kernel: Kernel<bf16>, k: usize, sums: &mut [f32]) -> &[bf16] {
        const NR: usize = 32;
        assert_eq!(kernel.nr, NR);
        let (rows, _) = bytemuck::cast_slice_mut(sums).as_chunks_mut::<NR>();
        pair_up(simd, k, &mut rows[..kernel.depth(k)]);
        &bytemuck::cast_slice(sums)[..kernel.depth(k) * NR]
    }

    fn attend_few<T: Stored>(pass: &Forward<bf16>, block: &Block, tile: &Tile, inputs: [&[T]; 3], state: &mut [f32]) {
        pass.attend_few(block, tile, inputs, state);
    }
}

simd! {
    /// Rows 2 i and 2 i + 1, the bits of floats, become row i of pairs of bf16; what was past `k` rows counts as zero.
    fn pair_up(k: usize, rows: &mut [[u32; 32]]) {
        rows[k..].fill([0; 32]);
        for i in 0..rows.len() / 2 {
            let (low, high) = (rows[2 * i], rows[2 * i + 1]);
            for lane in 0..32 {
                rows[i][lane] = round(low[lane]) >> 16 | round(high[lane]) & 0xFFFF_0000;
            }
        }
    }
}

/// The bits of a float whose upper half is the nearest bf16, ties to even. A NaN stays one: those of sums of bf16 products
/// have room above them.
#[inline(always)]
fn round(bits: u32) -> u32 {
    bits.wrapping_add(0x7FFF + (bits >> 16 & 1))
}
