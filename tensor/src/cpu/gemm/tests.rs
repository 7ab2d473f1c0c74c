use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use super::*;
use crate::cpu::{Level, Simd};

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

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    F32,
    Bf16,
    F16,
}

/// An owned matrix of some dtype, laid out row by row, column by column or with gaps.
struct Owned {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    f16: Vec<f16>,
    kind: Kind,
    shape: [usize; 2],
    strides: [usize; 2],
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Rows,
    Columns,
    Gaps,
}

impl Owned {
    fn new(kind: Kind, rows: usize, cols: usize, order: Order, seed: u32) -> Self {
        let strides = match order {
            Order::Rows => [cols, 1],
            Order::Columns => [1, rows],
            Order::Gaps => [3 * cols + 1, 3],
        };
        let len = if rows * cols == 0 { 0 } else { (rows - 1) * strides[0] + (cols - 1) * strides[1] + 1 };
        let v = values(len, seed);
        let (bf16, f16) =
            (v.iter().map(|v| bf16::from_f32(*v)).collect(), v.iter().map(|v| f16::from_f32(*v)).collect());
        Owned { f32: v, bf16, f16, kind, shape: [rows, cols], strides }
    }

    fn mat(&self) -> Mat<'_> {
        let data = match self.kind {
            Kind::F32 => Elems::F32(&self.f32),
            Kind::Bf16 => Elems::Bf16(&self.bf16),
            Kind::F16 => Elems::F16(&self.f16),
        };
        Mat::new(data, self.shape[0], self.shape[1], self.strides[0], self.strides[1]).expect("a view of its own data")
    }

    fn at(&self, i: usize, j: usize, round: bool) -> f64 {
        let at = i * self.strides[0] + j * self.strides[1];
        let x = match self.kind {
            Kind::F32 => self.f32[at],
            Kind::Bf16 => self.bf16[at].to_f32(),
            Kind::F16 => self.f16[at].to_f32(),
        };
        f64::from(if round { bf16::from_f32(x).to_f32() } else { x })
    }
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    kinds: [Kind; 3],
    orders: [Order; 2],
    options: Options,
}

const GUARD: f32 = -77.0;

/// C as f32 after one product into a C with gaps and guards, which must survive.
fn product(cpu: &Cpu, case: &Case) -> Vec<f32> {
    let Case { m, n, k, kinds, orders, options } = *case;
    let a = Owned::new(kinds[0], m, k, orders[0], 1);
    let b = Owned::new(kinds[1], k, n, orders[1], 2);
    let ldc = n + 3;
    let mut start = values(m * ldc, 3);
    start.iter_mut().enumerate().filter(|(i, _)| i % ldc >= n).for_each(|(_, x)| *x = GUARD);
    let panels = Dense::new(cpu.simd(), b.mat());
    let end = match kinds[2] {
        Kind::F32 => {
            gemm(cpu, &a.mat(), &panels, Out::F32(&mut start), ldc, options).expect("shapes fit");
            start
        }
        Kind::Bf16 => {
            let mut c: Vec<bf16> = start.iter().map(|x| bf16::from_f32(*x)).collect();
            gemm(cpu, &a.mat(), &panels, Out::Bf16(&mut c), ldc, options).expect("shapes fit");
            c.iter().map(|x| x.to_f32()).collect()
        }
        Kind::F16 => {
            let mut c: Vec<f16> = start.iter().map(|x| f16::from_f32(*x)).collect();
            gemm(cpu, &a.mat(), &panels, Out::F16(&mut c), ldc, options).expect("shapes fit");
            c.iter().map(|x| x.to_f32()).collect()
        }
    };
    assert!(end.iter().enumerate().all(|(i, x)| i % ldc < n || *x == GUARD), "a guard was overwritten");
    check(case, &a, &b, &end);
    end
}

/// Against a product in f64. An element's error is at most the unit roundoff times the longest chain of
/// roundings times the sum of magnitudes: min(k, KC) steps in a block, one a block (of bf16 products at most k, however
/// a level adds up a pair), four more for alpha, C and slack; a 16-bit C adds one rounding of the result.
fn check(case: &Case, a: &Owned, b: &Owned, c: &[f32]) {
    let Case { m, n, k, kinds, options, .. } = *case;
    let store_eps = match kinds[2] {
        Kind::F32 => 0.0,
        Kind::Bf16 => 2f64.powi(-8),
        Kind::F16 => 2f64.powi(-11),
    };
    let longest = if options.round_bf16 { k } else { k.min(KC) + k.div_ceil(KC) };
    let chain = (longest + 4) as f64;
    let old = values(m * (n + 3), 3);
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|kk| a.at(i, kk, options.round_bf16) * b.at(kk, j, options.round_bf16));
            let (sum, magnitude) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
            let old = match kinds[2] {
                Kind::F32 => old[i * (n + 3) + j],
                Kind::Bf16 => bf16::from_f32(old[i * (n + 3) + j]).to_f32(),
                Kind::F16 => f16::from_f32(old[i * (n + 3) + j]).to_f32(),
            };
            let old = if options.accumulate == Accumulate::Add { f64::from(old) } else { 0.0 };
            let want = f64::from(options.alpha) * sum + old;
            let magnitude = f64::from(options.alpha).abs() * magnitude + old.abs();
            let bound = 2f64.powi(-24) * chain * magnitude + store_eps * want.abs() + 1e-7 * store_eps;
            let got = f64::from(c[i * (n + 3) + j]);
            let what = || format!("[{m}, {n}, {k}] {kinds:?} {:?} {options:?} at ({i}, {j})", case.orders);
            assert!((got - want).abs() <= bound, "{}: {got} is not {want} within {bound:e}", what());
        }
    }
}

fn bits(c: &[f32]) -> Vec<u32> {
    c.iter().map(|x| x.to_bits()).collect()
}

const PLAIN: [Kind; 3] = [Kind::F32; 3];

/// Sizes at and around the tiles of every level (4, 6, 14, 32 rows; 16, 32 columns), the groups of AMX (32 steps), the few-row
/// limit and KC.
#[test]
fn sizes_around_every_tile_boundary_agree_with_f64() {
    let sizes = [
        [1, 1, 1],
        [3, 5, 2],
        [8, 33, 70],
        [9, 31, 8],
        [13, 32, 9],
        [14, 33, 64],
        [15, 65, 255],
        [28, 16, 256],
        [29, 97, 257],
        [97, 193, 40],
        [100, 200, 520],
        [11, 17, 1100],
    ];
    for simd in levels() {
        for [m, n, k] in sizes {
            for orders in [[Order::Rows, Order::Columns], [Order::Columns, Order::Rows], [Order::Gaps, Order::Gaps]] {
                let options = Options { alpha: 0.7, accumulate: Accumulate::Add, ..Options::default() };
                product(&Cpu::single(simd), &Case { m, n, k, kinds: PLAIN, orders, options });
                for (out, alpha) in [(Kind::F32, 1.0), (Kind::F32, 0.7), (Kind::Bf16, 1.0)] {
                    let (kinds, options) =
                        ([Kind::Bf16, Kind::Bf16, out], Options { alpha, round_bf16: true, ..options });
                    product(&Cpu::single(simd), &Case { m, n, k, kinds, orders, options });
                }
            }
        }
    }
}

/// A sum of no products is 0, however the empty operands are laid out: few rows and many, every dtype.
#[test]
fn no_steps_along_k_give_zero_or_leave_c() {
    let orders = [Order::Rows, Order::Columns, Order::Gaps];
    for (simd, kind) in levels().into_iter().flat_map(|simd| [Kind::F32, Kind::Bf16, Kind::F16].map(|k| (simd, k))) {
        for (a, b) in orders.into_iter().flat_map(|a| orders.map(|b| (a, b))) {
            for (m, accumulate) in [3, 31].into_iter().flat_map(|m| [(m, Accumulate::Store), (m, Accumulate::Add)]) {
                let options = Options { accumulate, ..Options::default() };
                product(&Cpu::single(simd), &Case { m, n: 40, k: 0, kinds: [kind; 3], orders: [a, b], options });
            }
        }
    }
}

#[test]
fn every_dtype_in_every_place_agrees_with_f64() {
    let kinds = [Kind::F32, Kind::Bf16, Kind::F16];
    let all = kinds.into_iter().flat_map(|a| kinds.into_iter().flat_map(move |b| kinds.map(|c| [a, b, c])));
    for kinds in all {
        for simd in levels() {
            for [m, n, k] in [[3, 40, 300], [31, 50, 300]] {
                for accumulate in [Accumulate::Store, Accumulate::Add] {
                    for (orders, round_bf16) in [
                        ([Order::Rows, Order::Columns], false),
                        ([Order::Rows, Order::Rows], true),
                        ([Order::Columns, Order::Gaps], false),
                    ] {
                        let options = Options { alpha: 1.0, accumulate, round_bf16 };
                        product(&Cpu::single(simd), &Case { m, n, k, kinds, orders, options });
                    }
                }
            }
        }
    }
}

/// Sizes that take several packed blocks of rows, of columns and of depth, and tall tasks.
#[test]
fn products_of_several_blocks_agree_with_f64() {
    let cpu = on_threads(Simd::detect(), 2);
    let options = Options { accumulate: Accumulate::Add, ..Options::default() };
    for [m, n, k] in [[1100, 33, 20], [17, 2100, 20], [1900, 1500, 5], [40, 50, 2100], [11, 35, 8300]] {
        for (out, round_bf16) in [(Kind::F32, false), (Kind::Bf16, false), (Kind::F32, true), (Kind::Bf16, true)] {
            let (kinds, options) = ([Kind::F32, Kind::Bf16, out], Options { round_bf16, ..options });
            product(&cpu, &Case { m, n, k, kinds, orders: [Order::Rows, Order::Columns], options });
        }
    }
}

/// Columns enough that how many of them a task takes depends on the threads, and rows enough that B is packed once for all.
#[test]
fn bf16_bits_do_not_depend_on_threads() {
    for (simd, [m, n, k]) in
        levels().into_iter().flat_map(|simd| [[40, 1100, 1000], [1100, 300, 300]].map(|s| (simd, s)))
    {
        let options = Options { alpha: 1.5, accumulate: Accumulate::Add, round_bf16: true };
        let case = Case { m, n, k, kinds: [Kind::Bf16; 3], orders: [Order::Rows, Order::Columns], options };
        let first = bits(&product(&Cpu::single(simd), &case));
        for threads in [2, 3] {
            assert_eq!(bits(&product(&on_threads(simd, threads), &case)), first, "{simd:?}, {threads} threads");
        }
    }
}

#[test]
fn bits_depend_on_neither_threads_nor_level_nor_run() {
    for [m, n, k] in [[5, 300, 1000], [150, 300, 300], [40, 1100, 600], [1100, 300, 300]] {
        let case = Case {
            m,
            n,
            k,
            kinds: PLAIN,
            orders: [Order::Rows, Order::Columns],
            options: Options { alpha: 1.5, accumulate: Accumulate::Add, ..Options::default() },
        };
        let first = bits(&product(&Cpu::single(Simd::detect()), &case));
        for simd in levels() {
            let cpu = on_threads(simd, 2);
            for cpu in [Cpu::single(simd), on_threads(simd, 3), cpu.clone(), cpu] {
                assert_eq!(bits(&product(&cpu, &case)), first, "{cpu:?}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch_of_its_path() {
    let (n, k) = (75, 1700);
    let a = Owned::new(Kind::F32, 1100, k, Order::Rows, 1);
    let b = Owned::new(Kind::F32, k, n, Order::Columns, 2);
    for simd in levels() {
        let cpu = on_threads(simd, 2);
        let rows = |rows: Range<usize>| {
            let mut c = vec![0.0; rows.len() * n];
            let view = Mat::row_major(Elems::F32(&a.f32[rows.start * k..]), rows.len(), k).expect("inside");
            let panels = Dense::new(simd, b.mat());
            gemm(&cpu, &view, &panels, Out::F32(&mut c), n, Options::default()).expect("shapes fit");
            bits(&c)
        };
        let all = rows(0..300);
        for part in [0..9, 3..14, 7..250, 288..300] {
            assert_eq!(rows(part.clone()), all[part.start * n..part.end * n], "{simd:?} {part:?}");
        }
        let rounded = |rows: Range<usize>| {
            let mut c = vec![0.0; rows.len() * n];
            let view = Mat::row_major(Elems::Bf16(&a.bf16[rows.start * k..]), rows.len(), k).expect("inside");
            let (panels, options) =
                (Dense::new(simd, b.mat()), Options { alpha: 0.3, round_bf16: true, ..Options::default() });
            gemm(&cpu, &view, &panels, Out::F32(&mut c), n, options).expect("shapes fit");
            bits(&c)
        };
        let all = rounded(0..1100);
        assert_eq!(rounded(3..14), all[3 * n..14 * n], "{simd:?}");
        let few = rows(20..28);
        assert_eq!(rows(21..22), few[n..2 * n]);
        assert_eq!(rows(24..28), few[4 * n..]);
    }
}

#[test]
fn a_nan_or_infinity_stays_in_its_row() {
    for m in [4, 40] {
        let (n, k) = (50, 300);
        let mut a = Owned::new(Kind::F32, m, k, Order::Rows, 1);
        let b = Owned::new(Kind::F32, k, n, Order::Columns, 2);
        (a.f32[5], a.f32[2 * k]) = (f32::NAN, f32::INFINITY);
        let mut c = vec![0.0; m * n];
        let panels = Dense::new(Simd::detect(), b.mat());
        gemm(&Cpu::single(Simd::detect()), &a.mat(), &panels, Out::F32(&mut c), n, Options::default()).expect("fits");
        assert!(c[..n].iter().chain(&c[2 * n..3 * n]).all(|x| !x.is_finite()));
        assert!(c[n..2 * n].iter().chain(&c[3 * n..]).all(|x| x.is_finite()));
    }
}

#[test]
fn empty_products() {
    for simd in levels() {
        for m in [2, 20] {
            for (accumulate, want) in [(Accumulate::Store, 0.0), (Accumulate::Add, 5.0)] {
                let options = Options { accumulate, ..Options::default() };
                for kind in [Kind::F32, Kind::Bf16] {
                    let (a, b) = (Owned::new(kind, m, 0, Order::Rows, 1), Owned::new(kind, 0, 3, Order::Rows, 2));
                    let (mut c, mut h) = (vec![5.0; m * 3], vec![bf16::from_f32(5.0); m * 3]);
                    let (cpu, panels) = (Cpu::single(simd), Dense::new(simd, b.mat()));
                    gemm(&cpu, &a.mat(), &panels, Out::F32(&mut c), 3, options).expect("k = 0");
                    gemm(&cpu, &a.mat(), &panels, Out::Bf16(&mut h), 3, options).expect("k = 0");
                    assert!(c.iter().all(|x| *x == want) && h.iter().all(|x| x.to_f32() == want));
                }
            }
            let (a, b) = (Owned::new(Kind::F32, m, 4, Order::Rows, 1), Owned::new(Kind::F32, 4, 0, Order::Rows, 2));
            let cpu = Cpu::single(simd);
            gemm(&cpu, &a.mat(), &Dense::new(simd, b.mat()), Out::F32(&mut []), 0, Options::default()).expect("n = 0");
        }
        let (a, b) = (Owned::new(Kind::F32, 0, 4, Order::Rows, 1), Owned::new(Kind::F32, 4, 5, Order::Rows, 2));
        let cpu = Cpu::single(simd);
        gemm(&cpu, &a.mat(), &Dense::new(simd, b.mat()), Out::F32(&mut []), 5, Options::default()).expect("m = 0");
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let (x, simd) = (values(24, 1), Simd::detect());
    let cpu = Cpu::single(simd);
    let mat = |rows, cols| Mat::row_major(Elems::F32(&x), rows, cols).expect("24 elements");
    let run = |a: Mat, b: Mat, len: usize, ldc| {
        gemm(&cpu, &a, &Dense::new(simd, b), Out::F32(&mut vec![0.0; len]), ldc, Options::default())
    };
    assert!(run(mat(4, 6), mat(6, 4), 16, 4).is_ok());
    let err = run(mat(4, 6), mat(5, 4), 16, 4).expect_err("6 is not 5");
    assert!(err.is_shape() && err.to_string() == "gemm: [4, 6] times [5, 4]", "{err}");
    assert!(run(mat(4, 6), mat(6, 4), 15, 4).is_err_and(|e| e.is_shape()));
    assert!(run(mat(4, 6), mat(6, 4), 16, 3).is_err_and(|e| e.is_shape()));
    assert!(Mat::row_major(Elems::F32(&x), 5, 5).is_err_and(|e| e.is_shape()));
    assert!(Mat::new(Elems::F32(&x), 3, 2, usize::MAX, 1).is_err_and(|e| e.is_shape()));
}

/// Every f16 and bf16 value widens to the same f32 as the `half` crate says.
#[test]
fn conversions_are_exact() {
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let (f16s, bf16s): (Vec<_>, Vec<_>) = halves.iter().map(|&b| (f16::from_bits(b), bf16::from_bits(b))).unzip();
    let same = |x: f32, y: f32| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
    for simd in levels() {
        let mut out = vec![0.0; halves.len()];
        Elems::F16(&f16s).widen_into(simd, 0, 1, &mut out);
        assert!(out.iter().zip(&f16s).all(|(x, h)| same(*x, h.to_f32())));
        Elems::Bf16(&bf16s).widen_into(simd, 0, 1, &mut out);
        assert!(out.iter().zip(&bf16s).all(|(x, h)| same(*x, h.to_f32())));
    }
}

/// A low-rank term and a bias behind a product are those of products of their own, whatever path and type it takes.
#[test]
fn terms_behind_a_product_are_added_once() {
    let r = 5;
    for (simd, [m, n, k]) in levels().into_iter().flat_map(|simd| {
        [[3, 40, 30], [100, 70, 64], [1100, 45, 33], [300, 40, 0], [20, 33, 8300]].map(|sizes| (simd, sizes))
    }) {
        let a = Owned::new(Kind::Bf16, m, k, Order::Rows, 1);
        let b = Owned::new(Kind::Bf16, k, n, Order::Columns, 2);
        let (u, v) = (Owned::new(Kind::F32, m, r, Order::Gaps, 3), Owned::new(Kind::F32, n, r, Order::Rows, 4));
        let bias = values(n, 5);
        let low_rank = Some(LowRank { u: u.mat(), v: v.mat(), scale: 0.5 });
        let after = After { low_rank, bias: Some(&bias) };
        for (accumulate, round_bf16) in [(Accumulate::Store, false), (Accumulate::Add, true)] {
            let options = Options { alpha: 2.0, accumulate, round_bf16 };
            let (mut c, mut h) = (vec![1.0; m * n], vec![bf16::ONE; m * n]);
            let (cpu, panels) = (on_threads(simd, 2), Dense::new(simd, b.mat()));
            gemm_and(&cpu, &a.mat(), &panels, Out::F32(&mut c), n, options, after).expect("shapes fit");
            gemm_and(&cpu, &a.mat(), &panels, Out::Bf16(&mut h), n, options, after).expect("shapes fit");
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|kk| a.at(i, kk, false) * b.at(kk, j, false)).sum();
                    let term: f64 = (0..r).map(|kk| u.at(i, kk, false) * v.at(j, kk, false)).sum();
                    let old = if accumulate == Accumulate::Add { 1.0 } else { 0.0 };
                    let want = 2.0 * sum + 0.5 * term + f64::from(bias[j]) + old;
                    let (got, rounded) = (f64::from(c[i * n + j]), h[i * n + j].to_f64());
                    let what = || format!("{simd:?} [{m}, {n}, {k}] at ({i}, {j}): {got}, {rounded}, not {want}");
                    assert!((got - want).abs() <= 1e-6 * (k as f64 + 10.0), "{}", what());
                    // Few rows, and no steps, are rounded after each of three terms.
                    assert!((rounded - want).abs() <= 3.0 / 256.0 * (want.abs() + 4.0), "{}", what());
                }
            }
        }
    }
}

/// Beside a 16-bit C a low-rank term keeps 16 bits of its factors: more than f16 has.
#[test]
fn a_low_rank_term_keeps_sixteen_bits() {
    let (m, n, k, r) = (40, 50, 32, 16);
    let zero = Owned { bf16: vec![bf16::ZERO; m * k], ..Owned::new(Kind::Bf16, m, k, Order::Rows, 1) };
    let b = Owned::new(Kind::Bf16, k, n, Order::Columns, 2);
    let (u, v) = (Owned::new(Kind::F32, m, r, Order::Rows, 3), Owned::new(Kind::F32, n, r, Order::Rows, 4));
    let after = After { low_rank: Some(LowRank { u: u.mat(), v: v.mat(), scale: 1.0 }), bias: None };
    for simd in levels() {
        let (cpu, panels) = (Cpu::single(simd), Dense::new(simd, b.mat()));
        let mut c = vec![f16::ZERO; m * n];
        let options = Options { round_bf16: true, ..Options::default() };
        gemm_and(&cpu, &zero.mat(), &panels, Out::F16(&mut c), n, options, after).expect("shapes fit");
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let terms = (0..r).map(|kk| u.at(i, kk, false) * v.at(j, kk, false));
            let (want, magnitude) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
            let (got, bound) = (c[i * n + j].to_f64(), 2f64.powi(-11) * want.abs() + 2f64.powi(-16) * magnitude);
            assert!((got - want).abs() <= bound, "{simd:?} at ({i}, {j}): {got}, not {want} within {bound}");
        }
    }
}

/// Numbers that no memory holds are refused, not wrapped.
#[test]
fn strips_of_impossible_sizes_are_refused() {
    let (simd, x) = (Simd::detect(), vec![bf16::ONE; 8]);
    let refused = |f: &(dyn Fn() + std::panic::RefUnwindSafe)| std::panic::catch_unwind(f).is_err();
    assert!(refused(&|| pair_columns(simd, &[], 0, [0, 1 << 63], 2, &mut [])));
    assert!(refused(&|| pair_columns(simd, &x, 1 << 62, [5, 2], 8, &mut [bf16::ZERO; 16])));
    assert!(refused(&|| pair_rows(simd, &x, 1 << 62, [2, 5], 2, &mut [bf16::ZERO; 12])));
    assert!(refused(&|| pair_rows(simd, &x, 4, [3, 2], 2, &mut [bf16::ZERO; 4])));
}
