//! The backward pass. With P = e^(scores - lse), delta = rowsum(dout * out):
//! dV = P^T dout, dS = P * (dout V^T - delta) * scale, dQ = dS K, dK = dS^T Q.
//!
//! Keys and values are packed once, a tile at a time. Then a task takes a run of rows and a key head, block by block. It
//! finishes its own dQ; for dK and dV it adds up a partial sum over its run. A segment has at most [`MAX_RUNS`] runs, so
//! partial sums stay a fixed multiple of k; last they are added in the order of the runs.
//!
//! Keys are lanes: scores are `[row][key]` in strips of keys, so that P and dS lie as the products for dV and dK read
//! them, which are formed transposed. Only dS is packed once more, for dQ.

use super::operand::{Operand, Stored, by_column, by_row};
use super::tiles::Tiles;
use super::{Attention, Block, Segment, Tile};
use crate::cpu::gemm::{Kernel, Shape, interleave};
use crate::cpu::math::exp_or_zero;
use crate::cpu::reduce::{axpy, dot};
use crate::cpu::scratch::Buffer;
use crate::cpu::shared::Shared;
use crate::cpu::{Cpu, simd};
use crate::{DType, Error, Result};
use half::bf16;
use std::ops::Range;

/// The most runs that the rows of a segment are cut into.
const MAX_RUNS: usize = 4;

/// Rows a block, whole panels of a micro-kernel: of 14, 6 and 4 rows in f32, so that bits depend on none.
const ROWS: usize = 168;

/// Blocks of the shortest run: below this, adding partial sums would cost more than it spreads.
const MIN_RUN: usize = 2;

/// Keys a tile: whole strips of every micro-kernel (32 and 16 columns).
const KEYS: usize = 128;

/// Where the gradients go; what was there is overwritten.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// `[tq, heads, d]`.
    pub q: &'a mut [T],
    /// `[tkv, kv_heads, d]`.
    pub k: &'a mut [T],
    /// `[tkv, kv_heads, d]`.
    pub v: &'a mut [T],
}

/// What one forward pass took and gave, and the gradient of its output.
#[derive(Clone, Copy)]
struct Saved<'a, T> {
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    out: &'a [T],
    lse: &'a [f32],
    dout: &'a [T],
}

/// The gradients of [`super::forward`] from its inputs, its outputs `out` and `lse`, and the gradient `dout`.
///
/// # Errors
/// As the forward pass; also when segments share keys, whose gradients would be written twice.
#[allow(clippy::too_many_arguments)]
pub fn backward<T: Stored>(
    cpu: &Cpu,
    attention: &Attention,
    segments: &[Segment],
    q: &[T],
    k: &[T],
    v: &[T],
    out: &[T],
    lse: &[f32],
    dout: &[T],
    gradients: Gradients<T>,
) -> Result<()> {
    let (tq, tkv) = attention.check(segments, q.len(), k.len(), v.len())?;
    let Gradients { q: dq, k: dk, v: dv } = gradients;
    let of_q = [out.len(), dout.len(), dq.len()] == [q.len(); 3] && lse.len() == tq * attention.heads;
    if !of_q || [dk.len(), dv.len()] != [k.len(); 2] {
        return Err(Error::shape("attention backward", "outputs or gradients differ in size from q, k, v"));
    }
    check_keys(segments)?;
    let zero = T::from_f32(0.0);
    for gap in attention.gaps(segments, tq) {
        dq[gap.start * attention.head_dim..gap.end * attention.head_dim].fill(zero);
    }
    if segments.iter().map(|s| s.kv_len).sum::<usize>() < tkv {
        [&mut *dk, &mut *dv].into_iter().for_each(|x| x.fill(zero));
    }
    let (saved, gradients) = (Saved { q, k, v, out, lse, dout }, [dq, dk, dv]);
    match Kernel::of_bf16(cpu.simd()) {
        Some(kernel) if T::DTYPE == DType::BF16 => {
            Backward::<bf16>::new(cpu, attention, segments, kernel).run(saved, gradients);
        }
        _ => Backward::<f32>::new(cpu, attention, segments, Kernel::new(cpu.simd())).run(saved, gradients),
    }
    Ok(())
}

/// The gradients of a key are one task's.
///
/// # Errors
/// When segments share keys.
pub(crate) fn check_keys(segments: &[Segment]) -> Result<()> {
    let mut keys: Vec<_> = segments.iter().filter(|s| s.kv_len > 0).collect();
    keys.sort_by_key(|s| s.kv_start);
    match keys.windows(2).find(|pair| pair[0].kv_start + pair[0].kv_len > pair[1].kv_start) {
        None => Ok(()),
        Some(pair) => Err(Error::shape("attention backward", format!("{:?} and {:?} share keys", pair[0], pair[1]))),
    }
}

/// How the work of a backward pass is cut, and where what tasks share lies.
struct Backward<'a, E: 'static> {
    cpu: &'a Cpu,
    a: &'a Attention,
    segments: &'a [Segment],
    kernel: Kernel<E>,
    /// Rows a block.
    rows: usize,
    /// Packed tiles of k and v; see [`Backward::pack`].
    packed: Tiles,
    /// Tiles of partial sums of dK and dV: `[strip][head_dim, filled up to mr][nr]` of dK, then as much of dV.
    sums: Tiles,
    /// head_dim filled up to whole panels of rows and to whole strips of columns.
    deep: usize,
    wide: usize,
}

impl<'a, E: Operand> Backward<'a, E> {
    fn new(cpu: &'a Cpu, a: &'a Attention, segments: &'a [Segment], kernel: Kernel<E>) -> Self {
        let [deep, wide] = [kernel.mr, kernel.nr].map(|width| a.head_dim.next_multiple_of(width));
        let packed = Tiles::new(a, segments, KEYS, kernel.nr, 2 * kernel.depth(a.head_dim) + wide);
        let sums = Tiles::new(a, segments, KEYS, kernel.nr, 2 * deep);
        Backward { cpu, a, segments, kernel, rows: ROWS.next_multiple_of(kernel.mr), packed, sums, deep, wide }
    }

    /// Rows a run: depends on the segment alone, as its bits must.
    fn run_len(&self, segment: &Segment) -> usize {
        let rows = self.a.rows(segment);
        let runs = (rows / (MIN_RUN * self.rows)).clamp(1, MAX_RUNS);
        rows.div_ceil(runs).max(1).next_multiple_of(self.rows / 2)
    }

    fn run<T: Stored>(&self, saved: Saved<T>, [dq, dk, dv]: [&mut [T]; 3]) {
        let (cpu, a) = (self.cpu, self.a);
        let runs = a.blocks(self.segments, |segment| self.run_len(segment));
        let seen = self.packed.seen(a, self.segments);
        let all: Vec<Tile> = self.sums.all(a, self.segments);
        let copies = runs.iter().map(|run| self.number(run) + 1).max().unwrap_or(0);
        let mut packed = cpu.scratch_of::<E>(self.packed.size());
        let mut sums = cpu.scratch(copies * self.sums.size());
        let [dq, dk, dv] = [dq, dk, dv].map(Shared::new);
        cpu.enter(|| {
            let places = Shared::new(&mut packed);
            cpu.run(seen.len(), |task| {
                let place = self.packed.place(&seen[task]);
                // SAFETY: the places of tiles are disjoint, and each is one task's.
                self.pack(&seen[task], saved, unsafe { places.slice(place.start, place.len()) });
            });
            let places = Shared::new(&mut sums);
            cpu.run(runs.len(), |task| self.run_backward(&runs[task], saved, &packed, &dq, &places));
            cpu.run(all.len(), |task| self.add_up(&all[task], &places, [&dk, &dv]));
        });
    }

    /// Which run of its segment this is.
    fn number(&self, run: &Block) -> usize {
        run.rows.start / self.run_len(&run.segment)
    }

    /// Packs a tile: keys and values as lanes of right-hand operands, then columns of keys as such.
    fn pack<T: Stored>(&self, tile: &Tile, saved: Saved<T>, out: &mut [E]) {
        let (a, simd, kernel, d, n) = (self.a, self.cpu.simd(), self.kernel, self.a.head_dim, tile.keys.len());
        let (at, stride) = (a.kv_at(tile, tile.keys.start), a.kv_heads * d);
        let (k, v) = (&saved.k[at..], &saved.v[at..]);
        let (values, keys) = out.split_at_mut(kernel.packed_b(n, d));
        let (keys, columns) = keys.split_at_mut(kernel.packed_b(n, d));
        E::right(simd, kernel, by_row(v, stride), n, d, values);
        E::right(simd, kernel, by_row(k, stride), n, d, keys);
        E::right(simd, kernel, by_column(k, stride), d, n, columns);
    }

    /// Cuts a run into blocks and takes them in order.
    fn run_backward<T: Stored>(&self, run: &Block, saved: Saved<T>, packed: &[E], dq: &Shared<T>, sums: &Shared) {
        let a = self.a;
        let copy = self.number(run) * self.sums.size();
        let mut work = Work::new(self, run.rows.len().min(self.rows));
        for tile in run.tiles(a, KEYS) {
            let place = self.sums.place(&tile);
            // SAFETY: this run's copy of the sums of this key head is this task's alone.
            unsafe { sums.slice(copy + place.start, place.len()) }.fill(0.0);
        }
        for first in run.rows.clone().step_by(self.rows) {
            let block = Block { rows: first..run.rows.end.min(first + self.rows), ..run.clone() };
            work.load(&block, saved);
            for tile in block.tiles(a, KEYS) {
                let place = self.sums.place(&tile);
                // SAFETY: as above.
                let sums = unsafe { sums.slice(copy + place.start, place.len()) };
                work.tile(&block, &tile, &packed[self.packed.place(&tile)], sums);
            }
            for (row, values) in block.rows.clone().zip(work.dq.chunks_exact(self.wide)) {
                // SAFETY: queries of segments are disjoint (`check`), so this head of this query is this task's alone.
                let out = unsafe { dq.slice(a.q_at(&block, row), a.head_dim) };
                T::narrow(self.cpu.simd(), &values[..a.head_dim], out);
            }
        }
    }

    /// Adds up the runs' partial sums of a tile of keys, and writes them as rows.
    fn add_up<T: Stored>(&self, tile: &Tile, sums: &Shared, gradients: [&Shared<T>; 2]) {
        let (a, simd, d, nr) = (self.a, self.cpu.simd(), self.a.head_dim, self.kernel.nr);
        let (place, step, all) = (self.sums.place(tile), self.run_len(&tile.segment), a.rows(&tile.segment));
        // SAFETY: the sums of this tile in every run's copy are this task's alone.
        let of_run = |run: usize| unsafe { sums.slice(run * self.sums.size() + place.start, place.len()) };
        let sees = |run: &usize| {
            let rows = run * step..all.min((run + 1) * step);
            a.tiles(&tile.segment, &rows, KEYS).contains(&(tile.keys.start / KEYS))
        };
        let mut runs = (0..all.div_ceil(step)).filter(sees);
        let mut nothing = self.cpu.scratch(place.len());
        let total = match runs.next() {
            Some(first) => of_run(first),
            None => {
                nothing.fill(0.0);
                &mut nothing
            }
        };
        runs.for_each(|run| axpy(simd, 1.0, of_run(run), total));
        let mut rows = self.cpu.scratch(nr * d);
        for (total, gradient) in total.chunks_exact(place.len() / 2).zip(gradients) {
            for (total, first) in total.chunks_exact(self.deep * nr).zip(tile.keys.clone().step_by(nr)) {
                interleave(simd, total, nr, d, d, &mut rows);
                for (key, row) in (first..tile.keys.end).zip(rows.chunks_exact(d)) {
                    // SAFETY: keys of segments are disjoint (`check_keys`), so this head of this key is this task's.
                    T::narrow(simd, row, unsafe { gradient.slice(a.kv_at(tile, key), d) });
                }
            }
        }
    }
}

/// The working memory of one task: rows of a block, and one tile of keys.
struct Work<'a, E: Operand, T: Stored> {
    pass: &'a Backward<'a, E>,
    /// Rows of q and of dout as left-hand operands, and their columns.
    q: Buffer<E>,
    dout: Buffer<E>,
    q_columns: Buffer<E>,
    dout_columns: Buffer<E>,
    /// `[row][head_dim, filled up to nr]`.
    dq: Buffer,
    lse: Buffer,
    delta: Buffer,
    /// Which keys of the segment each row sees.
    seen: Vec<Range<usize>>,
    /// `[row][nr]` of a strip of keys: scores, then P; dP, then dS.
    p: Buffer,
    ds: Buffer,
    /// dS of a tile as left-hand operand: `[panel][strip of keys][nr / group][mr][group]`.
    left: Buffer<E>,
    /// Rows before they are packed.
    rows: [Buffer<T>; 2],
    widened: [Buffer; 2],
}

impl<'a, E: Operand, T: Stored> Work<'a, E, T> {
    fn new(pass: &'a Backward<E>, rows: usize) -> Self {
        let Backward { cpu, a, kernel, wide, .. } = *pass;
        let (d, padded) = (a.head_dim, rows.next_multiple_of(kernel.mr));
        let [q, dout] = std::array::from_fn(|_| cpu.scratch_of(kernel.packed_a(rows, d)));
        let [q_columns, dout_columns] = std::array::from_fn(|_| cpu.scratch_of(kernel.packed_a(d, rows)));
        let [lse, delta] = std::array::from_fn(|_| cpu.scratch(rows));
        let [p, ds] = std::array::from_fn(|_| cpu.scratch(padded * kernel.nr));
        let left = cpu.scratch_of(padded * KEYS);
        let gathered = std::array::from_fn(|_| cpu.scratch_of(rows * d));
        let widened = std::array::from_fn(|_| cpu.scratch(d));
        let dq = cpu.scratch(padded * wide);
        let seen = Vec::with_capacity(rows);
        Work { pass, q, dout, q_columns, dout_columns, dq, lse, delta, seen, p, ds, left, rows: gathered, widened }
    }

    /// Takes the rows of a block.
    fn load(&mut self, block: &Block, saved: Saved<T>) {
        let Backward { cpu, a, kernel, .. } = *self.pass;
        let (d, simd, n) = (a.head_dim, cpu.simd(), block.rows.len());
        let ([x, y], [out, dout]) = (&mut self.rows, &mut self.widened);
        a.gather(block, saved.dout, y);
        let stats = self.lse.iter_mut().zip(self.delta.iter_mut());
        for (((lse, delta), row), y) in stats.zip(block.rows.clone()).zip(y.chunks_exact(d)) {
            let at = a.q_at(block, row);
            T::widen(simd, &saved.out[at..at + d], out);
            T::widen(simd, y, dout);
            (*lse, *delta) = (saved.lse[at / d], dot(simd, out, dout));
        }
        a.gather(block, saved.q, x);
        for (x, panels, columns) in [(x, &mut self.q, &mut self.q_columns), (y, &mut self.dout, &mut self.dout_columns)]
        {
            E::left(simd, kernel, by_row(x, d), n, d, panels);
            E::left(simd, kernel, by_column(x, d), d, n, columns);
        }
        self.seen.clear();
        self.seen.extend(block.rows.clone().map(|row| a.seen(&block.segment, row)));
        self.dq.fill(0.0);
    }

    /// The five products of one tile of keys.
    fn tile(&mut self, block: &Block, tile: &Tile, packed: &[E], sums: &mut [f32]) {
        let Backward { cpu, a, kernel, deep, wide, .. } = *self.pass;
        let (Kernel { mr, nr, .. }, d, simd, rows) = (kernel, a.head_dim, cpu.simd(), block.rows.len());
        let n = tile.keys.len();
        let (values, keys) = packed.split_at(kernel.packed_b(n, d));
        let (keys, columns) = keys.split_at(kernel.packed_b(n, d));
        let (dk, dv) = sums.split_at_mut(n.next_multiple_of(nr) * deep);

        // The strips of keys that each panel of rows has seen.
        let mut done = vec![0..0; rows.div_ceil(mr)];
        let strip = kernel.packed_b(nr, d);
        let strips = values.chunks_exact(strip).zip(keys.chunks_exact(strip));
        let sums = dk.chunks_exact_mut(deep * nr).zip(dv.chunks_exact_mut(deep * nr));
        for (i, ((values, keys), (dk, dv))) in strips.zip(sums).enumerate() {
            let first = tile.keys.start + i * nr;
            let end = self.seen.partition_point(|seen| seen.start < tile.keys.end.min(first + nr));
            let start = self.seen.partition_point(|seen| seen.end <= first) / mr * mr;
            if start >= end {
                continue;
            }
            let m = end - start;
            let products = Shape { m: m.next_multiple_of(mr), n: nr, k: d, alpha: 1.0, add: false };
            kernel.multiply(products, &self.q[start * kernel.depth(d)..], keys, &mut self.p, nr);
            kernel.multiply(products, &self.dout[start * kernel.depth(d)..], values, &mut self.ds, nr);
            let (p, ds) = (&mut self.p[..m * nr], &mut self.ds[..m * nr]);
            let (lse, delta) = (&self.lse[start..end], &self.delta[start..end]);
            score_gradients(simd, nr, p, ds, &self.seen[start..end], first, lse, delta, a.scale);
            for (panel, ds) in (start / mr..).zip(ds.chunks(mr * nr)) {
                let left = &mut self.left[panel * mr * KEYS + i * nr * mr..][..nr * mr];
                E::left(simd, kernel, by_row(ds, nr), ds.len() / nr, nr, left);
                done[panel] = if done[panel].is_empty() { i..i + 1 } else { done[panel].start..i + 1 };
            }
            let to_kv = Shape { m: mr, n: nr, k: m, alpha: 1.0, add: true };
            let products = [(&self.dout_columns, &mut self.p, dv), (&self.q_columns, &mut self.ds, dk)];
            for (left, right, sums) in products {
                let right = E::strip(simd, kernel, m, right);
                for (left, sums) in left.chunks_exact(kernel.packed_a(mr, rows)).zip(sums.chunks_exact_mut(mr * nr)) {
                    kernel.multiply(to_kv, &left[start * mr..], right, sums, nr);
                }
            }
        }
        let panels = self.left.chunks_exact(mr * KEYS).zip(self.dq.chunks_exact_mut(mr * wide));
        for ((left, dq), strips) in panels.zip(done) {
            let seen = strips.start * nr..n.min(strips.end * nr);
            if seen.is_empty() {
                continue;
            }
            let to_q = Shape { m: mr, n: nr, k: seen.len(), alpha: 1.0, add: true };
            for (columns, j) in columns.chunks_exact(kernel.packed_b(nr, n)).zip((0..wide).step_by(nr)) {
                kernel.multiply(to_q, &left[seen.start * mr..], &columns[seen.start * nr..], &mut dq[j..], wide);
            }
        }
    }
}

simd! {
    /// Products `[row][lane]` of keys from `first` on become probabilities P and `dp` becomes dS, zero where a row does not
    /// see the key.
    fn score_gradients(
        width: usize, scores: &mut [f32], dp: &mut [f32], seen: &[Range<usize>], first: usize, lse: &[f32],
        delta: &[f32], scale: f32,
    ) {
        match width {
            32 => score_gradients_of::<32>(scores, dp, seen, first, lse, delta, scale),
            _ => score_gradients_of::<16>(scores, dp, seen, first, lse, delta, scale),
        }
    }
}

#[inline(always)]
fn score_gradients_of<const W: usize>(
    scores: &mut [f32],
    dp: &mut [f32],
    seen: &[Range<usize>],
    first: usize,
    lse: &[f32],
    delta: &[f32],
    scale: f32,
) {
    let rows = scores.as_chunks_mut::<W>().0.iter_mut().zip(dp.as_chunks_mut::<W>().0);
    for (((p, ds), seen), (lse, delta)) in rows.zip(seen).zip(lse.iter().zip(delta)) {
        for i in 0..W {
            p[i] = exp_or_zero(p[i].mul_add(scale, -lse));
            ds[i] = p[i] * (ds[i] - delta) * scale;
        }
        if seen.start > first || seen.end < first + W {
            hide(p, seen, first);
            hide(ds, seen, first);
        }
    }
}

/// Zeros for the keys, from `first` on, that are not seen.
#[inline(always)]
fn hide<const W: usize>(row: &mut [f32; W], seen: &Range<usize>, first: usize) {
    let clamp = |key: usize| key.saturating_sub(first).min(W) as u32;
    let (start, end) = (clamp(seen.start), clamp(seen.end));
    for (i, x) in (0..).zip(row) {
        *x = if start <= i && i < end { *x } else { 0.0 };
    }
}
