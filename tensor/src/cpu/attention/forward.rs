//! The forward pass. Rows are lanes: scores are `[key][row]`, so that the softmax of a row runs down a column, and the
//! exponentials lie as the product with the values reads them.
//!
//! Keys and values are packed a tile at a time, once for all rows. Then a task takes a block of rows and walks over the
//! tiles that they see. Segments with few rows (decoding) are cut along their keys instead, with the same bits.

use super::operand::{Hold, Operand, Steps, Stored, by_column, by_row};
use super::softmax::{STATS, Strip, clear, finish, merge};
use super::tiles::Tiles;
use super::{Attention, Block, Segment, Tile};
use crate::cpu::gemm::{Kernel, Shape, interleave};
use crate::cpu::shared::Shared;
use crate::cpu::{Cpu, scratch::Buffer};
use crate::{DType, Error, Result};
use half::bf16;

/// Keys a tile, whole panels of a micro-kernel: of 14, 6 and 4 rows in f32, so that bits depend on none.
const KEYS: usize = 168;

/// Rows a task: whole strips of every micro-kernel (32 and 16 columns).
const ROWS: usize = 128;

/// The most rows of a segment that is cut along its keys: no more than a strip of any micro-kernel.
const FEW_ROWS: usize = 16;

/// Segments with few rows that are taken at a time: their tiles' states wait in memory to be merged.
const SEGMENTS: usize = 64;

/// out `[tq, heads, d]` and lse `[tq, heads]` (the log of the sum of e^score, for [`super::backward`]) from
/// q `[tq, heads, d]` and k, v `[tkv, kv_heads, d]`. Queries that see nothing, or are in no segment, give
/// zeros and -inf.
///
/// # Errors
/// When sizes do not fit, a segment lies outside, or the segments' queries are not in ascending order.
#[allow(clippy::too_many_arguments)]
pub fn forward<T: Stored>(
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
    let (few, many): (Vec<_>, Vec<_>) = segments.iter().partition(|s| attention.rows(s) <= FEW_ROWS);
    let (inputs, outputs) = ([q, k, v], Outputs { out: Shared::new(out), lse: Shared::new(lse) });
    match Kernel::of_bf16(cpu.simd()) {
        Some(kernel) if T::DTYPE == DType::BF16 => {
            Forward::<bf16>::new(cpu, attention, kernel).run(&few, &many, inputs, &outputs);
        }
        _ => Forward::<f32>::new(cpu, attention, Kernel::new(cpu.simd())).run(&few, &many, inputs, &outputs),
    }
    Ok(())
}

/// What tasks write: each the rows of its own.
struct Outputs<'a, T> {
    out: Shared<'a, T>,
    lse: Shared<'a>,
}

/// What a task holds, and room for the products of a strip with a tile.
struct Room {
    held: Hold,
    scores: Buffer,
}

/// How the work of a forward pass is cut.
pub(super) struct Forward<'a, E: 'static> {
    pub(super) cpu: &'a Cpu,
    pub(super) a: &'a Attention,
    kernel: Kernel<E>,
    /// Keys a tile.
    keys: usize,
    /// head_dim filled up; see [`Operand::deep`].
    deep: usize,
}

impl<'a, E: Operand> Forward<'a, E> {
    fn new(cpu: &'a Cpu, a: &'a Attention, kernel: Kernel<E>) -> Self {
        let (keys, deep) = (KEYS / kernel.mr * kernel.mr, E::deep(kernel, a.head_dim));
        Forward { cpu, a, kernel, keys, deep }
    }

    fn run<T: Stored>(&self, few: &[Segment], many: &[Segment], inputs: [&[T]; 3], outputs: &Outputs<T>) {
        few.chunks(SEGMENTS).for_each(|few| self.over_keys(few, inputs, outputs));
        self.over_rows(many, inputs, outputs);
    }

    /// Packs all tiles; then a task takes a block of rows.
    fn over_rows<T: Stored>(&self, segments: &[Segment], [q, k, v]: [&[T]; 3], outputs: &Outputs<T>) {
        let (cpu, a) = (self.cpu, self.a);
        // All rows of a segment and key head, and where the tiles that they see are.
        let heads = a.blocks(segments, |segment| a.rows(segment));
        let (mut places, mut tiles, mut size) = (Vec::new(), Vec::new(), 0);
        for (i, head) in heads.iter().enumerate() {
            places.push((size, Tiles::new(a, head, self.keys, self.packed_len(self.keys))));
            size += places[i].1.size();
            tiles.extend(head.tiles(a, self.keys).map(|tile| (i, tile)));
        }
        let place = |head: usize, tile: &Tile| {
            let (start, tiles) = &places[head];
            let place = tiles.place(tile);
            start + place.start..start + place.end
        };
        let mut packed = cpu.scratch_of::<E>(size);
        let shared = Shared::new(&mut packed);
        cpu.run(tiles.len(), |task| {
            let (head, tile) = &tiles[task];
            let place = place(*head, tile);
            // SAFETY: the places of tiles are disjoint, and each is one task's.
            self.pack(tile, k, v, unsafe { shared.slice(place.start, place.len()) });
        });
        let blocks = a.blocks(segments, |_| ROWS);
        cpu.run(blocks.len(), |task| {
            let block = &blocks[task];
            let head = block.index * a.kv_heads + block.kv_head;
            self.walk(block, q, |tile| &packed[place(head, tile)], outputs);
        });
    }

    /// Takes a block of rows over all tiles that it sees.
    fn walk<'p, T: Stored>(&self, block: &Block, q: &[T], packed: impl Fn(&Tile) -> &'p [E], outputs: &Outputs<T>) {
        let (cpu, a, width, state_len) = (self.cpu, self.a, self.kernel.nr, self.state_len());
        let firsts = || block.rows.clone().step_by(width);
        let strips: Vec<Strip> = firsts().map(|first| Strip::new(a, block, first, width)).collect();
        let queries = self.queries(block, q);
        let (mut room, mut next) = (self.room(), cpu.scratch(state_len));
        let mut states = cpu.scratch(strips.len() * state_len);
        states.chunks_exact_mut(state_len).for_each(|state| clear(width, state));
        for tile in block.tiles(a, self.keys) {
            let packed = packed(&tile);
            let queries = queries.chunks_exact(self.kernel.packed_b(width, a.head_dim));
            for ((strip, q), state) in strips.iter().zip(queries).zip(states.chunks_exact_mut(state_len)) {
                if self.attend(strip, &tile, q, packed, &mut room, &mut next) {
                    merge(cpu.simd(), width, state, &next);
                }
            }
        }
        for (first, state) in firsts().zip(states.chunks_exact_mut(state_len)) {
            self.store(block, first, state, outputs);
        }
    }

    /// A task takes a tile of the keys that a block sees; then one merges what came of all of them.
    fn over_keys<T: Stored>(&self, segments: &[Segment], inputs: [&[T]; 3], outputs: &Outputs<T>) {
        let (cpu, a, width) = (self.cpu, self.a, self.kernel.nr);
        let blocks = a.blocks(segments, |_| FEW_ROWS);
        let (mut tiles, mut ends) = (Vec::new(), Vec::new());
        for block in &blocks {
            tiles.extend(block.tiles(a, self.keys).map(|tile| (block, tile)));
            ends.push(tiles.len());
        }
        let mut states = cpu.scratch(tiles.len() * self.state_len());
        cpu.chunks(&mut states, self.state_len(), |task, state| {
            let (block, tile) = &tiles[task];
            E::attend_few(self, block, tile, inputs, state);
        });
        cpu.run(blocks.len(), |task| {
            let first = if task == 0 { 0 } else { ends[task - 1] };
            let mut state = cpu.scratch(self.state_len());
            clear(width, &mut state);
            for next in states.chunks_exact(self.state_len()).take(ends[task]).skip(first) {
                merge(cpu.simd(), width, &mut state, next);
            }
            self.store(&blocks[task], 0, &mut state, outputs);
        });
    }

    /// What the few rows of a block take from a tile of keys.
    pub(super) fn attend_few<T: Stored>(&self, block: &Block, tile: &Tile, [q, k, v]: [&[T]; 3], state: &mut [f32]) {
        let mut packed = self.cpu.scratch_of(self.packed_len(tile.keys.len()));
        self.pack(tile, k, v, &mut packed);
        let (strip, queries) = (Strip::new(self.a, block, 0, self.kernel.nr), self.queries(block, q));
        if !self.attend(&strip, tile, &queries, &packed, &mut self.room(), state) {
            clear(self.kernel.nr, state);
        }
    }

    /// Elements of a packed tile of `n` keys.
    fn packed_len(&self, n: usize) -> usize {
        n.next_multiple_of(self.kernel.mr) * (self.kernel.depth(self.a.head_dim) + self.deep)
    }

    fn state_len(&self) -> usize {
        (STATS + self.deep) * self.kernel.nr
    }

    /// What a task needs to attend.
    fn room(&self) -> Room {
        let scores = self.cpu.scratch(self.keys.next_multiple_of(self.kernel.mr) * self.kernel.nr);
        Room { held: Hold::new(self.cpu.simd()), scores }
    }

    /// Packs a tile: keys as lanes of a left-hand operand, then values as steps.
    fn pack<T: Stored>(&self, tile: &Tile, k: &[T], v: &[T], out: &mut [E]) {
        let (a, n, simd) = (self.a, tile.keys.len(), self.cpu.simd());
        let (at, stride) = (a.kv_at(tile, tile.keys.start), a.kv_heads * a.head_dim);
        let (keys, values) = out.split_at_mut(self.kernel.packed_a(n, a.head_dim));
        E::left(simd, self.kernel, by_row(&k[at..], stride), n, a.head_dim, keys);
        E::steps(simd, self.kernel, by_column(&v[at..], stride), a.head_dim, n, values);
    }

    /// Packs the rows of a block as lanes of a right-hand operand.
    fn queries<T: Stored>(&self, block: &Block, q: &[T]) -> Buffer<E> {
        let (cpu, rows, d) = (self.cpu, block.rows.len(), self.a.head_dim);
        let mut gathered = cpu.scratch_of::<T>(rows * d);
        let mut queries = cpu.scratch_of::<E>(self.kernel.packed_b(rows, d));
        self.a.gather(block, q, &mut gathered);
        E::right(cpu.simd(), self.kernel, by_row(&gathered, d), rows, d, &mut queries);
        queries
    }

    /// What a strip of rows takes from a tile of keys. Returns whether any row sees any of them; if none, `state` is not written.
    fn attend(&self, strip: &Strip, tile: &Tile, q: &[E], packed: &[E], room: &mut Room, state: &mut [f32]) -> bool {
        let (Kernel { mr, nr, .. }, simd, d) = (self.kernel, self.cpu.simd(), self.a.head_dim);
        let (keys, values) = packed.split_at(self.kernel.packed_a(tile.keys.len(), d));
        let seen = strip.seen(tile);
        if seen.is_empty() {
            return false;
        }
        let start = seen.start / mr * mr; // from a whole panel on
        let k = seen.end - start;
        let products = Shape { m: k.next_multiple_of(mr), n: nr, k: d, alpha: 1.0, add: false };
        E::multiply(&room.held, self.kernel, products, &keys[start * self.kernel.depth(d)..], q, &mut room.scores, nr);
        // Hidden keys have infinite products, which a scale of 0 must leave so.
        let scale = if self.a.scale == 0.0 { f32::MIN_POSITIVE } else { self.a.scale };
        let seen = tile.keys.start + start..tile.keys.start + seen.end;
        let weights = E::weights(simd, self.kernel, &mut room.scores, seen, scale, strip, state);
        let values = Steps { packed: values, len: tile.keys.len(), taken: start..start + k };
        E::weigh(&room.held, self.kernel, values, weights, &mut state[STATS * nr..], false);
        true
    }

    /// Writes the rows of a strip, from row `first` of the block on, when they have seen all keys.
    fn store<T: Stored>(&self, block: &Block, first: usize, state: &mut [f32], outputs: &Outputs<T>) {
        let (a, simd, width, d) = (self.a, self.cpu.simd(), self.kernel.nr, self.a.head_dim);
        finish(simd, width, state);
        let (lse, out) = (&state[..width], &state[STATS * width..]);
        let mut rows = self.cpu.scratch(width * d);
        interleave(simd, out, width, d, d, &mut rows);
        for ((row, values), lse) in (first..block.rows.end).zip(rows.chunks_exact(d)).zip(lse) {
            let at = a.q_at(block, row);
            // SAFETY: queries of segments are disjoint (`check`), so this head of this query is this task's alone.
            unsafe {
                T::narrow(simd, values, outputs.out.slice(at, d));
                outputs.lse.slice(at / d, 1)[0] = *lse;
            }
        }
    }
}
