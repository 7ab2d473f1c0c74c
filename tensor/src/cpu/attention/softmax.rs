//! The online softmax of a strip of rows, one a lane, over tiles of keys.
//!
//! What a strip took in is a [`State`] in one slice: rows of `width` lanes that hold the largest score, the sum of
//! e^(score - largest) and, one a row, the elements of the output, weighted likewise. States of any parts of the keys are
//! merged; a tile's bits and its merging depend on the tile alone.

use super::{Attention, Block, Tile};
use crate::cpu::math::{exp_or_zero, log};
use crate::cpu::simd;
use std::ops::Range;

/// The widest strip of any micro-kernel.
const WIDEST: usize = 32;

/// Rows of a state before those of the output.
pub(super) const STATS: usize = 2;

/// Which keys of their segment the rows of a strip see. Both ends grow with the row.
pub(super) struct Strip {
    from: [usize; WIDEST],
    to: [usize; WIDEST],
}

impl Strip {
    /// The `width` rows of the block from `first` on; lanes past the last do as that does.
    pub(super) fn new(a: &Attention, block: &Block, first: usize, width: usize) -> Self {
        let last = block.rows.end.min(first + width) - 1;
        let seen = |lane: usize| a.seen(&block.segment, last.min(first + lane));
        Strip { from: std::array::from_fn(|lane| seen(lane).start), to: std::array::from_fn(|lane| seen(lane).end) }
    }

    /// The keys that some row sees, counted from the tile's first.
    pub(super) fn seen(&self, tile: &Tile) -> Range<usize> {
        let clamp = |key: usize| key.clamp(tile.keys.start, tile.keys.end) - tile.keys.start;
        clamp(self.from[0])..clamp(self.to[WIDEST - 1])
    }
}

simd! {
    /// Products `[key][lane]`, of keys from `first` on, become e^(score - largest), where score = product * scale and hidden
    /// keys have none; the largest and the sums go to `state`.
    pub(super) fn softmax(
        width: usize, products: &mut [f32], first: usize, scale: f32, strip: &Strip, state: &mut [f32],
    ) {
        match width {
            32 => softmax_of::<32>(products, first, scale, strip, state),
            _ => softmax_of::<16>(products, first, scale, strip, state),
        }
    }

    /// Products `[key][lane]`, of keys from `first` on, that a lane does not see become such that their scores are -inf.
    pub(super) fn hide(width: usize, products: &mut [f32], first: usize, scale: f32, strip: &Strip) {
        match width {
            32 => hide_of::<32>(products.as_chunks_mut().0, first, scale, strip),
            _ => hide_of::<16>(products.as_chunks_mut().0, first, scale, strip),
        }
    }

    /// The state so far takes in that of the next keys.
    pub(super) fn merge(width: usize, state: &mut [f32], next: &[f32]) {
        let (mut keep, mut take) = ([0.0; WIDEST], [0.0; WIDEST]);
        let (stats, out) = state.split_at_mut(STATS * width);
        let (next_stats, next_out) = next.split_at(STATS * width);
        let ((max, sum), (next_max, next_sum)) = (stats.split_at_mut(width), next_stats.split_at(width));
        for i in 0..width {
            let top = if next_max[i] > max[i] { next_max[i] } else { max[i] };
            keep[i] = exp_or_zero(max[i] - finite(top));
            take[i] = exp_or_zero(next_max[i] - finite(top));
            max[i] = top;
            sum[i] = next_sum[i].mul_add(take[i], sum[i] * keep[i]);
        }
        let (keep, take) = (&keep[..width], &take[..width]);
        for (out, next) in out.chunks_exact_mut(width).zip(next_out.chunks_exact(width)) {
            for ((out, next), (keep, take)) in out.iter_mut().zip(next).zip(keep.iter().zip(take)) {
                *out = next.mul_add(*take, *out * keep);
            }
        }
    }

    /// When all keys were seen: divides the output by the sum (rows that saw nothing stay zero) and turns the largest score
    /// into the log of the sum of e^score.
    pub(super) fn finish(width: usize, state: &mut [f32]) {
        let mut factor = [0.0; WIDEST];
        let (stats, out) = state.split_at_mut(STATS * width);
        let (max, sum) = stats.split_at_mut(width);
        for i in 0..width {
            factor[i] = if sum[i] == 0.0 { 0.0 } else { 1.0 / sum[i] };
            max[i] += log(sum[i]);
        }
        for out in out.chunks_exact_mut(width) {
            out.iter_mut().zip(&factor[..width]).for_each(|(x, factor)| *x *= factor);
        }
    }
}

/// A state that saw no keys.
pub(super) fn clear(width: usize, state: &mut [f32]) {
    let (max, rest) = state.split_at_mut(width);
    max.fill(f32::NEG_INFINITY);
    rest.fill(0.0);
}

/// What is subtracted from scores: a row that saw nothing takes any finite number, to give zeros.
#[inline(always)]
fn finite(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

#[inline(always)]
fn softmax_of<const W: usize>(products: &mut [f32], first: usize, scale: f32, strip: &Strip, state: &mut [f32]) {
    let rows = products.as_chunks_mut::<W>().0;
    hide_of(rows, first, scale, strip);
    let mut top = [f32::NEG_INFINITY; W];
    for row in rows.iter() {
        for (top, x) in top.iter_mut().zip(row) {
            let score = *x * scale;
            *top = if score > *top { score } else { *top };
        }
    }
    let shift = top.map(finite);
    let mut sum = [0.0; W];
    for row in rows.iter_mut() {
        for i in 0..W {
            row[i] = exp_or_zero(row[i].mul_add(scale, -shift[i]));
            sum[i] += row[i];
        }
    }
    state[..W].copy_from_slice(&top);
    state[W..2 * W].copy_from_slice(&sum);
}

#[inline(always)]
fn hide_of<const W: usize>(rows: &mut [[f32; W]], first: usize, scale: f32, strip: &Strip) {
    if strip.from[W - 1] <= first && first + rows.len() <= strip.to[0] {
        return;
    }
    let hidden = if scale < 0.0 { f32::INFINITY } else { f32::NEG_INFINITY };
    let clamp = |key: usize| key.saturating_sub(first).min(rows.len()) as u32;
    let (mut start, mut end) = ([0; W], [0; W]);
    for i in 0..W {
        (start[i], end[i]) = (clamp(strip.from[i]), clamp(strip.to[i]));
    }
    for (key, row) in (0..).zip(rows.iter_mut()) {
        for i in 0..W {
            row[i] = if start[i] <= key && key < end[i] { row[i] } else { hidden };
        }
    }
}
