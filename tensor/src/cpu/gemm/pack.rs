//! Operands as the micro-kernels read them: widened to f32, interleaved in strips.

use std::ops::Range;

use half::{bf16, f16};

use super::kernel::LINE;
use super::pack_bf16::{Strips, pack_lanes_bf16};
use super::rows::Stored;
use super::words::Words;
use super::{Columns, Elems, FewRows, Mat, Panels};
use crate::cpu::{Simd, fetch, simd, span};

/// A stored element that widens to f32 exactly, without branches.
pub(super) trait Element: Copy + Default + Sync {
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Element for f16 {
    /// The exponent is rebased by a product with 2^112, which also normalises denormals.
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let y = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(239 << 23);
        let special = if y >= 65_536.0 { 0x7f80_0000 } else { 0 };
        f32::from_bits(y.to_bits() | special | (bits & 0x8000) << 16)
    }
}

#[inline(always)]
fn widen_slice<T: Element>(x: &[T], out: &mut [f32]) {
    for (x, y) in x.iter().zip(out) {
        *y = x.widen();
    }
}

/// How many rows ahead of those that are packed are fetched.
pub(super) const AHEAD: usize = 24;

/// Rows of `lanes` neighbours, `stride` apart, into equally long strips of `width` lanes, the last filled up with zeros. All strips take
/// a row before the next: its lines then come one after the other.
#[inline(always)]
fn widen_rows<T: Element>(x: &[T], stride: usize, lanes: usize, width: usize, out: &mut [f32]) {
    // The widths of the micro-kernels, so that a full row is a few register moves.
    match width {
        4 => widen_rows_by::<T, 4>(x, stride, lanes, width, out),
        6 => widen_rows_by::<T, 6>(x, stride, lanes, width, out),
        8 => widen_rows_by::<T, 8>(x, stride, lanes, width, out),
        14 => widen_rows_by::<T, 14>(x, stride, lanes, width, out),
        16 => widen_rows_by::<T, 16>(x, stride, lanes, width, out),
        28 => widen_rows_by::<T, 28>(x, stride, lanes, width, out),
        32 => widen_rows_by::<T, 32>(x, stride, lanes, width, out),
        48 => widen_rows_by::<T, 48>(x, stride, lanes, width, out),
        _ => widen_rows_by::<T, { usize::MAX }>(x, stride, lanes, width, out),
    }
}

/// As [`widen_rows`], where strips of W lanes are fast.
#[inline(always)]
fn widen_rows_by<T: Element, const W: usize>(x: &[T], stride: usize, lanes: usize, width: usize, out: &mut [f32]) {
    let strip_len = out.len() / lanes.div_ceil(width).max(1);
    for kk in 0..strip_len / width {
        let mut row = &x[kk * stride..][..lanes];
        let ahead = x.as_ptr().wrapping_add((kk + AHEAD) * stride);
        for (strip, first) in out.chunks_exact_mut(strip_len).zip((0..).step_by(width)) {
            (0..width).step_by(LINE / size_of::<T>()).for_each(|at| fetch(ahead.wrapping_add(first + at)));
            let here;
            (here, row) = row.split_at(width.min(row.len()));
            let out = &mut strip[kk * width..][..width];
            if here.len() == W {
                widen_slice(&here[..W], &mut out[..W]);
            } else {
                let (head, tail) = out.split_at_mut(here.len());
                widen_slice(here, head);
                tail.fill(0.0);
            }
        }
    }
}

simd! {
    fn widen_bf16(x: &[bf16], out: &mut [f32]) { widen_slice(x, out); }
    fn widen_f16(x: &[f16], out: &mut [f32]) { widen_slice(x, out); }
    fn widen_rows_f32(x: &[f32], stride: usize, lanes: usize, width: usize, out: &mut [f32]) {
        widen_rows(x, stride, lanes, width, out);
    }
    fn widen_rows_bf16(x: &[bf16], stride: usize, lanes: usize, width: usize, out: &mut [f32]) {
        widen_rows(x, stride, lanes, width, out);
    }
    fn widen_rows_f16(x: &[f16], stride: usize, lanes: usize, width: usize, out: &mut [f32]) {
        widen_rows(x, stride, lanes, width, out);
    }
}

impl Elems<'_> {
    /// Writes elements `at`, `at + stride`, .. as f32.
    pub(super) fn widen_into(&self, simd: Simd, at: usize, stride: usize, out: &mut [f32]) {
        match (*self, stride) {
            (Elems::F32(x), 1) => out.copy_from_slice(&x[at..at + out.len()]),
            (Elems::Bf16(x), 1) => widen_bf16(simd, &x[at..at + out.len()], out),
            (Elems::F16(x), 1) => widen_f16(simd, &x[at..at + out.len()], out),
            _ => out.iter_mut().enumerate().for_each(|(i, y)| *y = self.get(at + i * stride)),
        }
    }

    fn get(&self, at: usize) -> f32 {
        match self {
            Elems::F32(x) => x[at],
            Elems::Bf16(x) => x[at].widen(),
            Elems::F16(x) => x[at].widen(),
        }
    }

    fn widen_rows(&self, simd: Simd, at: usize, stride: usize, lanes: usize, width: usize, out: &mut [f32]) {
        match *self {
            Elems::F32(x) => widen_rows_f32(simd, &x[at..], stride, lanes, width, out),
            Elems::Bf16(x) => widen_rows_bf16(simd, &x[at..], stride, lanes, width, out),
            Elems::F16(x) => widen_rows_f16(simd, &x[at..], stride, lanes, width, out),
        }
    }
}

/// An operand seen from the micro-kernel: lanes are the rows of A or the columns of B, k the common
/// dimension; element (lane, kk) is `data[lane * lane_stride + kk * k_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<'a> {
    pub(crate) data: Elems<'a>,
    pub(crate) lane_stride: usize,
    pub(crate) k_stride: usize,
}

/// Steps along k that are widened at a time before they are interleaved.
const DEPTH: usize = 64;
/// The widest strip of any kernel.
const MAX_WIDTH: usize = 48;

/// Writes `out[strip][kk][lane]` in strips of `width` lanes, with zeros past the last lane.
pub(crate) fn pack_lanes(simd: Simd, x: Lanes, lanes: Range<usize>, k: Range<usize>, width: usize, out: &mut [f32]) {
    if k.is_empty() || lanes.is_empty() {
        return;
    }
    let at = |lane: usize| lane * x.lane_stride + k.start * x.k_stride;
    let out = &mut out[..lanes.len().next_multiple_of(width) * k.len()];
    if x.lane_stride == 1 {
        return x.data.widen_rows(simd, at(lanes.start), x.k_stride, lanes.len(), width, out);
    }
    for (first, out) in lanes.clone().step_by(width).zip(out.chunks_exact_mut(k.len() * width)) {
        let here = width.min(lanes.end - first);
        if let (Elems::F32(data), 1) = (x.data, x.k_stride) {
            interleave(simd, &data[at(first)..], x.lane_stride, here, width, out);
        } else {
            pack_widened(simd, x, at(first), here, width, out);
        }
    }
}

/// One strip whose lanes must be widened or gathered before they can be interleaved.
fn pack_widened(simd: Simd, x: Lanes, at: usize, lanes: usize, width: usize, out: &mut [f32]) {
    let mut rows = [0.0; MAX_WIDTH * DEPTH];
    for (i, out) in out.chunks_mut(DEPTH * width).enumerate() {
        let depth = out.len() / width;
        for (lane, row) in rows.chunks_exact_mut(DEPTH).enumerate().take(lanes) {
            let at = at + lane * x.lane_stride + i * DEPTH * x.k_stride;
            x.data.widen_into(simd, at, x.k_stride, &mut row[..depth]);
        }
        interleave(simd, &rows, DEPTH, lanes, width, out);
    }
}

/// Transposes one strip: `out[kk][lane] = rows[lane * stride + kk]`, with zeros in lanes from `lanes` to
/// `width`. The depth is `out.len() / width`. A decoder of quantised columns writes them as rows, then
/// calls this from its [`Panels::pack`].
///
/// # Panics
/// When `rows` is too short, `lanes > width` or `out` is no whole number of steps.
pub fn interleave(simd: Simd, rows: &[f32], stride: usize, lanes: usize, width: usize, out: &mut [f32]) {
    let depth = out.len() / width;
    assert!(lanes <= width && out.len() == depth * width, "interleave: {lanes} lanes of {width}");
    let fits = span(lanes, stride, depth).is_some_and(|needed| needed <= rows.len());
    assert!(lanes == 0 || depth == 0 || fits, "interleave: rows too short");
    let words = Words { start: rows.as_ptr().cast(), stride: 4 * stride, lanes, len: depth };
    // SAFETY: each of the lanes holds `depth` floats and `out` that many rows of `width` (asserted above).
    unsafe { words.transpose(simd, width, out.as_mut_ptr().cast()) }
}

impl<'a> Mat<'a> {
    /// The matrix as a left-hand operand: lanes are rows.
    pub(super) fn row_lanes(&self) -> Lanes<'a> {
        Lanes { data: self.data, lane_stride: self.row_stride, k_stride: self.col_stride }
    }

    /// Writes row `i` as f32.
    pub(super) fn row_into(&self, simd: Simd, i: usize, out: &mut [f32]) {
        self.data.widen_into(simd, i * self.row_stride, self.col_stride, out);
    }
}

/// A dense matrix as right-hand operand B [k, n], in any strides: a weight stored [n, k] is
/// `Dense::new(simd, mat.transposed())`.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    mat: Mat<'a>,
    simd: Simd,
}

impl<'a> Dense<'a> {
    /// B = `mat`, packed with the instructions of `simd`.
    #[must_use]
    pub fn new(simd: Simd, mat: Mat<'a>) -> Self {
        Dense { mat, simd }
    }
}

impl Panels for Dense<'_> {
    fn k(&self) -> usize {
        self.mat.rows
    }

    fn n(&self) -> usize {
        self.mat.cols
    }

    fn pack(&self, k: Range<usize>, n: Range<usize>, nr: usize, out: &mut [f32]) {
        pack_lanes(self.simd, self.mat.transposed().row_lanes(), n, k, nr, out);
    }

    fn pack_bf16(&self, k: Range<usize>, n: Range<usize>, nr: usize, out: &mut [bf16]) {
        let strips = Strips { width: nr, group: 2, depth: out.len() / n.len().next_multiple_of(nr).max(1) };
        pack_lanes_bf16(self.simd, self.mat.transposed().row_lanes(), n, k, strips, out);
    }

    fn column(&self, n: usize, k: Range<usize>, out: &mut [f32]) {
        let Mat { data, row_stride, col_stride, .. } = self.mat;
        data.widen_into(self.simd, n * col_stride + k.start * row_stride, row_stride, &mut out[..k.len()]);
    }

    fn contiguous_column(&self, n: usize) -> Option<&[f32]> {
        let at = n * self.mat.col_stride;
        match self.mat.data {
            Elems::F32(x) if self.mat.row_stride == 1 => Some(&x[at..at + self.mat.rows]),
            _ => None,
        }
    }

    fn few_rows<'a>(&'a self, x: FewRows<'a>) -> Option<Box<dyn Columns + 'a>> {
        let Mat { data, row_stride, col_stride: stride, .. } = self.mat;
        match data {
            _ if row_stride != 1 || x.k == 0 => None,
            Elems::Bf16(columns) => Some(Box::new(Stored { x, columns, stride })),
            Elems::F16(columns) if !x.round_bf16 => Some(Box::new(Stored { x, columns, stride })),
            _ => None,
        }
    }

    fn is_dense(&self) -> bool {
        true
    }

    fn columns_are_cheap(&self) -> bool {
        self.mat.row_stride == 1
    }
}
