//! What the packed path asks of an element of packed operands.

use std::ops::Range;

use bytemuck::Pod;
use half::bf16;

use super::kernel::Kernel;
use super::pack::pack_lanes;
use super::pack_bf16::{Strips, pack_lanes_bf16};
use super::{Mat, Panels};
use crate::cpu::Simd;
use crate::dtype::Float;

/// f32, or bf16 where a level multiplies that. `round`: f32 operands are rounded to bf16, as bf16 ones always are.
pub(super) trait Packed: Pod + Send + Sync {
    /// Packs A[rows, k] in panels: `[panel][k / group][mr][group]`.
    fn pack_a(
        simd: Simd,
        kernel: Kernel<Self>,
        a: &Mat,
        rows: Range<usize>,
        k: Range<usize>,
        round: bool,
        out: &mut [Self],
    );

    /// Packs B[k, cols] in strips: `[strip][k / g][nr][g]`, filled up to whole groups of A.
    fn pack_b(
        simd: Simd,
        kernel: Kernel<Self>,
        b: &dyn Panels,
        k: Range<usize>,
        cols: Range<usize>,
        round: bool,
        out: &mut [Self],
    );
}

impl Packed for f32 {
    fn pack_a(simd: Simd, kernel: Kernel, a: &Mat, rows: Range<usize>, k: Range<usize>, round: bool, out: &mut [f32]) {
        pack_lanes(simd, a.row_lanes(), rows, k, kernel.mr, out);
        if round {
            bf16::round(simd, out);
        }
    }

    fn pack_b(
        simd: Simd,
        kernel: Kernel,
        b: &dyn Panels,
        k: Range<usize>,
        cols: Range<usize>,
        round: bool,
        out: &mut [f32],
    ) {
        b.pack(k, cols, kernel.nr, out);
        if round {
            bf16::round(simd, out);
        }
    }
}

impl Packed for bf16 {
    fn pack_a(
        simd: Simd,
        kernel: Kernel<bf16>,
        a: &Mat,
        rows: Range<usize>,
        k: Range<usize>,
        _: bool,
        out: &mut [bf16],
    ) {
        let strips = Strips { width: kernel.mr, group: kernel.group, depth: kernel.depth(k.len()) };
        pack_lanes_bf16(simd, a.row_lanes(), rows, k, strips, out);
    }

    fn pack_b(
        _: Simd,
        kernel: Kernel<bf16>,
        b: &dyn Panels,
        k: Range<usize>,
        cols: Range<usize>,
        _: bool,
        out: &mut [bf16],
    ) {
        if b.is_dense() {
            return b.pack_bf16(k, cols, kernel.nr, out);
        }
        let strip_len = kernel.packed_b(1, k.len());
        for (first, strip) in cols.clone().step_by(kernel.nr).zip(out.chunks_exact_mut(strip_len)) {
            let (strip, past_end) = strip.split_at_mut(k.len().next_multiple_of(2) * kernel.nr);
            b.pack_bf16(k.clone(), first..cols.end.min(first + kernel.nr), kernel.nr, strip);
            past_end.fill(bf16::ZERO);
        }
    }
}
