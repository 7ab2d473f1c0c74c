//! The forward pass: one task a block of queries and key head, which walks over the tiles of keys.

use super::{Attention, Block, KV_TILE, Segment};
use crate::cpu::gemm::{Elems, Kernel, Lanes, Shape, pack_lanes};
use crate::cpu::math::{exp, log};
use crate::cpu::reduce::{fold, larger};
use crate::cpu::shared::Shared;
use crate::cpu::{Cpu, simd};
use crate::{Error, Result};

/// Partial maxima or sums of a row. They pass through memory, which keeps the compiler from pulling the
/// vector loop over the row apart for the sake of the fold that follows.
const LANES: usize = 16;

simd! {
    /// Hides what is outside of `bounds`, then takes the maxima of each row's columns modulo LANES.
    fn mask_and_max(scores: &mut [f32], bounds: &[[u32; 2]], lanes: &mut [f32]) {
        let rows = scores.as_chunks_mut::<KV_TILE>().0.iter_mut().zip(bounds);
        for ((row, bounds), lanes) in rows.zip(lanes.as_chunks_mut::<LANES>().0) {
            hide(row, *bounds, f32::NEG_INFINITY);
            let mut acc = [f32::NEG_INFINITY; LANES];
            for part in row.as_chunks::<LANES>().0 {
                for (acc, x) in acc.iter_mut().zip(part) {
                    *acc = larger(*acc, *x);
                }
            }
            *lanes = acc;
        }
    }

    /// Raises each row's maximum to that of its lanes; `keep` is the factor of what was summed before.
    fn raise_max(lanes: &[f32], max: &mut [f32], keep: &mut [f32]) {
        for (lanes, (max, keep)) in lanes.as_chunks::<LANES>().0.iter().zip(max.iter_mut().zip(keep)) {
            let new = larger(*max, fold(*lanes, larger));
            *keep = exp(*max - shift(new));
            *max = new;
        }
    }

    /// Scores become e^(score - maximum), `lanes` their sums modulo LANES; the rows of `out` are rescaled.
    fn exponentials(
        scores: &mut [f32], max: &[f32], keep: &[f32], lanes: &mut [f32], out: &mut [f32], d: usize,
    ) {
        let rows = scores.as_chunks_mut::<KV_TILE>().0.iter_mut().zip(lanes.as_chunks_mut::<LANES>().0);
        for (((row, lanes), out), (max, keep)) in rows.zip(out.chunks_exact_mut(d)).zip(max.iter().zip(keep)) {
            let shift = shift(*max);
            let mut acc = [0.0; LANES];
            for part in row.as_chunks_mut::<LANES>().0 {
                for (acc, x) in acc.iter_mut().zip(part) {
                    *x = exp(*x - shift);
                    *acc += *x;
                }
            }
            *lanes = acc;
            if *keep != 1.0 {
                out.iter_mut().for_each(|x| *x *= keep);
            }
        }
    }

    /// Adds the lanes of each row to its rescaled sum.
    fn add_sums(lanes: &[f32], keep: &[f32], sum: &mut [f32]) {
        for (lanes, (sum, keep)) in lanes.as_chunks::<LANES>().0.iter().zip(sum.iter_mut().zip(keep)) {
            *sum = sum.mul_add(*keep, fold(*lanes, |a, b| a + b));
        }
    }

    /// Divides the rows of `out` by their sums (rows that saw nothing stay zero) and turns `max` into the
    /// log of the sum of e^score.
    fn finish(out: &mut [f32], max: &mut [f32], sum: &[f32], d: usize) {
        for ((out, max), sum) in out.chunks_exact_mut(d).zip(max).zip(sum) {
            let inverse = if *sum == 0.0 { 0.0 } else { 1.0 / *sum };
            out.iter_mut().for_each(|x| *x *= inverse);
            *max += log(*sum);
        }
    }
}

/// What is subtracted from scores: a row that saw nothing yet takes any finite number, to give zeros.
#[inline(always)]
fn shift(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// Sets the columns of `row` outside of `bounds` to `value`.
#[inline(always)]
pub(super) fn hide(row: &mut [f32; KV_TILE], bounds: [u32; 2], value: f32) {
    let [from, to] = bounds;
    if from > 0 || to < KV_TILE as u32 {
        for (i, x) in row.iter_mut().enumerate() {
            *x = if (i as u32) < from || (i as u32) >= to { value } else { *x };
        }
    }
}

/// out `[tq, heads, d]` and lse `[tq, heads]` (the log of the sum of e^score, for [`super::backward`]) from
/// q `[tq, heads, d]` and k, v `[tkv, kv_heads, d]`. Queries that see nothing, or are in no segment, give
/// zeros and -inf.
///
/// # Errors
/// When sizes do not fit, a segment lies outside, or the segments' queries are not in ascending order.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    cpu: &Cpu,
    attention: &Attention,
    segments: &[Segment],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) -> Result<()> {
    let (tq, _) = attention.check(segments, q.len(), k.len(), v.len())?;
    if out.len() != q.len() || lse.len() != tq * attention.heads {
        let detail = format!("out and lse of {}, {} elements for q of {}", out.len(), lse.len(), q.len());
        return Err(Error::shape("attention", detail));
    }
    out.fill(0.0);
    lse.fill(f32::NEG_INFINITY);
    let blocks = attention.blocks(segments, |_| attention.block_len());
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    cpu.run(blocks.len(), |task| forward_block(cpu, attention, blocks[task], [q, k, v], &out, &lse));
    Ok(())
}

fn forward_block(cpu: &Cpu, a: &Attention, block: Block, [q, k, v]: [&[f32]; 3], out: &Shared, lse: &Shared) {
    let (kernel, simd, d) = (Kernel::new(cpu.simd()), cpu.simd(), a.head_dim);
    let rows = block.len * a.group();
    let (padded, wide) = (rows.next_multiple_of(kernel.mr), d.next_multiple_of(kernel.nr));
    let mut queries = cpu.scratch(padded * d);
    let mut scores = cpu.scratch(rows * KV_TILE);
    let mut panels = cpu.scratch(padded * KV_TILE);
    let (mut keys, mut values) = (cpu.scratch(KV_TILE * d), cpu.scratch(KV_TILE * wide));
    let mut acc = cpu.scratch(rows * d);
    let (mut max, mut sum) = (cpu.scratch(rows), cpu.scratch(rows));
    let (mut keep, mut lanes) = (cpu.scratch(rows), cpu.scratch(rows * LANES));
    let mut bounds = Vec::with_capacity(rows);

    a.gather(block, q, &mut acc);
    pack_lanes(
        simd,
        Lanes { data: Elems::F32(&acc), lane_stride: d, k_stride: 1 },
        0..rows,
        0..d,
        kernel.mr,
        &mut queries,
    );
    acc.fill(0.0);
    max.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    for tile in a.tiles(block) {
        let n = tile.keys.len();
        let first = tile.rows.start / kernel.mr * kernel.mr;
        let m = tile.rows.end - first;
        let at = a.kv_at(block, tile.keys.start);
        let by_key = Lanes { data: Elems::F32(&k[at..]), lane_stride: a.kv_stride(), k_stride: 1 };
        pack_lanes(simd, by_key, 0..n, 0..d, kernel.nr, &mut keys);
        let by_column = Lanes { data: Elems::F32(&v[at..]), lane_stride: 1, k_stride: a.kv_stride() };
        pack_lanes(simd, by_column, 0..d, 0..n, kernel.nr, &mut values);

        let score = Shape { m, n, k: d, alpha: a.scale, add: false };
        kernel.multiply(score, &queries[first * d..], &keys, &mut scores, KV_TILE);
        a.bounds(block, &tile, first..tile.rows.end, &mut bounds);
        let (max, sum) = (&mut max[first..], &mut sum[first..]);
        let scores = &mut scores[..m * KV_TILE];
        mask_and_max(simd, scores, &bounds, &mut lanes);
        raise_max(simd, &lanes[..m * LANES], max, &mut keep);
        exponentials(simd, scores, max, &keep, &mut lanes, &mut acc[first * d..], d);
        add_sums(simd, &lanes[..m * LANES], &keep, sum);
        let by_row = Lanes { data: Elems::F32(scores), lane_stride: KV_TILE, k_stride: 1 };
        pack_lanes(simd, by_row, 0..m, 0..n, kernel.mr, &mut panels);
        let weighted = Shape { m, n: d, k: n, alpha: 1.0, add: true };
        kernel.multiply(weighted, &panels, &values, &mut acc[first * d..], d);
    }
    finish(simd, &mut acc, &mut max, &sum, d);
    for (i, (row, max)) in acc.chunks_exact(a.group() * d).zip(max.chunks_exact(a.group())).enumerate() {
        let at = a.q_at(block, i);
        // SAFETY: queries of segments are disjoint (`check`), so these heads of this query are this task's alone.
        unsafe {
            out.slice(at, row.len()).copy_from_slice(row);
            lse.slice(at / d, max.len()).copy_from_slice(max);
        }
    }
}
