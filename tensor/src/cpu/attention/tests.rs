use std::sync::Arc;

use half::bf16;

use super::*;
use crate::cpu::{Cpu, Level, Simd};

fn levels() -> Vec<Simd> {
    Level::ALL.into_iter().filter_map(|l| Simd::new(l).ok()).collect()
}

fn on_threads(simd: Simd, threads: usize) -> Cpu {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small pool");
    Cpu::on_pool(simd, Arc::new(pool))
}

/// Values in [-1, 1) from a hash of the index.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let hash = |i: usize| (i as u32 ^ seed).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(2_246_822_519);
    (0..n).map(|i| hash(i) as f32 / 2f32.powi(31) - 1.0).collect()
}

/// An attention layer with its inputs.
#[derive(Clone)]
struct Case {
    attention: Attention,
    segments: Vec<Segment>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
}

/// Outputs of both passes: out, lse, dq, dk, dv.
type Results<T> = [Vec<T>; 5];

impl Case {
    /// `lens` are (q_len, kv_len) of the segments; one token lies between two segments, in none.
    fn new([heads, kv_heads, head_dim]: [usize; 3], mask: Mask, lens: &[(usize, usize)]) -> Self {
        let (mut tq, mut tkv, mut segments) = (0, 0, Vec::new());
        for &(q_len, kv_len) in lens {
            segments.push(Segment { q_start: tq, q_len, kv_start: tkv, kv_len });
            (tq, tkv) = (tq + q_len + 1, tkv + kv_len + 1);
        }
        let attention = Attention { heads, kv_heads, head_dim, scale: 1.5 / (head_dim as f32).sqrt(), mask };
        let kv = tkv * kv_heads * head_dim;
        let scaled = |n, seed| values(n, seed).iter().map(|x| 2.0 * x).collect();
        let q = tq * heads * head_dim;
        Case { attention, segments, q: scaled(q, 1), k: scaled(kv, 2), v: values(kv, 3), dout: values(q, 4) }
    }

    fn run(&self, cpu: &Cpu) -> Results<f32> {
        self.run_as::<f32>(cpu)
    }

    /// With tensors of `T`.
    fn run_as<T: Stored>(&self, cpu: &Cpu) -> Results<f32> {
        let Case { attention, segments, q, k, v, dout } = self;
        let [q, k, v, dout] = [q, k, v, dout].map(|x| x.iter().map(|x| T::from_f32(*x)).collect::<Vec<T>>());
        let mut results = [q.len(), q.len(), k.len(), k.len()].map(|n| vec![T::from_f32(f32::NAN); n]);
        let mut lse = vec![f32::NAN; q.len() / attention.head_dim];
        let [out, dq, dk, dv] = &mut results;
        forward(cpu, attention, segments, &q, &k, &v, out, &mut lse).expect("sizes fit");
        let gradients = Gradients { q: dq, k: dk, v: dv };
        backward(cpu, attention, segments, &q, &k, &v, out, &lse, &dout, gradients).expect("sizes fit");
        let [out, dq, dk, dv] = results.map(|x| x.iter().map(|x| x.to_f32()).collect());
        [out, lse, dq, dk, dv]
    }

    /// Row by row in f64; with each result the sum of magnitudes behind it.
    fn exact(&self) -> [Results<f64>; 2] {
        let Attention { heads, kv_heads, head_dim: d, scale, mask } = self.attention;
        let sizes = [self.q.len(), self.q.len() / d, self.q.len(), self.k.len(), self.k.len()];
        let (mut value, mut size) = (sizes.map(|n| vec![0.0; n]), sizes.map(|n| vec![0.0; n]));
        value[1].fill(f64::NEG_INFINITY);
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        for (segment, i, h) in
            self.segments.iter().flat_map(|s| (0..s.q_len).flat_map(move |i| (0..heads).map(move |h| (s, i, h))))
        {
            let row = (segment.q_start + i) * heads + h;
            let key = |j: usize| ((segment.kv_start + j) * kv_heads + h / (heads / kv_heads)) * d;
            let position = (i + segment.kv_len) as i64 - segment.q_len as i64;
            let sees = |j: usize| match mask {
                Mask::Full => true,
                Mask::Causal => j as i64 <= position,
                Mask::Window(n) => j as i64 <= position && j as i64 > position - n as i64,
            };
            let seen: Vec<usize> = (0..segment.kv_len).filter(|&j| sees(j)).collect();
            if seen.is_empty() {
                continue;
            }
            let (q, dout) = (&self.q[row * d..][..d], &self.dout[row * d..][..d]);
            let scores: Vec<f64> = seen.iter().map(|&j| f64::from(scale) * dot(q, &self.k[key(j)..][..d])).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
            let terms = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from((q * k).abs())).sum::<f64>();
            let reach = seen.iter().map(|&j| f64::from(scale) * terms(&self.k[key(j)..])).fold(0.0, f64::max);
            (value[1][row], size[1][row]) = (lse, lse.abs() + reach);
            let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
            let mut add = |which: usize, at: usize, x: f64, magnitude: f64| {
                value[which][at] += x;
                size[which][at] += magnitude;
            };
            let dp: Vec<f64> = seen.iter().map(|&j| dot(dout, &self.v[key(j)..][..d])).collect();
            let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            let reach: f64 = dout.iter().map(|x| f64::from(x.abs())).sum();
            for ((&j, p), dp) in seen.iter().zip(&p).zip(&dp) {
                let ds = p * (dp - delta) * f64::from(scale);
                // |dp| and |delta| are at most the sum of |dout|, since |v| <= 1.
                let ds_size = p * 2.0 * reach * f64::from(scale);
                for c in 0..d {
                    let at = key(j) + c;
                    let [v, k, q, dout] = [self.v[at], self.k[at], q[c], dout[c]].map(f64::from);
                    add(0, row * d + c, p * v, p * v.abs());
                    add(2, row * d + c, ds * k, ds_size * k.abs());
                    add(3, at, ds * q, ds_size * q.abs());
                    add(4, at, p * dout, p * dout.abs());
                }
            }
        }
        [value, size]
    }

    /// Each result within eps * magnitude * (roundings of its longest chain): d of a score, whose error e^s
    /// carries on times the largest score; kv tiles or rows added up one after the other.
    fn check(&self, cpu: &Cpu) {
        let [value, size] = self.exact();
        let a = self.attention;
        let top = 4.0 * f64::from(a.scale) * a.head_dim as f64;
        let longest = self.segments.iter().map(|s| s.kv_len.max(s.q_len * a.group())).max().unwrap_or(0);
        let chain = (a.head_dim as f64).sqrt() * top + longest as f64 + 32.0;
        let names = ["out", "lse", "dq", "dk", "dv"];
        for ((got, name), (want, size)) in self.run(cpu).iter().zip(names).zip(value.iter().zip(&size)) {
            for (i, ((got, want), size)) in got.iter().zip(want).zip(size).enumerate() {
                let bound = 2f64.powi(-24) * chain * size;
                let off = (f64::from(*got) - want).abs();
                let equal = f64::from(*got) == *want;
                assert!(equal || off <= bound, "{cpu:?} {a:?} {name}[{i}] = {got}, not {want} within {bound:e}");
            }
        }
    }
}

fn bits(results: &Results<f32>) -> Vec<Vec<u32>> {
    results.iter().map(|x| x.iter().map(|x| x.to_bits()).collect()).collect()
}

const MASKS: [Mask; 5] = [Mask::Causal, Mask::Full, Mask::Window(1), Mask::Window(50), Mask::Window(1000)];

#[test]
fn every_head_size_and_mask_agrees_with_f64() {
    for simd in levels() {
        let cpu = Cpu::single(simd);
        for (d, shape) in [(8, [4, 2]), (40, [3, 1]), (64, [3, 3]), (96, [2, 1]), (128, [4, 2])] {
            for mask in MASKS {
                Case::new([shape[0], shape[1], d], mask, &[(33, 33), (5, 130), (1, 1), (97, 97)]).check(&cpu);
            }
        }
    }
}

#[test]
fn sizes_across_tiles_blocks_and_runs_agree_with_f64() {
    let simd = Simd::detect();
    for cpu in [Cpu::single(simd), on_threads(simd, 2)] {
        for mask in [Mask::Causal, Mask::Window(100)] {
            Case::new([1, 1, 8], mask, &[(300, 300), (600, 610)]).check(&cpu);
            Case::new([6, 2, 16], mask, &[(96, 192), (97, 193), (95, 96)]).check(&cpu);
            Case::new([4, 1, 8], mask, &[(400, 450)]).check(&cpu);
        }
    }
}

#[test]
fn more_queries_than_keys_and_no_keys_give_zeros() {
    for mask in [Mask::Causal, Mask::Window(2), Mask::Window(0)] {
        let case = Case::new([2, 1, 8], mask, &[(20, 7), (3, 0), (0, 5)]);
        for simd in levels() {
            case.check(&Cpu::single(simd));
            let [out, lse, dq, ..] = case.run(&Cpu::single(simd));
            assert!(out[..13 * 16].iter().chain(&dq[..13 * 16]).all(|x| *x == 0.0));
            assert!(lse[..26].iter().all(|x| *x == f32::NEG_INFINITY));
        }
    }
}

/// Inputs rounded to 16 bits: outputs then differ from those in f32 by the roundings of the weights, the score gradients and
/// the results.
#[test]
fn sixteen_bits_agree_with_f32() {
    for (d, [heads, kv_heads]) in [(8, [4, 2]), (40, [3, 1]), (64, [3, 3]), (128, [2, 1])] {
        for mask in MASKS {
            let mut case = Case::new([heads, kv_heads, d], mask, &[(33, 33), (5, 130), (1, 1), (230, 230)]);
            for x in [&mut case.q, &mut case.k, &mut case.v, &mut case.dout] {
                x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
            let [_, size] = case.exact();
            for simd in levels() {
                let cpu = Cpu::single(simd);
                let wide = case.run(&cpu);
                for ((wide, narrow), size) in wide.iter().zip(&case.run_as::<bf16>(&cpu)).zip(&size) {
                    for ((wide, narrow), size) in wide.iter().zip(narrow).zip(size) {
                        let bound = 2f64.powi(-7) * size + 1e-30;
                        let near = wide == narrow || (f64::from(*wide) - f64::from(*narrow)).abs() <= bound;
                        assert!(near, "{simd:?} {d} {mask:?}: {narrow}, not {wide} within {bound}");
                    }
                }
            }
        }
    }
}

#[test]
fn bits_depend_on_neither_threads_nor_level_nor_run() {
    let case = Case::new([6, 2, 24], Mask::Causal, &[(350, 350), (70, 200)]);
    let first = bits(&case.run(&Cpu::single(Simd::detect())));
    for simd in levels() {
        let two = on_threads(simd, 2);
        for cpu in [Cpu::single(simd), two.clone(), on_threads(simd, 3), two.clone()] {
            assert_eq!(bits(&case.run(&cpu)), first, "{cpu:?}");
        }
        // Products of bf16 are added up as a level's instructions do it, but the same way on any threads.
        assert_eq!(bits(&case.run_as::<bf16>(&two)), bits(&case.run_as::<bf16>(&Cpu::single(simd))), "{simd:?}");
    }
}

#[test]
fn a_segment_has_the_same_bits_alone_and_among_others() {
    let cpu = on_threads(Simd::detect(), 2);
    for mask in MASKS {
        let mut case = Case::new([4, 2, 16], mask, &[(600, 600), (37, 150), (20, 20)]);
        let all = [case.run(&cpu), case.run_as::<bf16>(&cpu)];
        let segment = case.segments[1];
        case.segments = vec![segment];
        let alone = [case.run(&cpu), case.run_as::<bf16>(&cpu)];
        let (q, kv) = (4 * 16, 2 * 16);
        let q_rows = segment.q_start..segment.q_start + segment.q_len;
        let kv_rows = segment.kv_start..segment.kv_start + segment.kv_len;
        let parts = [&q_rows, &q_rows, &q_rows, &kv_rows, &kv_rows].into_iter().zip([q, 4, q, kv, kv]);
        for ((all, alone), (rows, width)) in
            all.iter().flatten().zip(alone.iter().flatten()).zip(parts.clone().chain(parts))
        {
            let part = rows.start * width..rows.end * width;
            assert!(all[part.clone()].iter().zip(&alone[part]).all(|(x, y)| x.to_bits() == y.to_bits()));
        }
    }
}

/// A query has the same bits in one pass over the prompt, in a later chunk, and alone with a cache.
#[test]
fn prefill_chunks_and_decoding_agree_bit_for_bit() {
    let n = 330;
    for mask in [Mask::Causal, Mask::Window(120)] {
        for parts in [&[(0, 100), (100, 1), (170, 4), (200, 1), (201, 129), (n - 1, 1)][..], &[(n - 3, 3)]] {
            // Wider heads than a chain of a micro-kernel is long, for the shorter list.
            let heads = if parts.len() > 1 { [6, 2, 16] } else { [2, 1, 260] };
            let case = Case::new(heads, mask, &[(n, n)]);
            for simd in levels() {
                let cpu = Cpu::single(simd);
                let whole = [&case.run(&cpu)[0], &case.run_as::<bf16>(&cpu)[0]].map(Clone::clone);
                for &(first, len) in parts {
                    let segment = Segment { q_start: first, q_len: len, kv_start: 0, kv_len: first + len };
                    let part = Case { segments: vec![segment], ..case.clone() };
                    let range = first * heads[0] * heads[2]..(first + len) * heads[0] * heads[2];
                    for (part, whole) in [part.run(&cpu), part.run_as::<bf16>(&cpu)].iter().zip(&whole) {
                        assert_eq!(part[0][range.clone()], whole[range.clone()], "{simd:?} {first} {len}");
                    }
                }
            }
        }
    }
}

#[test]
fn no_segments_give_zeros() {
    let mut case = Case::new([6, 2, 16], Mask::Causal, &[(30, 30)]);
    case.segments.clear();
    assert!(case.run(&Cpu::single(Simd::detect()))[0].iter().all(|x| *x == 0.0));
}

#[test]
fn wrong_sizes_and_segments_are_errors() {
    let cpu = Cpu::single(Simd::detect());
    let case = Case::new([4, 2, 8], Mask::Causal, &[(5, 5), (6, 9)]);
    let run = |attention: Attention, segments: &[Segment], out: usize| {
        let (mut out, mut lse) = (vec![0.0; out], vec![0.0; case.q.len() / 8]);
        forward(&cpu, &attention, segments, &case.q, &case.k, &case.v, &mut out, &mut lse)
    };
    let (a, s, n) = (case.attention, case.segments.clone(), case.q.len());
    assert!(run(a, &s, n).is_ok());
    let refused = |attention: Attention, segments: &[Segment], out: usize| {
        run(attention, segments, out).is_err_and(|e| e.is_shape())
    };
    assert!(refused(a, &s, n - 1));
    assert!(refused(Attention { kv_heads: 3, ..a }, &s, n));
    assert!(refused(Attention { kv_heads: 0, ..a }, &s, n));
    assert!(refused(Attention { head_dim: 7, ..a }, &s, n));
    assert!(refused(a, &[s[1], s[0]], n));
    assert!(refused(a, &[s[0], s[0]], n));
    assert!(refused(a, &[Segment { q_len: 9, ..s[1] }], n));
    assert!(refused(a, &[Segment { kv_start: usize::MAX, ..s[0] }], n));
    let shared = [s[0], Segment { kv_start: 0, ..s[1] }];
    assert!(run(a, &shared, n).is_ok());
    let [out, lse, mut dq, mut dk, mut dv] = case.run(&cpu);
    let gradients = Gradients { q: &mut dq, k: &mut dk, v: &mut dv };
    let err = backward(&cpu, &a, &shared, &case.q, &case.k, &case.v, &out, &lse, &case.dout, gradients);
    assert!(err.is_err_and(|e| e.to_string().contains("share keys")));
}
