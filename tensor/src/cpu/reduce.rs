//! Sums, dot products and maxima of slices, in one fixed tree of lanes.
//!
//! Element i belongs to lane i mod 64 at every SIMD level (four AVX-512 registers, eight AVX2 ones), a
//! lane adds its elements in order, and the lanes are folded in halves: 64, 32, .. 1. So all levels give
//! the same bits, and a result depends on nothing but the slice.

use super::simd;

/// How many partial sums run side by side.
pub const LANES: usize = 64;

/// Calls `step(lanes, chunk)` on each full chunk of 64 and on the rest, filled up with `fill`.
#[inline(always)]
fn lanes<T: Copy>(x: &[f32], fill: f32, init: T, step: impl Fn(&mut [T; LANES], &[f32; LANES])) -> [T; LANES] {
    let mut acc = [init; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        step(&mut acc, chunk);
    }
    if !rest.is_empty() {
        let mut last = [fill; LANES];
        last[..rest.len()].copy_from_slice(rest);
        step(&mut acc, &last);
    }
    acc
}

/// Folds the lanes in halves.
#[inline(always)]
pub(crate) fn fold<T: Copy, const N: usize>(mut acc: [T; N], join: impl Fn(T, T) -> T) -> T {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            acc[i] = join(acc[i], acc[i + half]);
        }
        half /= 2;
    }
    acc[0]
}

/// The body of [`dot`], for use inside other `simd!` bodies. Past the shorter slice nothing is read.
#[inline(always)]
pub(crate) fn dot_body(a: &[f32], b: &[f32]) -> f32 {
    dot_widened(a, b, |b| b)
}

/// As [`dot_body`], with elements of `b` widened in registers: the bits are those of widening first.
#[inline(always)]
pub(crate) fn dot_widened<T: Copy + Default>(a: &[f32], b: &[T], widen: impl Fn(T) -> f32) -> f32 {
    let n = a.len().min(b.len());
    let ((a, a_rest), (b, b_rest)) = (a[..n].as_chunks::<LANES>(), b[..n].as_chunks::<LANES>());
    let mut acc = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            acc[i] = a[i].mul_add(widen(b[i]), acc[i]);
        }
    }
    if !a_rest.is_empty() {
        let (mut a, mut b) = ([0.0; LANES], [T::default(); LANES]);
        a[..a_rest.len()].copy_from_slice(a_rest);
        b[..b_rest.len()].copy_from_slice(b_rest);
        for i in 0..LANES {
            acc[i] = f32::mul_add(a[i], widen(b[i]), acc[i]);
        }
    }
    fold(acc, |a, b| a + b)
}

/// The body of [`sum`], for use inside other `simd!` bodies.
#[inline(always)]
pub(crate) fn sum_body(x: &[f32]) -> f32 {
    let acc = lanes(x, 0.0, 0.0f32, |acc, x| {
        for i in 0..LANES {
            acc[i] += x[i];
        }
    });
    fold(acc, |a, b| a + b)
}

/// The body of [`max`], for use inside other `simd!` bodies.
#[inline(always)]
pub(crate) fn max_body(x: &[f32]) -> f32 {
    let acc = lanes(x, f32::NEG_INFINITY, f32::NEG_INFINITY, |acc, x| {
        for i in 0..LANES {
            acc[i] = larger(acc[i], x[i]);
        }
    });
    fold(acc, larger)
}

/// The larger of two, NaN if either is.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

simd! {
    /// The sum of `a[i] b[i]`, in fused steps.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        dot_body(a, b)
    }

    /// The sum of x.
    pub fn sum(x: &[f32]) -> f32 {
        sum_body(x)
    }

    /// The sum of x, added up in f64.
    pub fn sum_f64(x: &[f32]) -> f64 {
        let acc = lanes(x, 0.0, 0.0f64, |acc, x| {
            for i in 0..LANES {
                acc[i] += f64::from(x[i]);
            }
        });
        fold(acc, |a, b| a + b)
    }

    /// The sum of `x[i]^2`.
    pub fn sum_sq(x: &[f32]) -> f32 {
        dot_body(x, x)
    }

    /// The sum of `x[i]^2`, added up in f64 (where each square is exact).
    pub fn sum_sq_f64(x: &[f32]) -> f64 {
        let acc = lanes(x, 0.0, 0.0f64, |acc, x| {
            for i in 0..LANES {
                acc[i] += f64::from(x[i]) * f64::from(x[i]);
            }
        });
        fold(acc, |a, b| a + b)
    }

    /// The largest element: -inf of an empty slice, NaN where there is one.
    pub fn max(x: &[f32]) -> f32 {
        max_body(x)
    }

    /// y += alpha x, in fused steps.
    pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = alpha.mul_add(*x, *y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Level, Simd};

    fn levels() -> Vec<Simd> {
        Level::ALL.into_iter().filter_map(|l| Simd::new(l).ok()).collect()
    }

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let hash = |i: usize| (i as u32 ^ seed).wrapping_mul(2_654_435_761).rotate_left(11).wrapping_mul(40_503);
        (0..n).map(|i| hash(i) as f32 / 2f32.powi(31) - 1.0).collect()
    }

    #[test]
    fn agrees_with_f64_and_between_levels_at_every_length() {
        for n in (0..200).chain([1000, 4097]) {
            let (a, b) = (values(n, 1), values(n, 2));
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let squares: f64 = a.iter().map(|a| f64::from(*a).powi(2)).sum();
            let total: f64 = a.iter().map(|a| f64::from(*a)).sum();
            // A lane adds n / 64 values and the fold 6 more, each step off by half an eps of |sum| <= n.
            let bound = f64::from(f32::EPSILON) * (n as f64 / LANES as f64 + 7.0) * n as f64;
            let run = |s: Simd| {
                let mut y = b.clone();
                axpy(s, 0.3, &a, &mut y);
                let singles = [dot(s, &a, &b), sum(s, &a), sum_sq(s, &a), max(s, &a)];
                (singles.map(f32::to_bits), [sum_sq_f64(s, &a), sum_f64(s, &a)].map(f64::to_bits), y)
            };
            let first = run(levels()[0]);
            for s in levels() {
                assert!((f64::from(dot(s, &a, &b)) - exact).abs() <= bound);
                assert!((f64::from(sum(s, &a)) - total).abs() <= bound);
                assert!((f64::from(sum_sq(s, &a)) - squares).abs() <= bound);
                assert!((sum_sq_f64(s, &a) - squares).abs() <= 1e-12 * squares);
                assert!((sum_f64(s, &a) - total).abs() <= 1e-12 * n as f64);
                assert_eq!(max(s, &a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                assert_eq!(run(s), first, "{s:?}, {n} elements");
            }
        }
    }

    #[test]
    fn the_maximum_does_not_hide_a_nan() {
        for s in levels() {
            for at in [0, 63, 64, 129] {
                let mut x = values(130, 3);
                x[at] = f32::NAN;
                assert!(max(s, &x).is_nan());
            }
        }
    }
}
