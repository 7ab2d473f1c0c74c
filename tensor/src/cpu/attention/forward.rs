//! The forward pass. Keys and values are packed once, a tile at a time. Then a task takes a block of rows and walks over
//! the tiles that they see. Rows are lanes: scores are `[key][row]`, so that the softmax of a row runs down a column, and
//! the exponentials lie as the product with the values reads them.

use super::tiles::{Tiles, by_column, by_row};
use super::{Attention, Block, Segment, Tile};
use crate::cpu::gemm::{Kernel, Shape, interleave, pack_lanes};
use crate::cpu::math::{exp_or_zero, log};
use crate::cpu::shared::Shared;
use crate::cpu::{Cpu, simd};
use crate::{Error, Float, Result};

/// Keys a tile: whole panels of every micro-kernel (14, 6 and 4 rows).
const KEYS: usize = 168;

/// Rows a task: whole strips of every micro-kernel (32 and 16 columns).
const ROWS: usize = 128;

/// The widest strip of any micro-kernel.
const WIDEST: usize = 32;

/// out `[tq, heads, d]` and lse `[tq, heads]` (the log of the sum of e^score, for [`super::backward`]) from
/// q `[tq, heads, d]` and k, v `[tkv, kv_heads, d]`. Queries that see nothing, or are in no segment, give
/// zeros and -inf.
///
/// # Errors
/// When sizes do not fit, a segment lies outside, or the segments' queries are not in ascending order.
#[allow(clippy::too_many_arguments)]
pub fn forward<T: Float>(
    cpu: &Cpu,
    attention: &Attention,
    segments: &[Segment],
    q: &[T],
    k: &[T],
    v: &[T],
    out: &mut [T],
    lse: &mut [f32],
) -> Result<()> {
    let (tq, _) = attention.check(segments, q.len(), k.len(), v.len())?;
    if out.len() != q.len() || lse.len() != tq * attention.heads {
        let detail = format!("out and lse of {}, {} elements for q of {}", out.len(), lse.len(), q.len());
        return Err(Error::shape("attention", detail));
    }
    for gap in attention.gaps(segments, tq) {
        out[gap.start * attention.head_dim..gap.end * attention.head_dim].fill(T::from_f32(0.0));
        lse[gap].fill(f32::NEG_INFINITY);
    }
    let (kernel, d) = (Kernel::new(cpu.simd()), attention.head_dim);
    let tiles = Tiles::new(attention, segments, KEYS, kernel.mr, d + d.next_multiple_of(kernel.mr));
    let seen = tiles.seen(attention, segments);
    let blocks = attention.blocks(segments, |_| ROWS);
    let mut packed = cpu.scratch(tiles.floats());
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    cpu.enter(|| {
        let places = Shared::new(&mut packed);
        cpu.run(seen.len(), |task| {
            let place = tiles.place(&seen[task]);
            // SAFETY: the places of tiles are disjoint, and each is one task's.
            pack(cpu, attention, &seen[task], k, v, unsafe { places.slice(place.start, place.len()) });
        });
        cpu.run(blocks.len(), |task| forward_block(cpu, attention, &blocks[task], q, &tiles, &packed, &out, &lse));
    });
    Ok(())
}

/// Packs a tile: keys as lanes of the left-hand operand, then columns of values as such.
fn pack<T: Float>(cpu: &Cpu, a: &Attention, tile: &Tile, k: &[T], v: &[T], out: &mut [f32]) {
    let (mr, d, n, simd) = (Kernel::new(cpu.simd()).mr, a.head_dim, tile.keys.len(), cpu.simd());
    let mut rows = cpu.scratch(n * d);
    let (keys, values) = out.split_at_mut(n.next_multiple_of(mr) * d);
    a.gather_keys(simd, tile, k, &mut rows);
    pack_lanes(simd, by_row(&rows, d), 0..n, 0..d, mr, keys);
    a.gather_keys(simd, tile, v, &mut rows);
    pack_lanes(simd, by_column(&rows, d), 0..d, 0..n, mr, values);
}

#[allow(clippy::too_many_arguments)]
fn forward_block<T: Float>(
    cpu: &Cpu,
    a: &Attention,
    block: &Block,
    q: &[T],
    tiles: &Tiles,
    packed: &[f32],
    out: &Shared<T>,
    lse: &Shared,
) {
    let (kernel, simd, d) = (Kernel::new(cpu.simd()), cpu.simd(), a.head_dim);
    let (width, deep) = (kernel.nr, d.next_multiple_of(kernel.mr));
    let (rows, wide) = (block.rows.len(), block.rows.len().next_multiple_of(kernel.nr));
    let mut scores = cpu.scratch((KEYS + kernel.mr) * width);
    let mut queries = cpu.scratch(wide * d);
    let mut gathered = cpu.scratch(wide * d);
    let mut acc = cpu.scratch(wide * deep);
    a.gather_rows(simd, block, q, &mut gathered);
    pack_lanes(simd, by_row(&gathered, d), 0..rows, 0..d, width, &mut queries);
    acc.fill(0.0);

    let firsts = block.rows.clone().step_by(width);
    let mut strips: Vec<Strip> = firsts.map(|first| Strip::new(a, block, first)).collect();
    for number in a.tiles(&block.segment, &block.rows, KEYS) {
        let tile = tiles.tile(block.index, block.segment, block.kv_head, number);
        let n = tile.keys.len();
        let (keys, values) = packed[tiles.place(&tile)].split_at(n.next_multiple_of(kernel.mr) * d);
        let operands = queries.chunks_exact(width * d).zip(acc.chunks_exact_mut(width * deep));
        for (strip, (q, acc)) in strips.iter_mut().zip(operands) {
            // The keys that some row sees, from a whole panel on.
            let start = strip.from[0].max(tile.keys.start) - tile.keys.start;
            let end = strip.to[width - 1].min(tile.keys.end).saturating_sub(tile.keys.start);
            let start = start / kernel.mr * kernel.mr;
            if start >= end {
                continue;
            }
            let padded = (end - start).next_multiple_of(kernel.mr);
            let score = Shape { m: padded, n: width, k: d, alpha: a.scale, add: false };
            kernel.multiply(score, &keys[start * d..], q, &mut scores, width);
            let scores = &mut scores[..(end - start) * width];
            softmax(simd, width, scores, tile.keys.start + start, strip);
            rescale(simd, width, acc, &strip.factor);
            let weighted = Shape { m: kernel.mr, n: width, k: end - start, alpha: 1.0, add: true };
            let panels = values.chunks_exact(n * kernel.mr).zip(acc.chunks_exact_mut(kernel.mr * width));
            for (values, acc) in panels {
                kernel.multiply(weighted, &values[start * kernel.mr..], scores, acc, width);
            }
        }
    }
    for (i, (strip, acc)) in strips.iter_mut().zip(acc.chunks_exact_mut(width * deep)).enumerate() {
        let gathered = &mut gathered[..width * d];
        finish(simd, strip);
        rescale(simd, width, acc, &strip.factor);
        interleave(simd, acc, width, d, d, gathered);
        let rows = block.rows.start + i * width..block.rows.end.min(block.rows.start + (i + 1) * width);
        for (lane, row) in rows.enumerate() {
            let at = a.q_at(block, row);
            // SAFETY: queries of segments are disjoint (`check`), so this head of this query is this task's alone.
            unsafe {
                T::narrow(simd, &gathered[lane * d..(lane + 1) * d], out.slice(at, d));
                lse.slice(at / d, 1)[0] = strip.max[lane];
            }
        }
    }
}

/// The running softmax of some rows, one a lane: which keys each sees, its largest score so far, and the sum of its
/// exponentials.
struct Strip {
    from: [usize; WIDEST],
    to: [usize; WIDEST],
    max: [f32; WIDEST],
    sum: [f32; WIDEST],
    /// What the row so far is to be multiplied by; last, one over its sum.
    factor: [f32; WIDEST],
}

impl Strip {
    /// The rows of the block from `first` on; lanes past the last do as that does.
    fn new(a: &Attention, block: &Block, first: usize) -> Self {
        let seen = |lane: usize| a.seen(&block.segment, (first + lane).min(block.rows.end - 1));
        Strip {
            from: std::array::from_fn(|lane| seen(lane).start),
            to: std::array::from_fn(|lane| seen(lane).end),
            max: [f32::NEG_INFINITY; WIDEST],
            sum: [0.0; WIDEST],
            factor: [1.0; WIDEST],
        }
    }
}

simd! {
    /// Scores `[key][lane]`, of keys from `first` on, become e^(score - largest so far), and the strip takes them in.
    fn softmax(width: usize, scores: &mut [f32], first: usize, strip: &mut Strip) {
        match width {
            32 => softmax_lanes::<32>(scores, first, strip),
            _ => softmax_lanes::<16>(scores, first, strip),
        }
    }

    /// Multiplies the rows of `acc`, lane by lane.
    fn rescale(width: usize, acc: &mut [f32], factor: &[f32; WIDEST]) {
        let factor = &factor[..width];
        if factor.iter().any(|x| *x != 1.0) {
            for row in acc.chunks_exact_mut(width) {
                row.iter_mut().zip(factor).for_each(|(x, factor)| *x *= factor);
            }
        }
    }

    /// When all keys were seen: the factor becomes one over the sum (0 for rows that saw nothing), the maximum the log of
    /// the sum of e^score.
    fn finish(strip: &mut Strip) {
        for i in 0..WIDEST {
            strip.factor[i] = if strip.sum[i] == 0.0 { 0.0 } else { 1.0 / strip.sum[i] };
            strip.max[i] += log(strip.sum[i]);
        }
    }
}

#[inline(always)]
fn softmax_lanes<const W: usize>(scores: &mut [f32], first: usize, strip: &mut Strip) {
    let scores = scores.as_chunks_mut::<W>().0;
    let Strip { from, to, max, sum, factor } = strip;
    if from[W - 1] > first || to[0] < first + scores.len() {
        hide::<W>(scores, first, from, to);
    }
    let mut top = [0.0; W];
    top.copy_from_slice(&max[..W]);
    for row in scores.iter() {
        for (top, x) in top.iter_mut().zip(row) {
            *top = if *x > *top { *x } else { *top };
        }
    }
    let (mut keep, mut shift) = ([0.0; W], [0.0; W]);
    for i in 0..W {
        // A row that saw nothing yet takes any finite number, to give zeros.
        shift[i] = if top[i] == f32::NEG_INFINITY { 0.0 } else { top[i] };
        keep[i] = exp_or_zero(max[i] - shift[i]);
    }
    let mut total = [0.0; W];
    for row in scores.iter_mut() {
        for i in 0..W {
            row[i] = exp_or_zero(row[i] - shift[i]);
            total[i] += row[i];
        }
    }
    for i in 0..W {
        sum[i] = sum[i].mul_add(keep[i], total[i]);
        max[i] = top[i];
        factor[i] = keep[i];
    }
}

/// Hides the scores of keys that a lane does not see.
#[inline(always)]
fn hide<const W: usize>(scores: &mut [[f32; W]], first: usize, from: &[usize], to: &[usize]) {
    let clamp = |key: usize| key.saturating_sub(first).min(scores.len()) as u32;
    let (mut start, mut end) = ([0; W], [0; W]);
    for i in 0..W {
        (start[i], end[i]) = (clamp(from[i]), clamp(to[i]));
    }
    for (key, row) in (0..).zip(scores.iter_mut()) {
        for i in 0..W {
            row[i] = if start[i] <= key && key < end[i] { row[i] } else { f32::NEG_INFINITY };
        }
    }
}
