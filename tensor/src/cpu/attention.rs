//! Scaled dot-product attention over segments, tiled, forward and backward, in f32.
//!
//! Activations are `[tokens, heads, head_dim]`, never padded: a [`Segment`] pairs a run of queries with the
//! run of keys they may see, so packed training rows, prefill and decoding with a cache are one operation.
//! The forward pass keeps a running maximum and sum a row (online softmax: Milakov and Gimelshein 2018; Dao
//! et al., "FlashAttention", 2022), the backward pass recomputes probabilities from the stored log-sum-exp:
//! memory grows with the number of tokens, never with its square.
//!
//! Bits: keys are taken in tiles of [`KV_TILE`] counted from the segment's first key, so a query's result
//! depends on its own segment alone and is the same in prefill and with a cache, on any number of threads
//! and at any SIMD level.

mod backward;
mod forward;
#[cfg(test)]
mod tests;

pub(crate) use backward::check_keys;
pub use backward::{Gradients, backward};
pub use forward::forward;

use std::ops::Range;

use crate::{Error, Result};

/// Keys a tile: a whole number of tiles of every micro-kernel, in rows as well as in columns.
pub const KV_TILE: usize = 96;

/// Rows (queries times heads of a group) that share a packed tile of keys, about.
const ROWS: usize = 224;

/// Queries `q_start .. q_start + q_len` see keys of `kv_start .. kv_start + kv_len`. The last query stands
/// at the last key: query i is at position i + kv_len - q_len of the segment's keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First query, a token index of q.
    pub q_start: usize,
    /// Number of queries.
    pub q_len: usize,
    /// First key, a token index of k and v.
    pub kv_start: usize,
    /// Number of keys.
    pub kv_len: usize,
}

/// Which keys of its segment a query at position p sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mask {
    /// Keys j <= p.
    Causal,
    /// All.
    Full,
    /// Keys p - n < j <= p: the last n, itself among them (`sliding_window` of transformers).
    Window(usize),
}

/// The fixed side of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head h uses head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Factor of the scores, usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// Who sees whom.
    pub mask: Mask,
}

impl Segment {
    /// The keys, counted from `kv_start`, that query `i` of the segment sees. Both ends grow with i.
    fn visible(&self, mask: Mask, i: usize) -> Range<usize> {
        // One past the query's own position; 0 for queries before the first key.
        let past = (i + 1 + self.kv_len).saturating_sub(self.q_len);
        match mask {
            Mask::Full => 0..self.kv_len,
            Mask::Causal => 0..past,
            Mask::Window(n) => past.saturating_sub(n)..past,
        }
    }
}

/// Queries of one segment that a task works on, with all heads of one key head.
#[derive(Clone, Copy)]
struct Block {
    segment: Segment,
    kv_head: usize,
    /// First query of the segment.
    first: usize,
    /// Number of queries.
    len: usize,
}

/// One tile of keys and the rows of a block that see some of it.
struct Tile {
    /// Keys, counted from the segment's first.
    keys: Range<usize>,
    /// Rows of the block (query-major, then heads of the group).
    rows: Range<usize>,
}

impl Attention {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Queries a block.
    fn block_len(&self) -> usize {
        (ROWS / self.group()).max(1)
    }

    /// All blocks, those with the most keys first within a segment: the long tasks should not come last.
    fn blocks(&self, segments: &[Segment], len: impl Fn(&Segment) -> usize) -> Vec<Block> {
        let mut blocks = Vec::new();
        for &segment in segments {
            let step = len(&segment);
            for first in (0..segment.q_len).step_by(step).rev() {
                let len = step.min(segment.q_len - first);
                blocks.extend((0..self.kv_heads).map(|kv_head| Block { segment, kv_head, first, len }));
            }
        }
        blocks
    }

    /// The tiles of keys that some query of the block sees, in order.
    fn tiles(&self, block: Block) -> impl Iterator<Item = Tile> {
        let Block { segment, first, len, .. } = block;
        let (mask, group) = (self.mask, self.group());
        let see = move |i: usize| segment.visible(mask, i);
        let (start, end) = (see(first).start / KV_TILE, see(first + len - 1).end.div_ceil(KV_TILE));
        (start..end).filter_map(move |tile| {
            let keys = tile * KV_TILE..segment.kv_len.min((tile + 1) * KV_TILE);
            let mut queries = first..first + len;
            let from = queries.find(|&i| see(i).end > keys.start && !see(i).is_empty())?;
            let to = (from..first + len).rfind(|&i| see(i).start < keys.end && !see(i).is_empty())?;
            Some(Tile { keys, rows: (from - first) * group..(to + 1 - first) * group })
        })
    }

    /// For each row from `rows.start` on, which columns of the tile it sees.
    fn bounds(&self, block: Block, tile: &Tile, rows: Range<usize>, out: &mut Vec<[u32; 2]>) {
        out.clear();
        out.extend(rows.map(|row| {
            let seen = block.segment.visible(self.mask, block.first + row / self.group());
            let column = |key: usize| key.clamp(tile.keys.start, tile.keys.end) - tile.keys.start;
            [column(seen.start) as u32, column(seen.end) as u32]
        }));
    }

    /// Offset of a token's first head of the block's group in q, out and their gradients.
    fn q_at(&self, block: Block, query: usize) -> usize {
        let token = block.segment.q_start + block.first + query;
        (token * self.heads + block.kv_head * self.group()) * self.head_dim
    }

    /// Offset of a key of the block's segment and head in k, v and their gradients.
    fn kv_at(&self, block: Block, key: usize) -> usize {
        ((block.segment.kv_start + key) * self.kv_heads + block.kv_head) * self.head_dim
    }

    /// Distance between keys of one head.
    fn kv_stride(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Copies the block's rows out of `[tokens, heads, head_dim]`: `[query][head of the group][head_dim]`.
    fn gather(&self, block: Block, x: &[f32], rows: &mut [f32]) {
        let width = self.group() * self.head_dim;
        for (i, row) in rows.chunks_exact_mut(width).enumerate().take(block.len) {
            let at = self.q_at(block, i);
            row.copy_from_slice(&x[at..at + width]);
        }
    }

    /// Checks sizes and segments; returns the tokens of q and of k.
    fn check(&self, segments: &[Segment], q: usize, k: usize, v: usize) -> Result<(usize, usize)> {
        let Attention { heads, kv_heads, head_dim, .. } = *self;
        let fail = |detail: String| Err(Error::shape("attention", detail));
        if kv_heads == 0 || heads == 0 || head_dim == 0 || !heads.is_multiple_of(kv_heads) {
            return fail(format!("{heads} heads over {kv_heads} key heads of {head_dim}"));
        }
        let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        if !q.is_multiple_of(q_width) || !k.is_multiple_of(kv_width) || k != v {
            return fail(format!("q, k, v of {q}, {k}, {v} elements for rows of {q_width}, {kv_width}"));
        }
        let (tq, tkv) = (q / q_width, k / kv_width);
        let inside = |start: usize, len: usize, tokens: usize| start <= tokens && len <= tokens - start;
        let mut past = 0;
        for segment in segments {
            let Segment { q_start, q_len, kv_start, kv_len } = *segment;
            if !inside(q_start, q_len, tq) || !inside(kv_start, kv_len, tkv) {
                return fail(format!("{segment:?} lies outside {tq} queries and {tkv} keys"));
            }
            if q_start < past {
                return fail(format!("the queries of {segment:?} overlap or come before the last segment's"));
            }
            past = q_start + q_len;
        }
        Ok((tq, tkv))
    }
}
