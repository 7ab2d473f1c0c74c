//! Scores to weights for products of bf16, in registers of AVX-512: what is rounded is not written before it lies as the products read
//! it. Strips are 32 lanes.

use super::backward::Scored;
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a strip.
type Strip = [[f32; 32]];

/// One of them.
type Row = [__m512; 2];

/// 2^x to 2^-22, and 0 below 2^-126, for x < 128.
///
/// 2^floor(x) times a polynomial of degree 5 in the rest, which lies in [0, 1): that through its Chebyshev nodes.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2(x: __m512) -> __m512 {
    const P: [f32; 6] = [0.999_999_9, 0.693_154_5, 0.240_141_82, 0.055_860_337, 0.008_949_591, 0.001_893_754];
    let rest = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
    let mut y = _mm512_set1_ps(P[5]);
    for c in P[..5].iter().rev() {
        y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(*c));
    }
    // A NaN is not less.
    let counts = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-126.0));
    _mm512_maskz_scalef_ps(counts, y, x)
}

/// Two rows as pairs of bf16: in a lane the element of the first row, then that of the second.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pairs(first: Row, second: Row) -> [__m512i; 2] {
    // Element i of the lower half of a register, then of the upper.
    let zip = const {
        let mut zip = [0i16; 32];
        let mut i = 0;
        while i < 32 {
            zip[i] = (i / 2 + i % 2 * 16) as i16;
            i += 1;
        }
        zip
    };
    // SAFETY: 64 bytes of integers.
    let zip = unsafe { _mm512_loadu_si512(zip.as_ptr().cast()) };
    let pair = |i: usize| _mm512_permutexvar_epi16(zip, integers(_mm512_cvtne2ps_pbh(second[i], first[i])));
    [pair(0), pair(1)]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn integers(x: __m512bh) -> __m512i {
    // SAFETY: both are 64 bytes that take any bits.
    unsafe { std::mem::transmute(x) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(row: &[f32; 32]) -> Row {
    // SAFETY: 32 floats.
    unsafe { [_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(row.as_ptr().add(16))] }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(x: Row, row: &mut [f32; 32]) {
    // SAFETY: 32 floats.
    unsafe {
        _mm512_storeu_ps(row.as_mut_ptr(), x[0]);
        _mm512_storeu_ps(row.as_mut_ptr().add(16), x[1]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_pairs(x: [__m512i; 2], row: &mut [f32; 32]) {
    store(x.map(|x| _mm512_castsi512_ps(x)), row);
}

/// Products `[key][lane]` with the keys that each lane sees, hidden ones infinite, become pairs of weights e^(score - largest), in
/// place, filled up with zeros; `largest` and `sum` are those of each lane. The sum is of weights that are not rounded yet.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
pub(super) fn softmax(products: &mut Strip, k: usize, scale: f32, largest: &mut [f32; 32], sum: &mut [f32; 32]) {
    let factor = _mm512_set1_ps(scale);
    let mut tops = [[_mm512_set1_ps(f32::NEG_INFINITY); 2]; 2];
    for (i, row) in products[..k].iter().enumerate() {
        let (row, top) = (load(row), &mut tops[i % 2]);
        for (top, x) in top.iter_mut().zip(row) {
            // Of a NaN and a number the second.
            *top = _mm512_max_ps(_mm512_mul_ps(x, factor), *top);
        }
    }
    let top: Row = std::array::from_fn(|i| _mm512_max_ps(tops[0][i], tops[1][i]));
    store(top, largest);
    // A lane that saw nothing takes any finite number, to give zeros.
    let log2_e = _mm512_set1_ps(std::f32::consts::LOG2_E);
    let shift = top.map(|top| {
        let some = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(top, _mm512_set1_ps(f32::NEG_INFINITY));
        _mm512_maskz_mul_ps(some, top, log2_e)
    });
    let factor = _mm512_mul_ps(factor, log2_e);
    let weigh = |row: &[f32; 32]| {
        let row = load(row);
        [exp2(_mm512_fmsub_ps(row[0], factor, shift[0])), exp2(_mm512_fmsub_ps(row[1], factor, shift[1]))]
    };
    let mut sums = [[_mm512_setzero_ps(); 2]; 2];
    let add = |sum: &mut Row, x: Row| *sum = [_mm512_add_ps(sum[0], x[0]), _mm512_add_ps(sum[1], x[1])];
    for i in 0..k.div_ceil(2) {
        let first = weigh(&products[2 * i]);
        add(&mut sums[0], first);
        let mut second = [_mm512_setzero_ps(); 2];
        if 2 * i + 1 < k {
            second = weigh(&products[2 * i + 1]);
            add(&mut sums[1], second);
        }
        store_pairs(pairs(first, second), &mut products[i]);
    }
    let half = products.len() / 2;
    products[k.div_ceil(2)..half].fill([0.0; 32]);
    let [mut total, odd] = sums;
    add(&mut total, odd);
    store(total, sum);
}

/// Products `[row][lane]` of keys become P, and `dp` becomes dS, zero where a row does not see the key: both as pairs, filled up with
/// zeros, and dS row by row in `rows` too; or, without `rows`, dS as it is.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
pub(super) fn gradients(products: &mut Strip, dp: &mut Strip, of: &Scored, mut rows: Option<Panels>) {
    let m = of.seen.len();
    let log2_e = std::f32::consts::LOG2_E;
    let (factor, scale) = (_mm512_set1_ps(of.scale * log2_e), _mm512_set1_ps(of.scale));
    let gradient = |row: usize, product: &[f32; 32], dp: &[f32; 32]| -> [Row; 2] {
        let seen = visible(&of.seen[row], of.first);
        let (lse, delta) = (_mm512_set1_ps(of.lse[row] * log2_e), _mm512_set1_ps(of.delta[row]));
        let (product, dp) = (load(product), load(dp));
        let (mut p, mut ds) = ([_mm512_setzero_ps(); 2], [_mm512_setzero_ps(); 2]);
        for (i, seen) in [seen as u16, (seen >> 16) as u16].into_iter().enumerate() {
            p[i] = _mm512_maskz_mov_ps(seen, exp2(_mm512_fmsub_ps(product[i], factor, lse)));
            ds[i] = _mm512_maskz_mul_ps(seen, _mm512_mul_ps(p[i], _mm512_sub_ps(dp[i], delta)), scale);
        }
        [p, ds]
    };
    let nothing = [[_mm512_setzero_ps(); 2]; 2];
    for i in 0..m.div_ceil(2) {
        let first = gradient(2 * i, &products[2 * i], &dp[2 * i]);
        let second = if 2 * i + 1 < m { gradient(2 * i + 1, &products[2 * i + 1], &dp[2 * i + 1]) } else { nothing };
        store_pairs(pairs(first[0], second[0]), &mut products[i]);
        match &mut rows {
            Some(rows) => {
                store_pairs(pairs(first[1], second[1]), &mut dp[i]);
                for (row, ds) in [(2 * i, first[1]), (2 * i + 1, second[1])] {
                    let row = &mut rows.panels[row / 32 * rows.stride + row % 32];
                    // SAFETY: 32 elements of two bytes.
                    unsafe {
                        _mm512_storeu_si512(row.as_mut_ptr().cast(), integers(_mm512_cvtne2ps_pbh(ds[1], ds[0])));
                    }
                }
            }
            None => {
                store(first[1], &mut dp[2 * i]);
                if 2 * i + 1 < m {
                    store(second[1], &mut dp[2 * i + 1]);
                }
            }
        }
    }
    let (done, half) = (m.div_ceil(2), products.len() / 2);
    products[done..half].fill([0.0; 32]);
    if let Some(rows) = rows {
        dp[done..half].fill([0.0; 32]);
        (2 * done..m.next_multiple_of(32))
            .for_each(|row| rows.panels[row / 32 * rows.stride + row % 32].fill(bf16::ZERO));
    }
}

/// Rows 2 i and 2 i + 1 become row i of as many pairs of bf16, in place.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn pair_up(rows: &mut Strip) {
    for i in 0..rows.len() / 2 {
        let pair = pairs(load(&rows[2 * i]), load(&rows[2 * i + 1]));
        store_pairs(pair, &mut rows[i]);
    }
}

/// Panels of 32 rows of dS, of which a strip of keys is written.
pub(super) struct Panels<'a> {
    /// From the strip's first row on.
    pub(super) panels: &'a mut [[bf16; 32]],
    /// Rows of 32 from a panel to the next.
    pub(super) stride: usize,
}

/// A bit for each of 32 keys from `first` on that is seen.
#[inline(always)]
fn visible(seen: &Range<usize>, first: usize) -> u32 {
    let clamp = |key: usize| key.saturating_sub(first).min(32);
    let below = |key: usize| ((1u64 << key) - 1) as u32;
    below(clamp(seen.end)) & !below(clamp(seen.start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Level, Simd};

    #[target_feature(enable = "avx512f,avx512dq")]
    fn exp2_of(x: f32) -> f32 {
        _mm512_cvtss_f32(exp2(_mm512_set1_ps(x)))
    }

    #[test]
    fn powers_of_two_are_right_to_2_to_the_minus_22() {
        if Simd::new(Level::Avx512).is_err() {
            return;
        }
        // SAFETY: the level is there.
        let got = |x: f32| unsafe { exp2_of(x) };
        for x in (-125_999..20_000).map(|i| i as f32 * 1e-3) {
            let want = f64::from(x).exp2();
            assert!((f64::from(got(x)) / want - 1.0).abs() <= 2f64.powi(-22), "2^{x} is {}", got(x));
        }
        assert_eq!([-126.1, -1e4, f32::MIN, f32::NEG_INFINITY].map(got), [0.0; 4]);
        assert!(got(f32::NAN).is_nan());
    }
}
