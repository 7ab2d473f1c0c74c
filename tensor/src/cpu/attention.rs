//! Attention forward and backward, one query or key row at a time.

use super::{Cpu, math, reduce};

/// Which keys of its segment a query sees. The last query of a segment stands at its last key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mask {
    /// Those up to its own place.
    Causal,
    /// All.
    Full,
    /// Of those up to its own place the last `n`.
    Window(usize),
}

/// Query rows that see key rows, and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The first query row.
    pub q_start: usize,
    /// How many query rows.
    pub q_len: usize,
    /// The first key row.
    pub kv_start: usize,
    /// How many key rows.
    pub kv_len: usize,
}

impl Segment {
    /// The key rows that query row `q` of this segment sees.
    fn keys(&self, q: usize, mask: Mask) -> std::ops::Range<usize> {
        let place = self.kv_start + self.kv_len - self.q_len.min(self.kv_len) + (q - self.q_start);
        match mask {
            Mask::Full => self.kv_start..self.kv_start + self.kv_len,
            Mask::Causal => self.kv_start..place + 1,
            Mask::Window(n) => self.kv_start.max((place + 1).saturating_sub(n))..place + 1,
        }
    }
}

/// The sizes of q [tokens, heads, width] and of k and v [entries, kv_heads, width].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) entries: usize,
    pub(crate) kv_heads: usize,
    pub(crate) width: usize,
}

impl Shape {
    fn q(&self, token: usize, head: usize) -> std::ops::Range<usize> {
        let start = (token * self.heads + head) * self.width;
        start..start + self.width
    }

    fn kv(&self, entry: usize, head: usize) -> std::ops::Range<usize> {
        let start = (entry * self.kv_heads + head) * self.width;
        start..start + self.width
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

fn segment_of(segments: &[Segment], token: usize) -> &Segment {
    &segments[segments.partition_point(|s| s.q_start + s.q_len <= token)]
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(
    cpu: &Cpu,
    shape: Shape,
    segments: &[Segment],
    mask: Mask,
    scale: f32,
    [q, k, v]: [&[f32]; 3],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (simd, row) = (cpu.simd(), shape.heads * shape.width);
    let attend = |token: usize, head: usize, out: &mut [f32]| {
        let keys = segment_of(segments, token).keys(token, mask);
        let (q, kv_head) = (&q[shape.q(token, head)], head / shape.group());
        let scores: Vec<f32> = keys.clone().map(|j| scale * reduce::dot(simd, q, &k[shape.kv(j, kv_head)])).collect();
        let max = reduce::max(simd, &scores);
        let weights: Vec<f32> = scores.iter().map(|s| math::exp(s - max)).collect();
        let sum = reduce::sum(simd, &weights);
        out.fill(0.0);
        for (j, weight) in keys.zip(&weights) {
            reduce::axpy(simd, weight / sum, &v[shape.kv(j, kv_head)], out);
        }
        max + math::log(sum)
    };
    cpu.chunks(lse, shape.heads, |token, lse| {
        let mut scratch = vec![0.0; shape.width];
        for (head, lse) in lse.iter_mut().enumerate() {
            *lse = attend(token, head, &mut scratch);
        }
    });
    cpu.chunks(out, row, |token, out| {
        for (head, out) in out.chunks_exact_mut(shape.width).enumerate() {
            attend(token, head, out);
        }
    });
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    cpu: &Cpu,
    shape: Shape,
    segments: &[Segment],
    mask: Mask,
    scale: f32,
    [q, k, v]: [&[f32]; 3],
    d_out: &[f32],
    out: &[f32],
    lse: &[f32],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let simd = cpu.simd();
    // The probability of key j for a query, and the gradient of its score.
    let score = |token: usize, head: usize, j: usize| {
        let (at, kv) = (shape.q(token, head), shape.kv(j, head / shape.group()));
        let p = math::exp(scale * reduce::dot(simd, &q[at.clone()], &k[kv.clone()]) - lse[token * shape.heads + head]);
        let delta = reduce::dot(simd, &d_out[at.clone()], &out[at.clone()]);
        (p, p * (reduce::dot(simd, &d_out[at], &v[kv]) - delta) * scale)
    };
    cpu.chunks(dq, shape.heads * shape.width, |token, dq| {
        for (head, dq) in dq.chunks_exact_mut(shape.width).enumerate() {
            dq.fill(0.0);
            for j in segment_of(segments, token).keys(token, mask) {
                reduce::axpy(simd, score(token, head, j).1, &k[shape.kv(j, head / shape.group())], dq);
            }
        }
    });
    // Every (query, head) that sees key row j, in order.
    let seen = |j: usize, kv_head: usize, f: &mut dyn FnMut(usize, usize)| {
        for s in segments.iter().filter(|s| (s.kv_start..s.kv_start + s.kv_len).contains(&j)) {
            for token in (s.q_start..s.q_start + s.q_len).filter(|&t| s.keys(t, mask).contains(&j)) {
                (kv_head * shape.group()..(kv_head + 1) * shape.group()).for_each(|head| f(token, head));
            }
        }
    };
    let len = shape.kv_heads * shape.width;
    cpu.chunks2((dk, len), (dv, len), |j, dk, dv| {
        let rows = dk.chunks_exact_mut(shape.width).zip(dv.chunks_exact_mut(shape.width));
        for (kv_head, (dk, dv)) in rows.enumerate() {
            dk.fill(0.0);
            dv.fill(0.0);
            seen(j, kv_head, &mut |token, head| {
                let (p, ds) = score(token, head, j);
                reduce::axpy(simd, ds, &q[shape.q(token, head)], dk);
                reduce::axpy(simd, p, &d_out[shape.q(token, head)], dv);
            });
        }
    });
    debug_assert_eq!((dk.len(), dq.len()), (shape.entries * len, shape.tokens * shape.heads * shape.width));
}
