//! A tile of keys for few rows, in f32: no tile of a micro-kernel is filled, so rows go four at a time, with the same bits.

use super::operand::{Operand, Stored, by_column, by_row};
use super::softmax::{STATS, clear};
use super::{Attention, Block, Tile};
use crate::cpu::gemm::{Elems, KC, Kernel};
use crate::cpu::math::exp_or_zero;
use crate::cpu::reduce::fold;
use crate::cpu::{Cpu, simd};
use std::ops::Range;

/// Rows at a time.
const ROWS: usize = 4;

/// What the rows of a block take from a tile of keys, row i in lane i of `state`.
pub(super) fn attend<T: Stored>(
    cpu: &Cpu,
    a: &Attention,
    block: &Block,
    tile: &Tile,
    [q, k, v]: [&[T]; 3],
    state: &mut [f32],
) {
    let (kernel, simd, d, n) = (Kernel::new(cpu.simd()), cpu.simd(), a.head_dim, tile.keys.len());
    let (at, stride, width) = (a.kv_at(tile, tile.keys.start), a.kv_heads * d, kernel.nr);
    let mut keys = cpu.scratch(kernel.packed_b(n, d));
    Operand::right(simd, kernel, by_row(&k[at..], stride), n, d, &mut keys);
    let mut packed = cpu.scratch(kernel.packed_b(d, n));
    // Values of f32 in whole strips are read where they lie: from one strip to the next, and from a row to the next.
    let (values, strip, stride) = match T::elems(&v[at..]) {
        Elems::F32(v) if d.is_multiple_of(width) => (v, width, stride),
        _ => {
            Operand::right(simd, kernel, by_column(&v[at..], stride), d, n, &mut packed);
            (&packed[..], n * width, width)
        }
    };
    let [across, deep] = [n, d].map(|lanes| lanes.next_multiple_of(width));
    let [mut queries, mut weights, mut out] = [d, across, deep].map(|len| cpu.scratch(ROWS * len));
    clear(width, state);
    for first in block.rows.clone().step_by(ROWS) {
        let rows = first..block.rows.end.min(first + ROWS);
        for (row, queries) in rows.clone().zip(queries.chunks_exact_mut(d)) {
            let at = a.q_at(block, row);
            T::widen(simd, &q[at..at + d], queries);
        }
        queries[rows.len() * d..].fill(0.0);
        for (keys, j) in keys.chunks_exact(d * width).zip((0..).step_by(width)) {
            multiply(simd, width, &queries, d, d, keys, width, &mut weights[j..], across);
        }
        for (i, row) in rows.clone().enumerate() {
            let seen = a.seen(&tile.segment, row);
            let clamp = |key: usize| key.clamp(tile.keys.start, tile.keys.end) - tile.keys.start;
            let weights = &mut weights[i * across..][..across];
            state[row] = softmax(simd, weights, clamp(seen.start)..clamp(seen.end), a.scale);
        }
        let sums = sum(simd, &weights, across, n);
        state[width + rows.start..][..rows.len()].copy_from_slice(&sums[..rows.len()]);
        for (i, j) in (0..d).step_by(width).enumerate() {
            multiply(simd, width, &weights, across, n, &values[i * strip..], stride, &mut out[j..], deep);
        }
        for (out, row) in out.chunks_exact(deep).zip(rows) {
            let column = state[STATS * width + row..].iter_mut().step_by(width);
            column.zip(&out[..d]).for_each(|(x, out)| *x = *out);
        }
    }
}

simd! {
    /// Four rows of k elements of `a` times `width` columns of `b` into four rows of `c`: by the steps of a micro-kernel.
    fn multiply(
        width: usize, a: &[f32], lda: usize, k: usize, b: &[f32], ldb: usize, c: &mut [f32], ldc: usize,
    ) {
        match width {
            32 => multiply_of::<32>(a, lda, k, b, ldb, c, ldc),
            _ => multiply_of::<16>(a, lda, k, b, ldb, c, ldc),
        }
    }

    /// Products become e^(score - largest), and 0 where they are not `seen`; returns the largest score.
    fn softmax(products: &mut [f32], seen: Range<usize>, scale: f32) -> f32 {
        const LANES: usize = 16;
        let (start, end) = (seen.start as u32, seen.end as u32);
        let mut top = [f32::NEG_INFINITY; LANES];
        let chunks = products.as_chunks_mut::<LANES>().0;
        for (chunk, first) in chunks.iter().zip((0..).step_by(LANES)) {
            for (i, (top, x)) in (first..).zip(top.iter_mut().zip(chunk)) {
                let score = *x * scale;
                *top = if start <= i && i < end && score > *top { score } else { *top };
            }
        }
        let top = fold(top, |a, b| if a > b { a } else { b });
        let shift = if top == f32::NEG_INFINITY { 0.0 } else { top };
        for (chunk, first) in chunks.iter_mut().zip((0..).step_by(LANES)) {
            for (i, x) in (first..).zip(chunk) {
                let weight = exp_or_zero(x.mul_add(scale, -shift));
                *x = if start <= i && i < end { weight } else { 0.0 };
            }
        }
        top
    }

    /// The sums of the first `n` of four rows, `stride` apart, each added up in order.
    fn sum(x: &[f32], stride: usize, n: usize) -> [f32; ROWS] {
        let mut sums = [0.0; ROWS];
        let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &x[row * stride..][..n]);
        for i in 0..n {
            for (sum, row) in sums.iter_mut().zip(rows) {
                *sum += row[i];
            }
        }
        sums
    }
}

#[inline(always)]
fn multiply_of<const W: usize>(a: &[f32], lda: usize, k: usize, b: &[f32], ldb: usize, c: &mut [f32], ldc: usize) {
    for first in (0..k).step_by(KC) {
        let steps = KC.min(k - first);
        let [a0, a1, a2, a3]: [&[f32]; ROWS] = std::array::from_fn(|row| &a[row * lda + first..][..steps]);
        let a = a0.iter().zip(a1).zip(a2).zip(a3).map(|(((a0, a1), a2), a3)| [*a0, *a1, *a2, *a3]);
        let mut acc = [[0.0; W]; ROWS];
        for (a, b) in a.zip(b[first * ldb..].chunks(ldb)) {
            let b: &[f32; W] = b.first_chunk().expect("columns of b");
            for (acc, a) in acc.iter_mut().zip(a) {
                for i in 0..W {
                    acc[i] = a.mul_add(b[i], acc[i]);
                }
            }
        }
        for (c, acc) in c.chunks_mut(ldc).zip(&acc) {
            for (c, acc) in c.iter_mut().zip(acc) {
                *c = if first == 0 { *acc } else { *c + acc };
            }
        }
    }
}
