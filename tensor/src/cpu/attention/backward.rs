//! The backward pass. With P = e^(scores - lse), delta = rowsum(dout * out):
//! dV = P^T dout, dS = P * (dout V^T - delta) * scale, dQ = dS K, dK = dS^T Q.
//!
//! A task takes a run of rows and a key head, block by block. Who does the first one of a head packs its keys and values for all. A
//! task finishes its own dQ; for dK and dV it adds up a partial sum over its run. A segment has at most [`MAX_RUNS`] runs; who does
//! the last one of a head adds their sums up, in the order of the runs. So all working memory is of the heads that are being worked
//! on, and stays in the cache.
//!
//! Keys are lanes: scores are `[row][key]` in strips of keys, so that P and dS lie as the products for dV and dK read
//! them, which are formed transposed. Only dS is packed once more, for dQ.

use super::operand::{Hold, Operand, ScoreGradients, Steps, Stored, by_column, by_row};
use super::tiles::Tiles;
use super::{Attention, Block, Segment, Tile};
use crate::cpu::gemm::{Kernel, Shape, interleave};
use crate::cpu::math::exp_or_zero;
use crate::cpu::reduce::{axpy, dot};
use crate::cpu::scratch::Buffer;
use crate::cpu::shared::Shared;
use crate::cpu::{Cpu, simd};
use crate::{DType, Error, Result};
use bytemuck::Pod;
use half::bf16;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The most runs that the rows of a segment are cut into.
const MAX_RUNS: usize = 4;

/// The shortest run: below this, adding partial sums would cost more than it spreads.
const MIN_RUN: usize = 500;

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
    if segments.iter().filter(|s| s.q_len > 0).map(|s| s.kv_len).sum::<usize>() < tkv {
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
    /// Rows at a time.
    rows: usize,
    /// head_dim filled up as steps are (see [`Operand::deep`]) and to whole strips of columns.
    deep: usize,
    wide: usize,
}

/// What one run found for the keys that it sees.
#[derive(Default)]
struct Partial {
    tiles: Tiles,
    /// Of each tile `[strip][deep][nr]` of dK, then as much of dV.
    sums: Option<Buffer>,
}

/// What the runs of a segment and key head share.
struct Head<E: Pod> {
    /// Their packed tiles, from the first run on that needs them.
    packed: Option<Arc<Packed<E>>>,
    /// Their partial sums.
    partial: Vec<Partial>,
    /// How many runs are not done.
    open: usize,
}

impl<E: Pod> Head<E> {
    /// Of so many runs.
    fn new(runs: usize) -> Self {
        Head { packed: None, partial: (0..runs).map(|_| Partial::default()).collect(), open: runs }
    }
}

/// Packed tiles of keys.
struct Packed<E: Pod> {
    tiles: Tiles,
    elements: Buffer<E>,
}

impl<'a, E: Operand> Backward<'a, E> {
    fn new(cpu: &'a Cpu, a: &'a Attention, segments: &'a [Segment], kernel: Kernel<E>) -> Self {
        let (deep, wide) = (E::deep(kernel, a.head_dim), a.head_dim.next_multiple_of(kernel.nr));
        Backward { cpu, a, segments, kernel, rows: E::ROWS, deep, wide }
    }

    /// Rows a run: depends on the segment alone, as its bits must.
    fn run_len(&self, segment: &Segment) -> usize {
        let rows = self.a.rows(segment);
        let runs = (rows / MIN_RUN).clamp(1, MAX_RUNS);
        rows.div_ceil(runs).max(1).next_multiple_of(self.rows)
    }

    fn run<T: Stored>(&self, saved: Saved<T>, gradients: [&mut [T]; 3]) {
        let (cpu, a) = (self.cpu, self.a);
        let runs = a.blocks(self.segments, |segment| self.run_len(segment));
        let heads = self.segments.iter().flat_map(|segment| {
            let runs = a.rows(segment).div_ceil(self.run_len(segment));
            (0..a.kv_heads).map(move |_| Mutex::new(Head::new(runs)))
        });
        let heads: Vec<Mutex<Head<E>>> = heads.collect();
        let [dq, dk, dv] = gradients.map(Shared::new);
        cpu.run(runs.len(), |task| {
            let run = &runs[task];
            let head = &heads[run.index * a.kv_heads + run.kv_head];
            let head = || head.lock().expect("no task panics while it holds it");
            let packed = head().packed.get_or_insert_with(|| Arc::new(self.pack_head(run, saved))).clone();
            let partial = self.run_backward(run, &packed, saved, &dq);
            drop(packed);
            let mut head = head();
            head.partial[run.rows.start / self.run_len(&run.segment)] = partial;
            head.open -= 1;
            if head.open == 0 {
                head.packed = None;
                let partial = std::mem::take(&mut head.partial);
                drop(head);
                self.add_up(run, partial, [&dk, &dv]);
            }
        });
    }

    /// Elements of a tile of packed keys and values, and of sums.
    fn packed_len(&self) -> usize {
        E::KEYS * (2 * self.kernel.depth(self.a.head_dim) + self.wide)
    }

    fn sums_len(&self) -> usize {
        2 * E::KEYS * self.deep
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

    /// Packs all tiles that the runs of a head see, of which `run` is one.
    fn pack_head<T: Stored>(&self, run: &Block, saved: Saved<T>) -> Packed<E> {
        let all = Block { rows: 0..self.a.rows(&run.segment), ..run.clone() };
        let tiles = Tiles::new(self.a, &all, E::KEYS, self.packed_len());
        let mut elements = self.cpu.scratch_of::<E>(tiles.size());
        for tile in all.tiles(self.a, E::KEYS) {
            self.pack(&tile, saved, &mut elements[tiles.place(&tile)]);
        }
        Packed { tiles, elements }
    }

    /// Cuts a run into blocks and takes them in order.
    fn run_backward<T: Stored>(&self, run: &Block, packed: &Packed<E>, saved: Saved<T>, dq: &Shared<T>) -> Partial {
        let (cpu, a) = (self.cpu, self.a);
        let tiles = Tiles::new(a, run, E::KEYS, self.sums_len());
        let mut sums = cpu.scratch(tiles.size());
        sums.fill(0.0);
        let step = E::BLOCK;
        let mut work = Work::new(self, run.rows.len().min(step));
        for first in run.rows.clone().step_by(step) {
            let block = Block { rows: first..run.rows.end.min(first + step), ..run.clone() };
            work.load(&block, saved);
            for tile in block.tiles(a, E::KEYS) {
                work.tile(&tile, &packed.elements[packed.tiles.place(&tile)], &mut sums[tiles.place(&tile)]);
            }
            for (row, values) in block.rows.clone().zip(work.dq.chunks_exact(self.wide)) {
                // SAFETY: queries of segments are disjoint (`check`), so this head of this query is this task's alone.
                let out = unsafe { dq.slice(a.q_at(&block, row), a.head_dim) };
                T::narrow(cpu.simd(), &values[..a.head_dim], out);
            }
        }
        Partial { tiles, sums: Some(sums) }
    }

    /// Adds up what the runs of a head found, in their order, and writes it as rows.
    fn add_up<T: Stored>(&self, run: &Block, mut partial: Vec<Partial>, gradients: [&Shared<T>; 2]) {
        let (a, simd, d, nr) = (self.a, self.cpu.simd(), self.a.head_dim, self.kernel.nr);
        let Block { segment, kv_head, .. } = *run;
        let (mut rows, mut total) = (self.cpu.scratch(nr * d), self.cpu.scratch(self.sums_len()));
        for number in 0..segment.kv_len.div_ceil(E::KEYS) {
            let tile = Tile::new(segment, kv_head, number, E::KEYS);
            total.fill(0.0);
            for Partial { tiles, sums } in &mut partial {
                if let (Some(place), Some(sums)) = (tiles.find(&tile), sums) {
                    axpy(simd, 1.0, &sums[place], &mut total);
                }
            }
            let strips = tile.keys.len().next_multiple_of(nr) * self.deep;
            for (total, gradient) in total.chunks_exact(strips).zip(gradients) {
                for (total, first) in total.chunks_exact(self.deep * nr).zip(tile.keys.clone().step_by(nr)) {
                    interleave(simd, total, nr, d, d, &mut rows);
                    for (key, row) in (first..tile.keys.end).zip(rows.chunks_exact(d)) {
                        // SAFETY: keys of segments are disjoint (`check_keys`), so this head of this key is this task's.
                        T::narrow(simd, row, unsafe { gradient.slice(a.kv_at(&tile, key), d) });
                    }
                }
            }
        }
    }
}

/// The working memory of one task: rows of a block, and one tile of keys.
struct Work<'a, E: Operand, T: Stored> {
    pass: &'a Backward<'a, E>,
    held: Hold,
    /// Rows of q and of dout as left-hand operands, and as steps of such.
    q: Buffer<E>,
    dout: Buffer<E>,
    q_steps: Buffer<E>,
    dout_steps: Buffer<E>,
    /// `[row][head_dim, filled up to nr]`.
    dq: Buffer,
    lse: Buffer,
    delta: Buffer,
    /// Which keys of the segment each row sees.
    seen: Vec<Range<usize>>,
    /// `[row][nr]` of a strip of keys: scores, then P.
    p: Buffer,
    /// The same of dP, then dS: of one strip, or of all in a tile; see [`Operand::STRIPS`].
    ds: Buffer,
    /// Without those, dS of a tile as a left-hand operand: a panel of rows after another, of all keys.
    left: Buffer<E>,
    /// Rows before they are packed.
    rows: [Buffer<T>; 2],
    widened: [Buffer; 2],
}

impl<'a, E: Operand, T: Stored> Work<'a, E, T> {
    /// For blocks of at most `rows` rows.
    fn new(pass: &'a Backward<E>, rows: usize) -> Self {
        let Backward { cpu, a, kernel, deep, wide, rows: step, .. } = *pass;
        let (d, padded) = (a.head_dim, rows.next_multiple_of(step));
        let [q, dout] = std::array::from_fn(|_| cpu.scratch_of(kernel.packed_a(rows, d)));
        let [q_steps, dout_steps] = std::array::from_fn(|_| cpu.scratch_of(kernel.depth(rows) * deep));
        let [lse, delta] = std::array::from_fn(|_| cpu.scratch(rows));
        let (p, strips) = (cpu.scratch(step * kernel.nr), if E::STRIPS { E::KEYS / kernel.nr } else { 1 });
        let ds = cpu.scratch(strips * step * kernel.nr);
        let left = cpu.scratch_of(if E::STRIPS { 0 } else { step * E::KEYS });
        let gathered = std::array::from_fn(|_| cpu.scratch_of(rows * d));
        let widened = std::array::from_fn(|_| cpu.scratch(d));
        let dq = cpu.scratch(padded * wide);
        let seen = Vec::with_capacity(rows);
        let held = Hold::new(cpu.simd());
        Work { pass, held, q, dout, q_steps, dout_steps, dq, lse, delta, seen, p, ds, left, rows: gathered, widened }
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
        for (x, panels, steps) in [(x, &mut self.q, &mut self.q_steps), (y, &mut self.dout, &mut self.dout_steps)] {
            E::left(simd, kernel, by_row(x, d), n, d, panels);
            E::steps(simd, kernel, by_column(x, d), d, n, steps);
        }
        self.seen.clear();
        self.seen.extend(block.rows.clone().map(|row| a.seen(&block.segment, row)));
        self.dq.fill(0.0);
    }

    /// One tile of keys, a few rows at a time.
    fn tile(&mut self, tile: &Tile, packed: &[E], sums: &mut [f32]) {
        for first in (0..self.seen.len()).step_by(self.pass.rows) {
            let last = self.seen.len().min(first + self.pass.rows) - 1;
            if self.seen[first].start < tile.keys.end && self.seen[last].end > tile.keys.start {
                self.rows_of_tile(first..last + 1, tile, packed, sums);
            }
        }
    }

    /// The five products of some rows and one tile of keys.
    fn rows_of_tile(&mut self, rows: Range<usize>, tile: &Tile, packed: &[E], sums: &mut [f32]) {
        let Backward { cpu, a, kernel, deep, wide, rows: step, .. } = *self.pass;
        let (Kernel { mr, nr, .. }, d, simd) = (kernel, a.head_dim, cpu.simd());
        let (n, all) = (tile.keys.len(), self.seen.len());
        let (values, keys) = packed.split_at(kernel.packed_b(n, d));
        let (keys, columns) = keys.split_at(kernel.packed_b(n, d));
        let (dk, dv) = sums.split_at_mut(n.next_multiple_of(nr) * deep);

        // The strips of keys that each panel of rows has seen.
        let mut done = vec![0..0; rows.len().div_ceil(mr)];
        let strip = kernel.packed_b(nr, d);
        let strips = values.chunks_exact(strip).zip(keys.chunks_exact(strip));
        let sums = dk.chunks_exact_mut(deep * nr).zip(dv.chunks_exact_mut(deep * nr));
        for (i, ((values, keys), (dk, dv))) in strips.zip(sums).enumerate() {
            let first = tile.keys.start + i * nr;
            let seen = &self.seen[rows.clone()];
            let end = rows.start + seen.partition_point(|seen| seen.start < tile.keys.end.min(first + nr));
            let start = rows.start + seen.partition_point(|seen| seen.end <= first) / mr * mr;
            if start >= end {
                continue;
            }
            let (m, panel) = (end - start, (start - rows.start) / mr);
            let ds = &mut self.ds[if E::STRIPS { i * step * nr } else { 0 } + panel * mr * nr..];
            let products = Shape { m: m.next_multiple_of(mr), n: nr, k: d, alpha: 1.0, add: false };
            E::multiply(&self.held, kernel, products, &self.q[start * kernel.depth(d)..], keys, &mut self.p, nr);
            E::multiply(&self.held, kernel, products, &self.dout[start * kernel.depth(d)..], values, ds, nr);
            let (lse, delta) = (&self.lse[start..end], &self.delta[start..end]);
            let scored = Scored { seen: &self.seen[start..end], first, lse, delta, scale: a.scale };
            let left = self.left.get_mut(panel * mr * E::KEYS..).unwrap_or_default();
            let [p, ds] = E::gradients(simd, kernel, &mut self.p, ds, &scored, i, left);
            for done in &mut done[panel..panel + m.div_ceil(mr)] {
                *done = if Range::is_empty(done) { i..i + 1 } else { done.start..i + 1 };
            }
            for (packed, right, sums) in [(&self.dout_steps, p, dv), (&self.q_steps, ds, dk)] {
                let steps = Steps { packed, len: all, taken: start..end };
                E::weigh(&self.held, kernel, steps, right, sums, true);
            }
        }
        let panels = self.dq[rows.start * wide..].chunks_exact_mut(mr * wide).zip(done).enumerate();
        for (i, (dq, strips)) in panels {
            let panel = self.left.get(i * mr * E::KEYS..).unwrap_or_default();
            let ds = ScoreGradients { strips: &self.ds[i * mr * nr..], stride: step * nr, panel };
            let taken = strips.start * nr..n.min(strips.end * nr);
            if taken.is_empty() {
                continue;
            }
            for (columns, j) in columns.chunks_exact(kernel.packed_b(nr, n)).zip((0..wide).step_by(nr)) {
                E::onto_queries(&self.held, kernel, &ds, taken.clone(), columns, &mut dq[j..], wide);
            }
        }
    }
}

/// What the products of some rows with a strip of keys become gradients with.
pub(super) struct Scored<'a> {
    /// Which keys each row sees.
    pub(super) seen: &'a [Range<usize>],
    /// The strip's first key.
    pub(super) first: usize,
    pub(super) lse: &'a [f32],
    pub(super) delta: &'a [f32],
    pub(super) scale: f32,
}

simd! {
    /// Products `[row][lane]` become probabilities P and `dp` becomes dS, zero where a row does not see the key.
    pub(super) fn score_gradients(width: usize, products: &mut [f32], dp: &mut [f32], of: &Scored) {
        match width {
            32 => score_gradients_of::<32>(products, dp, of),
            _ => score_gradients_of::<16>(products, dp, of),
        }
    }
}

#[inline(always)]
fn score_gradients_of<const W: usize>(products: &mut [f32], dp: &mut [f32], of: &Scored) {
    let rows = products.as_chunks_mut::<W>().0.iter_mut().zip(dp.as_chunks_mut::<W>().0);
    for (((p, ds), seen), (lse, delta)) in rows.zip(of.seen).zip(of.lse.iter().zip(of.delta)) {
        for i in 0..W {
            p[i] = exp_or_zero(p[i].mul_add(of.scale, -lse));
            ds[i] = p[i] * (ds[i] - delta) * of.scale;
        }
        if seen.start > of.first || seen.end < of.first + W {
            hide(p, seen, of.first);
            hide(ds, seen, of.first);
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
