//! The backward pass. With P = e^(scores - lse), delta = rowsum(dout * out):
//! dV = P^T dout, dS = P * (dout V^T - delta) * scale, dQ = dS K, dK = dS^T Q.
//!
//! One task is a run of queries and a key head. It finishes its own dQ; for dK and dV it adds up a partial
//! sum over its run. A segment has at most [`MAX_RUNS`] runs, so partial sums stay a fixed multiple of k;
//! they are added in the order of the runs.

use super::forward::hide;
use super::{Attention, Block, KV_TILE, Segment, Tile};
use crate::cpu::gemm::{Elems, Kernel, Lanes, Shape, pack_lanes};
use crate::cpu::math::exp;
use crate::cpu::reduce::{axpy, dot};
use crate::cpu::shared::Shared;
use crate::cpu::{Cpu, simd};
use crate::{Error, Result};

/// The most runs that the queries of a segment are cut into.
const MAX_RUNS: usize = 4;
/// The shortest run: below this, adding partial sums would cost more than it spreads.
const MIN_RUN: usize = 256;

/// Where the gradients go; what was there is overwritten.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[tq, heads, d]`.
    pub q: &'a mut [f32],
    /// `[tkv, kv_heads, d]`.
    pub k: &'a mut [f32],
    /// `[tkv, kv_heads, d]`.
    pub v: &'a mut [f32],
}

/// What one forward pass took and gave, and the gradient of its output.
#[derive(Clone, Copy)]
struct Saved<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    dout: &'a [f32],
}

simd! {
    /// Scores become probabilities P and `dp` becomes dS, zero outside of `bounds`.
    fn score_gradients(
        scores: &mut [f32], dp: &mut [f32], bounds: &[[u32; 2]], lse: &[f32], delta: &[f32], scale: f32,
    ) {
        let rows = scores.as_chunks_mut::<KV_TILE>().0.iter_mut().zip(dp.as_chunks_mut::<KV_TILE>().0);
        for (((p, ds), bounds), (lse, delta)) in rows.zip(bounds).zip(lse.iter().zip(delta)) {
            for (p, ds) in p.iter_mut().zip(ds.iter_mut()) {
                *p = exp(*p - lse);
                *ds = *p * (*ds - delta) * scale;
            }
            hide(p, *bounds, 0.0);
            hide(ds, *bounds, 0.0);
        }
    }
}

/// The gradients of [`super::forward`] from its inputs, its outputs `out` and `lse`, and the gradient `dout`.
///
/// # Errors
/// As the forward pass; also when segments share keys, whose gradients would be written twice.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    cpu: &Cpu,
    attention: &Attention,
    segments: &[Segment],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    gradients: Gradients,
) -> Result<()> {
    let (tq, _) = attention.check(segments, q.len(), k.len(), v.len())?;
    let Gradients { q: dq, k: dk, v: dv } = gradients;
    let of_q = [out.len(), dout.len(), dq.len()] == [q.len(); 3] && lse.len() == tq * attention.heads;
    if !of_q || [dk.len(), dv.len()] != [k.len(); 2] {
        return Err(Error::shape("attention backward", "outputs or gradients differ in size from q, k, v"));
    }
    check_keys(segments)?;
    let saved = Saved { q, k, v, out, lse, dout };
    let runs = segments.iter().map(|s| s.q_len.div_ceil(run_len(s))).max().unwrap_or(0);
    // The first run adds up in dk and dv themselves, each later one in a copy of its own.
    let copies = runs.saturating_sub(1);
    let (mut more_dk, mut more_dv) = (cpu.scratch(copies * k.len()), cpu.scratch(copies * v.len()));
    [&mut *dq, &mut *dk, &mut *dv, &mut more_dk, &mut more_dv].into_iter().for_each(|x| x.fill(0.0));
    {
        let blocks = attention.blocks(segments, run_len);
        let dq = Shared::new(dq);
        let partial = [(Shared::new(dk), Shared::new(&mut more_dk)), (Shared::new(dv), Shared::new(&mut more_dv))];
        cpu.run(blocks.len(), |task| {
            let run = blocks[task].first / run_len(&blocks[task].segment);
            let [dk, dv] = partial.each_ref().map(|(first, more)| match run {
                0 => Partial { sums: first, at: 0 },
                _ => Partial { sums: more, at: (run - 1) * k.len() },
            });
            run_backward(cpu, attention, blocks[task], saved, &dq, dk, dv);
        });
    }
    for copy in 0..copies {
        let copy = copy * k.len()..(copy + 1) * k.len();
        axpy(cpu.simd(), 1.0, &more_dk[copy.clone()], dk);
        axpy(cpu.simd(), 1.0, &more_dv[copy], dv);
    }
    Ok(())
}

/// Queries a run: depends on the segment alone, as its bits must.
fn run_len(segment: &Segment) -> usize {
    segment.q_len.div_ceil(MAX_RUNS).max(MIN_RUN)
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

/// One partial sum of dK or dV: laid out as k, from `at` on.
#[derive(Clone, Copy)]
struct Partial<'a> {
    sums: &'a Shared<'a>,
    at: usize,
}

/// Cuts a run into blocks and takes them in order.
fn run_backward(cpu: &Cpu, a: &Attention, run: Block, saved: Saved, dq: &Shared, dk: Partial, dv: Partial) {
    let mut work = Work::new(cpu, a, a.block_len().min(run.len));
    for first in (0..run.len).step_by(a.block_len()) {
        let block = Block { first: run.first + first, len: a.block_len().min(run.len - first), ..run };
        work.load(block, saved);
        for tile in a.tiles(block) {
            work.tile(block, &tile, saved, dk, dv);
        }
        let width = a.group() * a.head_dim;
        for (i, row) in work.dq.chunks_exact(width).enumerate().take(block.len) {
            // SAFETY: queries of segments are disjoint (`check`), so these heads of this query are this task's alone.
            unsafe { dq.slice(a.q_at(block, i), width) }.copy_from_slice(row);
        }
    }
}

type Buffer = crate::cpu::scratch::Buffer;

/// The working memory of one task: rows of a block, and one tile of keys.
struct Work<'a> {
    cpu: &'a Cpu,
    a: &'a Attention,
    kernel: Kernel,
    /// Rows of q, of dout and of dq: `[row][d]`.
    q: Buffer,
    dout: Buffer,
    dq: Buffer,
    /// q and dout as left-hand operands.
    q_panels: Buffer,
    dout_panels: Buffer,
    lse: Buffer,
    delta: Buffer,
    /// `[row][KV_TILE]`: scores, then P; dP, then dS.
    p: Buffer,
    ds: Buffer,
    /// Whatever operands the next product takes.
    left: Buffer,
    right: Buffer,
    bounds: Vec<[u32; 2]>,
}

impl<'a> Work<'a> {
    fn new(cpu: &'a Cpu, a: &'a Attention, queries: usize) -> Self {
        let (kernel, d, rows) = (Kernel::new(cpu.simd()), a.head_dim, queries * a.group());
        let padded = rows.next_multiple_of(kernel.mr);
        let keys = KV_TILE.next_multiple_of(kernel.mr);
        let wide = d.next_multiple_of(kernel.nr);
        let [q, dout, dq] = std::array::from_fn(|_| cpu.scratch(rows * d));
        let [q_panels, dout_panels] = std::array::from_fn(|_| cpu.scratch(padded * d));
        let [lse, delta] = std::array::from_fn(|_| cpu.scratch(rows));
        let [p, ds] = std::array::from_fn(|_| cpu.scratch(rows * KV_TILE));
        let left = cpu.scratch((padded * KV_TILE).max(rows * keys));
        let right = cpu.scratch(rows.max(KV_TILE) * wide);
        let bounds = Vec::with_capacity(rows);
        Work { cpu, a, kernel, q, dout, dq, q_panels, dout_panels, lse, delta, p, ds, left, right, bounds }
    }

    /// Takes the rows of a block.
    fn load(&mut self, block: Block, saved: Saved) {
        let (a, d, simd, mr) = (self.a, self.a.head_dim, self.cpu.simd(), self.kernel.mr);
        let rows = block.len * a.group();
        a.gather(block, saved.out, &mut self.dq);
        a.gather(block, saved.dout, &mut self.dout);
        for ((delta, out), dout) in self.delta.iter_mut().zip(self.dq.chunks_exact(d)).zip(self.dout.chunks_exact(d)) {
            *delta = dot(simd, out, dout);
        }
        for (i, lse) in self.lse.chunks_exact_mut(a.group()).enumerate().take(block.len) {
            let at = a.q_at(block, i) / d;
            lse.copy_from_slice(&saved.lse[at..at + a.group()]);
        }
        a.gather(block, saved.q, &mut self.q);
        self.dq.fill(0.0);
        pack_lanes(simd, by_row(&self.q, d), 0..rows, 0..d, mr, &mut self.q_panels);
        pack_lanes(simd, by_row(&self.dout, d), 0..rows, 0..d, mr, &mut self.dout_panels);
    }

    /// The five products of one tile of keys.
    fn tile(&mut self, block: Block, tile: &Tile, saved: Saved, dk: Partial, dv: Partial) {
        let (a, kernel, d, simd) = (self.a, self.kernel, self.a.head_dim, self.cpu.simd());
        let Kernel { mr, nr, .. } = kernel;
        let (n, stride) = (tile.keys.len(), a.kv_stride());
        let first = tile.rows.start / mr * mr;
        let m = tile.rows.end - first;
        let at = a.kv_at(block, tile.keys.start);
        let (k, v) = (&saved.k[at..], &saved.v[at..]);

        let scores = Shape { m, n, k: d, alpha: a.scale, add: false };
        pack_lanes(simd, by_row(k, stride), 0..n, 0..d, nr, &mut self.right);
        kernel.multiply(scores, &self.q_panels[first * d..], &self.right, &mut self.p, KV_TILE);
        pack_lanes(simd, by_row(v, stride), 0..n, 0..d, nr, &mut self.right);
        let dp = Shape { alpha: 1.0, ..scores };
        kernel.multiply(dp, &self.dout_panels[first * d..], &self.right, &mut self.ds, KV_TILE);
        a.bounds(block, tile, first..tile.rows.end, &mut self.bounds);
        let (lse, delta) = (&self.lse[first..], &self.delta[first..]);
        score_gradients(simd, &mut self.p, &mut self.ds, &self.bounds, lse, delta, a.scale);

        pack_lanes(simd, by_row(&self.ds, KV_TILE), 0..m, 0..n, mr, &mut self.left);
        pack_lanes(simd, by_column(k, stride), 0..d, 0..n, nr, &mut self.right);
        let to_q = Shape { m, n: d, k: n, alpha: 1.0, add: true };
        kernel.multiply(to_q, &self.left, &self.right, &mut self.dq[first * d..], d);

        for (left, right, sums) in [(&self.p, &self.dout, dv), (&self.ds, &self.q, dk)] {
            pack_lanes(simd, by_column(left, KV_TILE), 0..n, 0..m, mr, &mut self.left);
            pack_lanes(simd, by_column(&right[first * d..], d), 0..d, 0..m, nr, &mut self.right);
            let to_kv = Shape { m: n, n: d, k: m, alpha: 1.0, add: true };
            let rectangle = sums.sums.rectangle(sums.at + at, n, d, stride);
            // SAFETY: keys of segments are disjoint (`check_keys`), so this head of these keys in this run's sums
            // is this task's alone.
            unsafe { kernel.multiply_at(to_kv, &self.left, &self.right, rectangle, stride) };
        }
    }
}

/// The rows of `x`, `stride` apart, as lanes.
fn by_row(x: &[f32], stride: usize) -> Lanes<'_> {
    Lanes { data: Elems::F32(x), lane_stride: stride, k_stride: 1 }
}

/// The columns of `x`, whose rows are `stride` apart, as lanes.
fn by_column(x: &[f32], stride: usize) -> Lanes<'_> {
    Lanes { data: Elems::F32(x), lane_stride: 1, k_stride: stride }
}
