//! Elements of tensors and of packed operands.

use super::forward::Forward;
use super::{Block, Tile, few};
use crate::cpu::Simd;
use crate::cpu::gemm::{Elems, Kernel, Lanes, pack_lanes, pack_lanes_bf16};
use crate::{Element, Float};
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
        match x.data {
            // Whole groups of lanes beside each other lie as they are to.
            Elems::F32(data) if [x.lane_stride, x.k_stride, k] == [kernel.group, 1, kernel.group] => {
                let (filled, rest) = out.split_at_mut(lanes * k);
                <bf16 as Element>::narrow(simd, &data[..lanes * k], filled);
                rest.fill(bf16::ZERO);
            }
            _ => pack_lanes_bf16(simd, x, 0..lanes, 0..k, [kernel.mr, kernel.group], out),
        }
    }

    fn right(simd: Simd, kernel: Kernel<bf16>, x: Lanes, lanes: usize, k: usize, out: &mut [bf16]) {
        let [pairs, depth] = [k.next_multiple_of(2), kernel.depth(k)].map(|steps| steps * kernel.nr);
        for (first, strip) in (0..lanes).step_by(kernel.nr).zip(out.chunks_exact_mut(depth)) {
            let (strip, past_end) = strip.split_at_mut(pairs);
            pack_lanes_bf16(simd, x, first..lanes.min(first + kernel.nr), 0..k, [kernel.nr, 2], strip);
            past_end.fill(bf16::ZERO);
        }
    }

    fn strip(_: Simd, kernel: Kernel<bf16>, k: usize, sums: &mut [f32]) -> &[bf16] {
        let len = kernel.depth(k) * kernel.nr;
        sums[k * kernel.nr..len].fill(0.0);
        pair_up(kernel, &mut sums[..len]);
        &bytemuck::cast_slice(sums)[..len]
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
        (rows, []) if kernel.nr == 32 => unsafe { avx512::pair_up(rows) },
        _ => unreachable!("no level multiplies bf16, {} columns at a time", kernel.nr),
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn pair_up(rows: &mut [[f32; 32]]) {
        // Element i of the lower half of a register, then of the upper.
        let zip = std::array::from_fn::<i16, 32, _>(|i| (i / 2 + i % 2 * 16) as i16);
        // SAFETY: 64 bytes; any bits make integers.
        let zip: __m512i = unsafe { std::mem::transmute(zip) };
        let start = rows.as_mut_ptr().cast::<f32>();
        for i in 0..rows.len() / 2 {
            // SAFETY: each row has 32 floats; those of rows 2 i and 2 i + 1 are read before row i is written.
            unsafe {
                let (low, high, pairs) = (start.add(64 * i), start.add(64 * i + 32), start.add(32 * i));
                let first = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low));
                let second = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(high.add(16)), _mm512_loadu_ps(low.add(16)));
                for (at, both) in [(0, first), (16, second)] {
                    let both: __m512i = std::mem::transmute(both);
                    _mm512_storeu_si512(pairs.add(at).cast(), _mm512_permutexvar_epi16(zip, both));
                }
            }
        }
    }
}
