//! Scaled dot-product attention over segments, tiled, forward and backward.
//!
//! Activations are `[tokens, heads, head_dim]`, never padded: a [`Segment`] pairs a run of queries with the
//! run of keys they may see, so packed training rows, prefill and decoding with a cache are one operation.
//! The forward pass keeps a running maximum and sum a row (online softmax: Milakov and Gimelshein 2018; Dao
//! et al., "FlashAttention", 2022), the backward pass recomputes probabilities from the stored log-sum-exp:
//! memory grows with the number of tokens, never with its square.
//!
//! Tensors are read and written in their own type; sums are f32. Products are of f32, but of bf16 where tensors are bf16
//! and the level multiplies that: probabilities and their gradients are then rounded to bf16 too, as on GPUs.
//!
//! A key that a query does not see has the weight 0, which its value is multiplied by all the same: infinity or NaN among the values
//! of a tile is felt by queries beside those that see it.
//!
//! Bits: keys are taken in tiles counted from the segment's first key, so a query's result depends on its own
//! segment alone and is the same in prefill and with a cache, on any number of threads; and, where products are of
//! f32, at any SIMD level.

mod backward;
mod few;
mod forward;
mod operand;
mod products;
#[cfg(target_arch = "x86_64")]
mod scores512;
mod softmax;
#[cfg(test)]
mod tests;
mod tiles;

pub(crate) use backward::check_keys;
pub use backward::{Gradients, backward};
pub use forward::forward;
pub use operand::Stored;

use std::ops::Range;

use crate::{Error, Result};

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

/// Rows of one segment that share a key head: row r is head r % group of query r / group, so rows lie in memory in their order.
#[derive(Clone, Debug)]
struct Block {
    /// Which of the segments.
    index: usize,
    segment: Segment,
    kv_head: usize,
    rows: Range<usize>,
}

/// One tile of keys of a segment and key head.
#[derive(Clone, Debug)]
struct Tile {
    segment: Segment,
    kv_head: usize,
    number: usize,
    /// Keys, counted from the segment's first.
    keys: Range<usize>,
}

impl Tile {
    /// Tile `number` of tiles of `len` keys.
    fn new(segment: Segment, kv_head: usize, number: usize, len: usize) -> Self {
        let keys = number * len..segment.kv_len.min((number + 1) * len);
        Tile { segment, kv_head, number, keys }
    }
}

impl Block {
    /// The tiles of `len` keys that hold all keys which some row sees.
    fn tiles(&self, a: &Attention, len: usize) -> impl Iterator<Item = Tile> {
        let Block { segment, kv_head, .. } = *self;
        a.tiles(&segment, &self.rows, len).map(move |number| Tile::new(segment, kv_head, number, len))
    }
}

impl Attention {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Rows of a segment, for each key head.
    fn rows(&self, segment: &Segment) -> usize {
        segment.q_len * self.group()
    }

    /// All blocks. Those of a head follow each other, so that its keys stay in the cache; those with the most keys come first: what
    /// threads that are done take from others are the last, short ones.
    fn blocks(&self, segments: &[Segment], len: impl Fn(&Segment) -> usize) -> Vec<Block> {
        let mut blocks = Vec::new();
        for (index, &segment) in segments.iter().enumerate() {
            let (rows, step) = (self.rows(&segment), len(&segment));
            for kv_head in 0..self.kv_heads {
                let block = |first| Block { index, segment, kv_head, rows: first..rows.min(first + step) };
                blocks.extend((0..rows).step_by(step).rev().map(block));
            }
        }
        blocks
    }

    /// The keys, counted from the segment's first, that row `row` sees. Both ends grow with the row.
    fn seen(&self, segment: &Segment, row: usize) -> Range<usize> {
        segment.visible(self.mask, row / self.group())
    }

    /// Numbers of the tiles of `len` keys that hold all keys which some of `rows` (at least one) sees.
    fn tiles(&self, segment: &Segment, rows: &Range<usize>, len: usize) -> Range<usize> {
        let (start, end) = (self.seen(segment, rows.start).start, self.seen(segment, rows.end - 1).end);
        start / len..end.div_ceil(len)
    }

    /// Query heads of all tokens (as in lse) that are in no segment.
    fn gaps(&self, segments: &[Segment], tokens: usize) -> Vec<Range<usize>> {
        let starts = segments.iter().map(|s| s.q_start).chain([tokens]);
        let ends = [0].into_iter().chain(segments.iter().map(|s| s.q_start + s.q_len));
        ends.zip(starts).map(|(end, start)| end * self.heads..start * self.heads).collect()
    }

    /// Offset of a row in q, out and their gradients.
    fn q_at(&self, block: &Block, row: usize) -> usize {
        let (token, head) = (block.segment.q_start + row / self.group(), row % self.group());
        (token * self.heads + block.kv_head * self.group() + head) * self.head_dim
    }

    /// Copies rows of the block out of `[tokens, heads, head_dim]`.
    fn gather<T: Copy>(&self, block: &Block, x: &[T], out: &mut [T]) {
        for (row, out) in block.rows.clone().zip(out.chunks_exact_mut(self.head_dim)) {
            let at = self.q_at(block, row);
            out.copy_from_slice(&x[at..at + self.head_dim]);
        }
    }

    /// Offset of a key in k, v and their gradients.
    fn kv_at(&self, tile: &Tile, key: usize) -> usize {
        ((tile.segment.kv_start + key) * self.kv_heads + tile.kv_head) * self.head_dim
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
