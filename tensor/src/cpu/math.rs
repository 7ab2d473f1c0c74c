//! exp, log, sin, cos, tanh, sigmoid and erf as polynomials with a fixed order of operations.
//!
//! No function here calls libm: IEEE add, multiply, divide, square root and fused multiply-add are the
//! only operations, so every SIMD level (and a GPU kernel that repeats the same steps) gives the same
//! bits. There is no branch, only selects, so a loop over a slice inside a `simd!` body vectorises.
//!
//! Each coefficient list is the polynomial through the Chebyshev nodes of the stated interval, computed
//! with 60 digits and rounded to f32, lowest power first; its error is given relative to the function.
//! The tests measure the error of the whole function against f64.

/// 1.5 * 2^23: adding it to |v| < 2^22 rounds v to the nearest integer, which then sits in the low
/// bits of the sum.
const ROUND: f32 = 12_582_912.0;

/// `c[0] + c[1] x + ... ` by Horner's rule in fused steps.
#[inline(always)]
fn poly<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut y = c[N - 1];
    for i in (0..N - 1).rev() {
        y = y.mul_add(x, c[i]);
    }
    y
}

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn pow2(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// e^x to about 1 ulp, denormal results included; overflow gives infinity, NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, where ln 2 is split in two floats; e^r = 1 + r + r^2 P(r) with
/// P of degree 5 (error 2^-32); the factor 2^n is applied in two halves, so that neither overflows and
/// a denormal result is rounded once.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    // Beyond these bounds the result is 0 or infinity anyway; a NaN passes both tests.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let (y, i) = exp_parts(x);
    let half = i >> 1;
    y * pow2(half) * pow2(i.wrapping_sub(half))
}

/// [`exp`], bit for bit, but 0 where that is below 2^-126: for the weights of a softmax, in two thirds of its operations.
///
/// Meaningless for x > 88.
#[inline(always)]
#[must_use]
pub fn exp_or_zero(x: f32) -> f32 {
    // From here on down, n is -127, whose power of two has the bits of zero.
    let x = if x < -88.0 { -88.0 } else { x };
    let (y, i) = exp_parts(x);
    y * pow2(i)
}

/// e^r and n, where x = n ln 2 + r with |r| <= ln 2 / 2.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, i32) {
    const LN2_HI: f32 = std::f32::consts::LN_2;
    const LN2_LO: f32 = -1.904_654_2e-9;
    const P: [f32; 6] = [0.5, 0.166_666_67, 0.041_666_463, 0.008_333_310_5, 0.001_393_377_1, 0.000_198_911_25];
    let t = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let (n, i) = (t - ROUND, (t.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32));
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    (poly(r, P).mul_add(r * r, r) + 1.0, i)
}

/// The natural logarithm to about 1 ulp, denormal arguments included. log 0 = -inf; of less, NaN.
///
/// x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) = f - f^2/2 + f^3 P(f) with P of degree
/// 8 (error 2^-28).
#[inline(always)]
#[must_use]
pub fn log(x: f32) -> f32 {
    const LN2_HI: f32 = std::f32::consts::LN_2;
    const LN2_LO: f32 = -1.904_654_2e-9;
    const SQRT_HALF: u32 = std::f32::consts::FRAC_1_SQRT_2.to_bits();
    const P: [f32; 9] = [
        0.333_333_3,
        -0.249_999_97,
        0.200_007_16,
        -0.166_678_03,
        0.142_490_58,
        -0.124_256_87,
        0.116_854_2,
        -0.114_797_34,
        0.069_716_12,
    ];
    let denormal = x < f32::MIN_POSITIVE;
    let bits = (if denormal { x * 8_388_608.0 } else { x }).to_bits();
    let e = (bits.wrapping_sub(SQRT_HALF) as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub((e << 23) as u32)) - 1.0;
    let e = e as f32 - if denormal { 23.0 } else { 0.0 };
    let f2 = f * f;
    let tail = poly(f, P).mul_add(f * f2, e * LN2_LO);
    let y = e.mul_add(LN2_HI, f + f2.mul_add(-0.5, tail));
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x >= 0.0 { y } else { f32::NAN }
}

/// (sin x, cos x) to 2 ulp for |x| <= 1e5; NaN from 2^22 on, where the reduction would begin to lose its quarter turn.
///
/// x = n pi/2 + r with pi/2 split in three floats (Cody and Waite): the first fused step is exact, the
/// others round once each. On |r| <= pi/4, sin r = r + r^3 S(r^2) (error 2^-35) and
/// cos r = 1 - r^2/2 + r^4 C(r^2) (error 2^-29); n mod 4 picks which is which, and the signs.
#[inline(always)]
#[must_use]
pub fn sin_cos(x: f32) -> (f32, f32) {
    const PI_2: [f32; 3] = [std::f32::consts::FRAC_PI_2, -4.371_139e-8, -1.715_124_5e-15];
    const S: [f32; 4] = [-0.166_666_67, 0.008_333_332, -0.000_198_400_62, 2.724_680_4e-6];
    const C: [f32; 3] = [0.041_666_664, -0.001_388_829_1, 2.454_536_5e-5];
    let t = x.mul_add(std::f32::consts::FRAC_2_PI, ROUND);
    let (n, quadrant) = (t - ROUND, t.to_bits());
    let r = n.mul_add(-PI_2[0], x);
    let r = n.mul_add(-PI_2[1], r);
    let r = n.mul_add(-PI_2[2], r);
    let r2 = r * r;
    let s = poly(r2, S).mul_add(r2 * r, r);
    let c = poly(r2, C).mul_add(r2 * r2, r2.mul_add(-0.5, 1.0));
    let (sin, cos) = if quadrant & 1 == 0 { (s, c) } else { (c, s) };
    let sin = f32::from_bits(sin.to_bits() ^ ((quadrant & 2) << 30));
    let cos = f32::from_bits(cos.to_bits() ^ ((quadrant.wrapping_add(1) & 2) << 30));
    if x.abs() < 4_194_304.0 { (sin, cos) } else { (f32::NAN, f32::NAN) }
}

/// sin x; see [`sin_cos`].
#[inline(always)]
#[must_use]
pub fn sin(x: f32) -> f32 {
    sin_cos(x).0
}

/// cos x; see [`sin_cos`].
#[inline(always)]
#[must_use]
pub fn cos(x: f32) -> f32 {
    sin_cos(x).1
}

/// tanh x to about 1.5 ulp.
///
/// Below 0.625 x + x^3 P(x^2) with P of degree 4 (error 2^-25.8), above 1 - 2 / (e^(2|x|) + 1).
#[inline(always)]
#[must_use]
pub fn tanh(x: f32) -> f32 {
    const P: [f32; 5] = [-0.333_333_28, 0.133_327_7, -0.053_850_908, 0.020_997_18, -0.006_096_714];
    let (a, x2) = (x.abs(), x * x);
    let small = poly(x2, P).mul_add(x2 * x, x);
    let large = (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(x);
    if a < 0.625 { small } else { large }
}

/// 1 / (1 + e^-x) to about 2 ulp, tiny results included: the exponential is only taken of -|x|.
#[inline(always)]
#[must_use]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// The error function to about 1.5 ulp (for the exact GELU).
///
/// Below 0.875 x + x P(x^2) with P of degree 6 (error 2^-32), above 1 - e^(-|x| Q(|x|)) where |x| Q fits
/// -log(erfc |x|) up to 3.92 (error 2^-26.7); from there on the result is 1.
#[inline(always)]
#[must_use]
pub fn erf(x: f32) -> f32 {
    const P: [f32; 7] =
        [0.128_379_17, -0.376_126_35, 0.112_837_35, -0.026_861_707, 0.005_207_048_7, -0.000_821_457_07, 8.690_369e-5];
    const Q: [f32; 7] =
        [1.128_705_6, 0.634_893_54, 0.106_703_91, -0.024_195_576, 0.003_859_673_9, -0.000_378_521_9, 1.695_581_7e-5];
    let a = x.abs();
    let small = poly(x * x, P).mul_add(x, x);
    let t = if a > 4.0 { 4.0 } else { a };
    let large = (1.0 - exp(-t * poly(t, Q))).copysign(x);
    if a < 0.875 { small } else { large }
}

/// 1 / sqrt(x), each operation correctly rounded.
#[inline(always)]
#[must_use]
pub fn rsqrt(x: f32) -> f32 {
    1.0 / x.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Level, Simd, simd};

    type Pair = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f64);

    /// |got - want| in units of the last place of `want` as f32.
    fn ulps(got: f32, want: f64) -> f64 {
        let rounded = want as f32;
        if got.is_nan() || want.is_nan() || rounded.is_infinite() {
            let same = (got.is_nan() && want.is_nan()) || got == rounded;
            return if same { 0.0 } else { f64::INFINITY };
        }
        let exponent = want.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor() as i32;
        (f64::from(got) - want).abs() / f64::from(exponent - 23).exp2()
    }

    /// erf in f64: 2/sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!, all terms of one sign.
    fn erf_f64(x: f64) -> f64 {
        if x.abs() > 6.0 || x.is_nan() {
            return if x.is_nan() { x } else { x.signum() };
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
    }

    fn every_float(stride: usize) -> impl Iterator<Item = f32> {
        (0..=u32::MAX).step_by(stride).map(f32::from_bits)
    }

    #[test]
    fn errors_stay_within_the_stated_ulps_over_the_whole_range() {
        let functions: [Pair; 5] = [
            ("exp", exp, f64::exp, 1.2),
            ("log", log, f64::ln, 1.2),
            ("tanh", tanh, f64::tanh, 2.0),
            ("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 2.5),
            ("erf", erf, erf_f64, 1.5),
        ];
        for (name, ours, truth, bound) in functions {
            let dense = (-1_000_000..1_000_000).map(|i| i as f32 * 1.1e-4);
            let worst = every_float(40_009)
                .chain(dense)
                .map(|x| (ulps(ours(x), truth(f64::from(x))), x))
                .fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a });
            assert!(worst.0 <= bound, "{name}({:e}) is off by {:.2} ulp, more than {bound}", worst.1, worst.0);
        }
    }

    #[test]
    fn sin_and_cos_hold_up_to_1e5() {
        let dense = (-400_000..400_000).map(|i| i as f32 * 0.25 + 1e-3 * (i % 89) as f32);
        let multiples = (0..63_000).map(|i| (f64::from(i) * std::f64::consts::FRAC_PI_2) as f32);
        for x in dense.chain(multiples).chain(every_float(40_009)).filter(|x| x.abs() <= 1e5) {
            let (s, c) = sin_cos(x);
            let (s, c) = (ulps(s, f64::from(x).sin()), ulps(c, f64::from(x).cos()));
            assert!(s <= 2.0 && c <= 2.0, "sin, cos of {x:e} are off by {s:.2}, {c:.2} ulp");
        }
    }

    #[test]
    fn the_exponential_for_weights_is_the_other_one_down_to_2_to_the_minus_126() {
        let dense = (-1_000_000..880_000).map(|i| i as f32 * 1e-4);
        for x in dense.chain(every_float(40_009).filter(|x| *x <= 88.0)) {
            let (exact, weight) = (exp(x), exp_or_zero(x));
            let flushed = weight == 0.0 && exact < f32::MIN_POSITIVE;
            assert!(weight.to_bits() == exact.to_bits() || flushed, "{x:e}: {weight:e}, not {exact:e}");
        }
        assert_eq!([exp_or_zero(f32::NEG_INFINITY), exp_or_zero(0.0)], [0.0, 1.0]);
        assert!(exp_or_zero(f32::NAN).is_nan());
    }

    #[test]
    fn special_values() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        assert_eq!([exp(-inf), exp(inf), exp(0.0), exp(88.8), exp(-104.1)], [0.0, inf, 1.0, inf, 0.0]);
        assert_eq!([log(0.0), log(-0.0), log(1.0), log(inf)], [-inf, -inf, 0.0, inf]);
        assert!(log(-1.0).is_nan() && log(-1e-40).is_nan() && log(-inf).is_nan());
        assert_eq!([tanh(inf), tanh(-inf), erf(inf), erf(-inf)], [1.0, -1.0, 1.0, -1.0]);
        assert_eq!([sigmoid(inf), sigmoid(-inf), sigmoid(0.0)], [1.0, 0.0, 0.5]);
        assert!([inf, -inf, nan, 1e30].iter().all(|&x| sin(x).is_nan() && cos(x).is_nan()));
        assert!([exp, log, tanh, sigmoid, erf].iter().all(|f| f(nan).is_nan()));
        let smallest = f32::from_bits(1);
        assert_eq!([exp(-103.28), sin(smallest), tanh(smallest)], [smallest; 3]);
    }

    simd! {
        fn apply(x: &[f32], y: &mut [f32]) {
            for (x, y) in x.iter().zip(y.chunks_exact_mut(8)) {
                let (s, c) = sin_cos(*x);
                y.copy_from_slice(&[exp(*x), log(*x), s, c, tanh(*x), sigmoid(*x), erf(*x), rsqrt(*x)]);
            }
        }
        fn apply_exp(x: &[f32], y: &mut [f32]) {
            for (x, y) in x.iter().zip(y) {
                *y = exp(*x);
            }
        }
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let x: Vec<f32> = every_float(100_003).chain((-20_000..20_000).map(|i| i as f32 * 7.7e-3)).collect();
        let run = |level| {
            Simd::new(level).ok().map(|simd| {
                let (mut all, mut e) = (vec![0.0; x.len() * 8], vec![0.0; x.len()]);
                apply(simd, &x, &mut all);
                apply_exp(simd, &x, &mut e);
                // NaN payloads are not fixed by IEEE 754.
                let bits = |v: &f32| if v.is_nan() { u32::MAX } else { v.to_bits() };
                all.iter().chain(&e).map(bits).collect::<Vec<u32>>()
            })
        };
        let portable = run(Level::Portable);
        for level in Level::ALL {
            assert!(run(level).is_none_or(|bits| Some(bits) == portable), "{level:?}");
        }
    }
}
