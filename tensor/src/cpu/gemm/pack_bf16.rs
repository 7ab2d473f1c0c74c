//! Operands as the micro-kernels of bf16 read them: pairs, or groups, of steps along k beside each other.

use std::ops::Range;

use half::bf16;

use super::Elems;
use super::pack::{AHEAD, Lanes};
use super::words::Words;
use crate::cpu::{Simd, fetch, simd, span};
use crate::dtype::Element as _;

/// Steps along k that are rounded at a time before they are interleaved.
const DEPTH: usize = 64;
/// The widest panel or strip of any kernel.
const MAX_WIDTH: usize = 32;

/// The layout of packed lanes: `[strip][step / group][lane][step % group]`.
#[derive(Clone, Copy)]
pub(crate) struct Strips {
    /// Lanes of a strip.
    pub(crate) width: usize,
    /// Steps that lie together in a lane.
    pub(crate) group: usize,
    /// Steps of a strip, a whole number of groups.
    pub(crate) depth: usize,
}

/// Writes lanes in strips, rounded to bf16 where the operand is of another type, with zeros past the last lane and from k's end to a
/// strip's.
pub(crate) fn pack_lanes_bf16(
    simd: Simd,
    x: Lanes,
    lanes: Range<usize>,
    k: Range<usize>,
    Strips { width, group, depth }: Strips,
    out: &mut [bf16],
) {
    if k.is_empty() || lanes.is_empty() {
        return;
    }
    let at = |lane: usize| lane * x.lane_stride + k.start * x.k_stride;
    let out = &mut out[..lanes.len().next_multiple_of(width) * depth];
    if let (Elems::Bf16(data), 1, 2) = (x.data, x.lane_stride, group) {
        let steps = Steps { data: &data[at(lanes.start)..], stride: x.k_stride, lanes: lanes.len(), len: k.len() };
        return steps.pack_pairs(simd, width, depth, out);
    }
    for (first, out) in lanes.clone().step_by(width).zip(out.chunks_exact_mut(width * depth)) {
        let here = width.min(lanes.end - first);
        let (out, past_end) = out.split_at_mut(k.len().next_multiple_of(group) * width);
        past_end.fill(bf16::ZERO);
        match x.data {
            Elems::Bf16(data) if x.k_stride == 1 => {
                let rows = Rows { data: &data[at(first)..], stride: x.lane_stride, lanes: here, len: k.len() };
                rows.pack(simd, [width, group], out);
            }
            Elems::Bf16(data) if x.lane_stride == 1 => {
                let steps = Steps { data: &data[at(first)..], stride: x.k_stride, lanes: here, len: k.len() };
                steps.pack(simd, [width, group], out);
            }
            _ => pack_rounded(simd, x, at(first), here, k.len(), [width, group], out),
        }
    }
}

/// One strip of lanes whose steps lie apart or must be rounded: first a tile of them as bf16 lanes, then that tile.
fn pack_rounded(
    simd: Simd,
    x: Lanes,
    at: usize,
    lanes: usize,
    len: usize,
    [width, group]: [usize; 2],
    out: &mut [bf16],
) {
    let mut tile = [bf16::ZERO; MAX_WIDTH * DEPTH];
    for (i, out) in out.chunks_mut(DEPTH * width).enumerate() {
        let (at, len) = (at + i * DEPTH * x.k_stride, DEPTH.min(len - i * DEPTH));
        if x.lane_stride == 1 {
            for (kk, row) in tile.chunks_exact_mut(width).enumerate().take(len) {
                x.data.round_into(simd, at + kk * x.k_stride, 1, &mut row[..lanes]);
            }
            Steps { data: &tile, stride: width, lanes, len }.pack(simd, [width, group], out);
        } else {
            for (lane, row) in tile.chunks_exact_mut(DEPTH).enumerate().take(lanes) {
                x.data.round_into(simd, at + lane * x.lane_stride, x.k_stride, &mut row[..len]);
            }
            Rows { data: &tile, stride: DEPTH, lanes, len }.pack(simd, [width, group], out);
        }
    }
}

/// One strip of pairs from decoded columns: `out[kk / 2][lane][kk % 2] = columns[lane * stride + kk]` for `[lanes, len]` of them, with
/// zeros in lanes from `lanes` to `width` and past an odd last step. A decoder of quantised columns calls this from its
/// [`super::Panels::pack_bf16`].
///
/// # Panics
/// When `columns` is too short, `lanes > width` or `out` is not `len` steps long, rounded up to pairs.
pub fn pair_columns(
    simd: Simd,
    columns: &[bf16],
    stride: usize,
    [lanes, len]: [usize; 2],
    width: usize,
    out: &mut [bf16],
) {
    Rows { data: columns, stride, lanes, len }.pack(simd, [width, 2], out);
}

/// As [`pair_columns`], from decoded rows: `out[kk / 2][lane][kk % 2] = rows[kk * stride + lane]`.
///
/// # Panics
/// As [`pair_columns`].
pub fn pair_rows(simd: Simd, rows: &[bf16], stride: usize, [lanes, len]: [usize; 2], width: usize, out: &mut [bf16]) {
    Steps { data: rows, stride, lanes, len }.pack(simd, [width, 2], out);
}

/// Panics unless `rows` runs of `run` elements, `stride` apart, lie within `held`, `lanes` fit `width`, and `out` has exactly the elements
/// of a strip of `len` steps; whatever the numbers are.
fn check([rows, stride, run, held]: [usize; 4], [lanes, len]: [usize; 2], [width, group]: [usize; 2], out: usize) {
    let is_empty = lanes == 0 || len == 0;
    assert!(is_empty || span(rows, stride, run).is_some_and(|needed| needed <= held), "pack: operand too short");
    let strip = len.checked_next_multiple_of(group).and_then(|depth| depth.checked_mul(width));
    assert!(lanes <= width && strip == Some(out), "pack: {lanes} lanes of {width}, {len} steps, into {out}");
}

/// Lanes whose steps are contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [bf16],
    /// From a lane to the next.
    pub(crate) stride: usize,
    pub(crate) lanes: usize,
    /// Steps along k.
    pub(crate) len: usize,
}

impl Rows<'_> {
    /// One strip: `out[kk / group][lane][kk % group]`.
    pub(crate) fn pack(self, simd: Simd, [width, group]: [usize; 2], out: &mut [bf16]) {
        let Rows { data, stride, lanes, len } = self;
        check([lanes, stride, len, data.len()], [lanes, len], [width, group], out.len());
        if group == 2 {
            let whole = Words { start: data.as_ptr().cast(), stride: 2 * stride, lanes, len: len / 2 };
            // SAFETY: each lane holds len / 2 pairs, and `out` as many rows of `width` (asserted).
            unsafe { whole.transpose(simd, width, out.as_mut_ptr().cast()) };
            if len % 2 == 1 {
                let last = &mut out[(len - 1) * width..];
                last.fill(bf16::ZERO);
                (0..lanes).for_each(|lane| last[2 * lane] = data[lane * stride + len - 1]);
            }
            return;
        }
        for (i, out) in out.chunks_exact_mut(group * width).enumerate() {
            let (first, here) = (i * group, group.min(len - i * group));
            if let (MAX_GROUP, MAX_GROUP) = (group, here) {
                for (lane, out) in out.as_chunks_mut::<MAX_GROUP>().0.iter_mut().enumerate().take(lanes) {
                    *out = *data[lane * stride + first..].first_chunk().expect("asserted above");
                }
                out[lanes * group..].fill(bf16::ZERO);
                continue;
            }
            for (lane, out) in out.chunks_exact_mut(group).enumerate() {
                let filled = if lane < lanes { here } else { 0 };
                if filled > 0 {
                    out[..filled].copy_from_slice(&data[lane * stride + first..][..filled]);
                }
                out[filled..].fill(bf16::ZERO);
            }
        }
    }
}

/// Steps whose lanes are contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Steps<'a> {
    pub(crate) data: &'a [bf16],
    /// From a step to the next.
    pub(crate) stride: usize,
    pub(crate) lanes: usize,
    /// Steps along k.
    pub(crate) len: usize,
}

impl Steps<'_> {
    /// Strips of pairs, `depth` steps long, with zeros past the last lane and the last step. All strips take a pair of steps before the
    /// next: a row's lines then come one after the other, which a CPU fetches ahead, and single lines of many rows it does not.
    fn pack_pairs(self, simd: Simd, width: usize, depth: usize, out: &mut [bf16]) {
        let Steps { data, stride, lanes, len } = self;
        check([len, stride, lanes, data.len()], [lanes, depth], [lanes.next_multiple_of(width), 2], out.len());
        assert!(len <= depth && depth.is_multiple_of(2), "pack: {len} steps into strips of {depth}");
        zip_steps(simd, self, width, depth, out);
    }

    /// One strip: `out[kk / group][lane][kk % group]`.
    pub(crate) fn pack(self, simd: Simd, [width, group]: [usize; 2], out: &mut [bf16]) {
        let Steps { data, stride, lanes, len } = self;
        check([len, stride, lanes, data.len()], [lanes, len], [width, group], out.len());
        if group == 2 {
            return self.pack_pairs(simd, width, len.next_multiple_of(2), out);
        }
        // Pairs first, [pair][lane], which are words; then words along k for each lane.
        let mut pairs = [bf16::ZERO; MAX_WIDTH * MAX_GROUP];
        let pairs = &mut pairs[..group * width];
        for (i, out) in out.chunks_exact_mut(group * width).enumerate() {
            let first = i * group;
            let steps = Steps { data: &data[first * stride..], len: group.min(len - first), ..self };
            zip_steps(simd, steps, width, group, pairs);
            let words = Words { start: pairs.as_ptr().cast(), stride: 4 * width, lanes: group / 2, len: width };
            // SAFETY: `pairs` has group / 2 rows of `width` words; `out` has `width` rows of group / 2 words.
            unsafe { words.transpose(simd, group / 2, out.as_mut_ptr().cast()) }
        }
    }
}

/// The largest group of any kernel.
const MAX_GROUP: usize = 32;

simd! {
    /// See [`Steps::pack_pairs`].
    fn zip_steps(x: Steps, width: usize, depth: usize, out: &mut [bf16]) {
        let row = |step: usize| if step < x.len { &x.data[step * x.stride..][..x.lanes] } else { &[] };
        for i in 0..depth / 2 {
            let (mut even, mut odd) = (row(2 * i), row(2 * i + 1));
            let ahead = [0, 1].map(|odd| x.data.as_ptr().wrapping_add((2 * i + odd + AHEAD) * x.stride));
            for (strip, first) in out.chunks_exact_mut(width * depth).zip((0..).step_by(width)) {
                ahead.iter().for_each(|row| fetch(row.wrapping_add(first)));
                let (here_even, here_odd);
                (here_even, even) = even.split_at(width.min(even.len()));
                (here_odd, odd) = odd.split_at(width.min(odd.len()));
                let out = &mut strip[2 * width * i..][..2 * width];
                match (here_even.as_array::<32>(), here_odd.as_array::<32>(), out.as_mut_array::<64>()) {
                    // The width of all our micro-kernels of bf16: two registers in, two out.
                    (Some(even), Some(odd), Some(out)) => zip(even, odd, out),
                    _ => zip_part(here_even, here_odd, out),
                }
            }
        }
    }
}

#[inline(always)]
fn zip(even: &[bf16; 32], odd: &[bf16; 32], out: &mut [bf16; 64]) {
    for i in 0..32 {
        out[2 * i] = even[i];
        out[2 * i + 1] = odd[i];
    }
}

/// As [`zip`] of any length, with zeros where a row ends before `out` does.
#[inline(always)]
fn zip_part(even: &[bf16], odd: &[bf16], out: &mut [bf16]) {
    for (i, pair) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *pair = [even, odd].map(|row| row.get(i).copied().unwrap_or(bf16::ZERO));
    }
}

impl Elems<'_> {
    /// Writes elements `at`, `at + stride`, .. rounded to the nearest bf16, ties to even.
    fn round_into(&self, simd: Simd, at: usize, stride: usize, out: &mut [bf16]) {
        match *self {
            Elems::Bf16(x) if stride == 1 => out.copy_from_slice(&x[at..at + out.len()]),
            Elems::Bf16(x) => out.iter_mut().enumerate().for_each(|(i, y)| *y = x[at + i * stride]),
            Elems::F32(x) if stride == 1 => bf16::narrow(simd, &x[at..at + out.len()], out),
            _ => {
                let mut wide = [0.0; DEPTH];
                for (i, out) in out.chunks_mut(DEPTH).enumerate() {
                    let wide = &mut wide[..out.len()];
                    self.widen_into(simd, at + i * DEPTH * stride, stride, wide);
                    bf16::narrow(simd, wide, out);
                }
            }
        }
    }
}
