//! The forward pass. Keys and values are packed once, a tile at a time. Then a task takes a block of rows and walks over
//! the tiles that they see. Rows are lanes: scores are `[key][row]`, so that the softmax of a row runs down a column, and
//! the exponentials lie as the product with the values reads them.

use super::operand::{Operand, Stored, by_column, by_row};
use super::tiles::Tiles;
use super::{Attention, Block, Segment, Tile};
use crate::cpu::gemm::{Kernel, Shape, interleave};
use crate::cpu::math::{exp_or_zero, log};
use crate::cpu::shared::Shared;
use crate::cpu::{Cpu, simd};
use crate::{DType, Error, Result};
use half::bf16;

/// Keys a tile, whole panels of a micro-kernel: of 14, 6 and 4 rows in f32, so that bits depend on none.
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
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    match Kernel::of_bf16(cpu.simd()) {
        Some(kernel) if T::DTYPE == DType::BF16 => {
            Forward::<bf16>::new(cpu, attention, segments, kernel).run(segments, [q, k, v], &out, &lse);
        }
        _ => {
            let kernel = Kernel::new(cpu.simd());
            Forward::<f32>::new(cpu, attention, segments, kernel).run(segments, [q, k, v], &out, &lse);
        }
    }
    Ok(())
}

/// How the work of a forward pass is cut, and where what tasks share lies.
struct Forward<'a, E: 'static> {
    cpu: &'a Cpu,
    a: &'a Attention,
    kernel: Kernel<E>,
    /// Packed tiles of k and v.
    packed: Tiles,
    /// head_dim filled up to whole panels.
    deep: usize,
}

impl<'a, E: Operand> Forward<'a, E> {
    fn new(cpu: &'a Cpu, a: &'a Attention, segments: &[Segment], kernel: Kernel<E>) -> Self {
        let (keys, deep) = (KEYS / kernel.mr * kernel.mr, a.head_dim.next_multiple_of(kernel.mr));
        let packed = Tiles::new(a, segments, keys, kernel.mr, kernel.depth(a.head_dim) + deep);
        Forward { cpu, a, kernel, packed, deep }
    }

    fn run<T: Stored>(&self, segments: &[Segment], [q, k, v]: [&[T]; 3], out: &Shared<T>, lse: &Shared) {
        let cpu = self.cpu;
        let (tiles, blocks) = (self.packed.seen(self.a, segments), self.a.blocks(segments, |_| ROWS));
        let mut packed = cpu.scratch_of::<E>(self.packed.size());
        cpu.enter(|| {
            let places = Shared::new(&mut packed);
            cpu.run(tiles.len(), |task| {
                let place = self.packed.place(&tiles[task]);
                // SAFETY: the places of tiles are disjoint, and each is one task's.
                self.pack(&tiles[task], k, v, unsafe { places.slice(place.start, place.len()) });
            });
            cpu.run(blocks.len(), |task| self.block(&blocks[task], q, &packed, out, lse));
        });
    }

    /// Packs a tile: keys as lanes of the left-hand operand, then columns of values as such.
    fn pack<T: Stored>(&self, tile: &Tile, k: &[T], v: &[T], out: &mut [E]) {
        let (a, n, simd) = (self.a, tile.keys.len(), self.cpu.simd());
        let (at, stride) = (a.kv_at(tile, tile.keys.start), a.kv_heads * a.head_dim);
        let (keys, values) = out.split_at_mut(self.kernel.packed_a(n, a.head_dim));
        E::left(simd, self.kernel, by_row(&k[at..], stride), n, a.head_dim, keys);
        E::left(simd, self.kernel, by_column(&v[at..], stride), a.head_dim, n, values);
    }

    fn block<T: Stored>(&self, block: &Block, q: &[T], packed: &[E], out: &Shared<T>, lse: &Shared) {
        let Forward { cpu, a, kernel, deep, .. } = *self;
        let (width, d, simd) = (kernel.nr, a.head_dim, cpu.simd());
        let (rows, wide) = (block.rows.len(), block.rows.len().next_multiple_of(width));
        let mut gathered = cpu.scratch_of::<T>(rows * d);
        let mut queries = cpu.scratch_of::<E>(kernel.packed_b(rows, d));
        let mut scores = cpu.scratch((self.packed.len + kernel.mr) * width);
        let mut acc = cpu.scratch(wide * deep);
        a.gather(block, q, &mut gathered);
        E::right(simd, kernel, by_row(&gathered, d), rows, d, &mut queries);
        acc.fill(0.0);

        let firsts = block.rows.clone().step_by(width);
        let mut strips: Vec<Strip> = firsts.map(|first| Strip::new(a, block, first)).collect();
        for number in a.tiles(&block.segment, &block.rows, self.packed.len) {
            let tile = self.packed.tile(block.index, block.segment, block.kv_head, number);
            let (keys, values) = packed[self.packed.place(&tile)].split_at(kernel.packed_a(tile.keys.len(), d));
            let operands = queries.chunks_exact(kernel.packed_b(width, d)).zip(acc.chunks_exact_mut(width * deep));
            for (strip, (q, acc)) in strips.iter_mut().zip(operands) {
                self.attend(strip, &tile, [q, keys, values], &mut scores, acc);
            }
        }
        let mut columns = cpu.scratch(width * d);
        let firsts = block.rows.clone().step_by(width);
        for ((strip, first), acc) in strips.iter_mut().zip(firsts).zip(acc.chunks_exact_mut(width * deep)) {
            finish(simd, strip);
            rescale(simd, width, acc, &strip.factor);
            interleave(simd, acc, width, d, d, &mut columns);
            for ((row, values), lse_of) in (first..block.rows.end).zip(columns.chunks_exact(d)).zip(&strip.max) {
                let at = a.q_at(block, row);
                // SAFETY: queries of segments are disjoint (`check`), so this head of this query is this task's alone.
                unsafe {
                    T::narrow(simd, values, out.slice(at, d));
                    lse.slice(at / d, 1)[0] = *lse_of;
                }
            }
        }
    }

    /// The online softmax of a strip of rows takes in a tile of keys; `acc` is the strip's output so far, `[head_dim][row]`.
    fn attend(&self, strip: &mut Strip, tile: &Tile, [q, keys, values]: [&[E]; 3], scores: &mut [f32], acc: &mut [f32]) {
        let (Kernel { mr, nr, .. }, simd, n) = (self.kernel, self.cpu.simd(), tile.keys.len());
        // The keys that some row sees, from a whole panel on.
        let start = strip.from[0].max(tile.keys.start) - tile.keys.start;
        let end = strip.to[nr - 1].min(tile.keys.end).saturating_sub(tile.keys.start);
        let start = start / mr * mr;
        if start >= end {
            return;
        }
        let (k, d) = (end - start, self.a.head_dim);
        let products = Shape { m: k.next_multiple_of(mr), n: nr, k: d, alpha: 1.0, add: false };
        self.kernel.multiply(products, &keys[start * self.kernel.depth(d)..], q, scores, nr);
        // Hidden keys have infinite products, which a scale of 0 must leave so.
        let scale = if self.a.scale == 0.0 { f32::MIN_POSITIVE } else { self.a.scale };
        softmax(simd, nr, &mut scores[..k * nr], tile.keys.start + start, scale, strip);
        rescale(simd, nr, acc, &strip.factor);
        let weights = E::strip(simd, self.kernel, k, scores);
        let weighted = Shape { m: mr, n: nr, k, alpha: 1.0, add: true };
        for (values, acc) in values.chunks_exact(self.kernel.packed_a(mr, n)).zip(acc.chunks_exact_mut(mr * nr)) {
            self.kernel.multiply(weighted, &values[start * mr..], weights, acc, nr);
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
    /// What the output so far is to be multiplied by; last, one over its sum.
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
    /// Products `[key][lane]`, of keys from `first` on, become e^(product * scale - largest so far), and the strip takes
    /// them in.
    fn softmax(width: usize, products: &mut [f32], first: usize, scale: f32, strip: &mut Strip) {
        match width {
            32 => softmax_of::<32>(products, first, scale, strip),
            _ => softmax_of::<16>(products, first, scale, strip),
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
fn softmax_of<const W: usize>(products: &mut [f32], first: usize, scale: f32, strip: &mut Strip) {
    let rows = products.as_chunks_mut::<W>().0;
    let Strip { from, to, max, sum, factor } = strip;
    if from[W - 1] > first || to[0] < first + rows.len() {
        hide::<W>(rows, first, scale, from, to);
    }
    let mut top = [0.0; W];
    top.copy_from_slice(&max[..W]);
    for row in rows.iter() {
        for (top, x) in top.iter_mut().zip(row) {
            let score = *x * scale;
            *top = if score > *top { score } else { *top };
        }
    }
    let mut shift = [0.0; W];
    for i in 0..W {
        // A row that saw nothing yet takes any finite number, to give zeros.
        shift[i] = if top[i] == f32::NEG_INFINITY { 0.0 } else { top[i] };
        factor[i] = exp_or_zero(max[i] - shift[i]);
        max[i] = top[i];
    }
    let mut total = [0.0; W];
    for row in rows.iter_mut() {
        for i in 0..W {
            row[i] = exp_or_zero(row[i].mul_add(scale, -shift[i]));
            total[i] += row[i];
        }
    }
    for i in 0..W {
        sum[i] = sum[i].mul_add(factor[i], total[i]);
    }
}

/// Products of keys that a lane does not see become such that their scores are -inf.
#[inline(always)]
fn hide<const W: usize>(rows: &mut [[f32; W]], first: usize, scale: f32, from: &[usize], to: &[usize]) {
    let hidden = if scale < 0.0 { f32::INFINITY } else { f32::NEG_INFINITY };
    let clamp = |key: usize| key.saturating_sub(first).min(rows.len()) as u32;
    let (mut start, mut end) = ([0; W], [0; W]);
    for i in 0..W {
        (start[i], end[i]) = (clamp(from[i]), clamp(to[i]));
    }
    for (key, row) in (0..).zip(rows.iter_mut()) {
        for i in 0..W {
            row[i] = if start[i] <= key && key < end[i] { row[i] } else { hidden };
        }
    }
}
