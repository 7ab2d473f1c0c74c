//! A weight that can decode parts of its rows, as the right-hand operand of a product in either direction.

use crate::weight::Direction;
use half::bf16;
use kinglet_tensor::Element as _;
use kinglet_tensor::cpu::Simd;
use kinglet_tensor::cpu::gemm::{Columns, FewRows, Panels, interleave, pair_columns, pair_rows};
use std::ops::Range;

/// A stored matrix W [out, in] that is decoded a part of a row at a time.
pub(crate) trait Rows: Sync {
    /// Writes W[row, columns] to `out`, which is as long as `columns`.
    fn decode(&self, row: usize, columns: Range<usize>, out: &mut [f32]);

    /// As [`Rows::decode`], rounded to bf16.
    fn decode_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]);

    /// How few rows are multiplied with rows of W as they are stored, if there is such a way for `x`.
    fn few_rows<'a>(&'a self, _x: FewRows<'a>) -> Option<Box<dyn Columns + 'a>> {
        None
    }
}

/// [`Rows::decode_bf16`] by way of f32.
pub(crate) fn decode_and_round(rows: &impl Rows, simd: Simd, row: usize, columns: Range<usize>, out: &mut [bf16]) {
    let mut wide = [0.0; 512];
    for (first, out) in columns.clone().step_by(wide.len()).zip(out.chunks_mut(wide.len())) {
        let wide = &mut wide[..out.len()];
        rows.decode(row, first..first + wide.len(), wide);
        bf16::narrow(simd, wide, out);
    }
}

/// Elements that one tile of decoded rows takes: at most 16 KiB on the stack, half of an L1 cache.
const TILE: usize = 4096;

/// W as B [k, n] of a product: Wᵀ forward, W backward.
pub(crate) struct RowPanels<R> {
    pub(crate) rows: R,
    /// Of W: [out, in].
    pub(crate) shape: [usize; 2],
    pub(crate) direction: Direction,
    pub(crate) simd: Simd,
}

impl<R: Rows> Panels for RowPanels<R> {
    fn k(&self) -> usize {
        match self.direction {
            Direction::Forward => self.shape[1],
            Direction::Backward => self.shape[0],
        }
    }

    fn n(&self) -> usize {
        match self.direction {
            Direction::Forward => self.shape[0],
            Direction::Backward => self.shape[1],
        }
    }

    fn pack(&self, k: Range<usize>, n: Range<usize>, nr: usize, out: &mut [f32]) {
        if k.is_empty() {
            return;
        }
        for (first, strip) in n.clone().step_by(nr).zip(out.chunks_exact_mut(k.len() * nr)) {
            let lanes = first..n.end.min(first + nr);
            match self.direction {
                Direction::Forward => self.pack_columns(k.clone(), lanes, nr, strip),
                Direction::Backward => self.pack_rows(k.clone(), lanes, nr, strip),
            }
        }
    }

    fn pack_bf16(&self, k: Range<usize>, n: Range<usize>, nr: usize, out: &mut [bf16]) {
        let mut tile = [bf16::ZERO; TILE];
        match self.direction {
            Direction::Forward => {
                let depth = TILE / nr;
                for (first, strip) in k.clone().step_by(depth).zip(out.chunks_mut(depth * nr)) {
                    let columns = first..k.end.min(first + depth);
                    for (row, decoded) in n.clone().zip(tile.chunks_exact_mut(depth)) {
                        self.rows.decode_bf16(row, columns.clone(), &mut decoded[..columns.len()]);
                    }
                    pair_columns(self.simd, &tile, depth, [n.len(), columns.len()], nr, strip);
                }
            }
            Direction::Backward => {
                let steps = 2 * nr;
                for (first, strip) in k.clone().step_by(steps).zip(out.chunks_mut(steps * nr)) {
                    let rows = first..k.end.min(first + steps);
                    for (row, decoded) in rows.clone().zip(tile.chunks_exact_mut(nr)) {
                        self.rows.decode_bf16(row, n.clone(), &mut decoded[..n.len()]);
                    }
                    pair_rows(self.simd, &tile, nr, [n.len(), rows.len()], nr, strip);
                }
            }
        }
    }

    fn column(&self, n: usize, k: Range<usize>, out: &mut [f32]) {
        match self.direction {
            Direction::Forward => self.rows.decode(n, k, out),
            Direction::Backward => {
                for (row, out) in k.zip(out.chunks_exact_mut(1)) {
                    self.rows.decode(row, n..n + 1, out);
                }
            }
        }
    }

    fn few_rows<'a>(&'a self, x: FewRows<'a>) -> Option<Box<dyn Columns + 'a>> {
        match self.direction {
            Direction::Forward => self.rows.few_rows(x),
            Direction::Backward => None,
        }
    }

    fn columns_are_cheap(&self) -> bool {
        self.direction == Direction::Forward
    }
}

impl<R: Rows> RowPanels<R> {
    /// One strip of Wᵀ: rows of W are decoded a tile at a time and become columns.
    fn pack_columns(&self, k: Range<usize>, lanes: Range<usize>, nr: usize, strip: &mut [f32]) {
        let mut tile = [0.0; TILE];
        let depth = TILE / nr;
        for (k_first, strip) in k.clone().step_by(depth).zip(strip.chunks_mut(depth * nr)) {
            let columns = k_first..k.end.min(k_first + depth);
            for (row, decoded) in lanes.clone().zip(tile.chunks_exact_mut(depth)) {
                self.rows.decode(row, columns.clone(), &mut decoded[..columns.len()]);
            }
            interleave(self.simd, &tile, depth, lanes.len(), nr, strip);
        }
    }

    /// One strip of W: parts of its rows lie in the strip as they do in W.
    fn pack_rows(&self, k: Range<usize>, lanes: Range<usize>, nr: usize, strip: &mut [f32]) {
        for (row, step) in k.zip(strip.chunks_exact_mut(nr)) {
            let (decoded, past_end) = step.split_at_mut(lanes.len());
            self.rows.decode(row, lanes.clone(), decoded);
            past_end.fill(0.0);
        }
    }
}
