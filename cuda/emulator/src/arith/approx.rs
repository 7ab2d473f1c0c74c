//! The approximate functions, from +, -, *, / and square roots of f64 alone, so that every machine gives the same bits.
//!
//! Each is right to about 1e-15, far inside of the ISA's bounds (2^-11 for tanh, 2^-22 or 2 ulp elsewhere, 2^-20.5 absolute
//! for sin and cos); rounded to f32 that is the nearest number, or in one case of many millions its neighbour. The special
//! values are the ISA's tables.

use std::f64::consts::{LN_2, SQRT_2};

use super::format::{parts, power_of_two};

/// `div.approx.f32`: for |b| above 2^126 the ISA has 0 (the reciprocal is flushed), and NaN if a is infinite.
pub(super) fn div(a: f32, b: f32) -> f32 {
    const LARGE: f32 = (1u128 << 126) as f32;
    if b.abs() > LARGE && b.is_finite() { a * 0.0f32.copysign(b) } else { a / b }
}

/// Horner's rule; the first coefficient is the constant.
#[inline(always)]
fn polynomial<const N: usize>(x: f64, coefficients: [f64; N]) -> f64 {
    coefficients.into_iter().rev().fold(0.0, |sum, coefficient| sum * x + coefficient)
}

/// 1/n! for n = first, first + step, ..
const fn inverse_factorials<const N: usize>(first: u32, step: u32, alternate: bool) -> [f64; N] {
    let mut result = [0.0; N];
    let (mut n, mut factorial) = (0, 1.0);
    let mut i = 0;
    while i < N {
        while n < first + step * i as u32 {
            n += 1;
            factorial *= n as f64;
        }
        result[i] = if alternate && i % 2 == 1 { -1.0 } else { 1.0 } / factorial;
        i += 1;
    }
    result
}

/// 2^x. The power of two of the nearest integer, times the series of e^(r ln 2) with |r| <= 1/2.
pub(super) fn ex2(x: f64) -> f64 {
    const SERIES: [f64; 14] = inverse_factorials(0, 1, false);
    if x.is_nan() {
        return x;
    }
    // Results beyond are infinite or zero in f32 and narrower.
    let x = x.clamp(-1000.0, 1000.0);
    let whole = nearest(x);
    polynomial((x - whole) * LN_2, SERIES) * power_of_two(whole as i32)
}

/// The nearest integer of a number below 2^51, ties to even.
fn nearest(x: f64) -> f64 {
    const SHIFT: f64 = 1.5 * (1u64 << 52) as f64;
    (x + SHIFT) - SHIFT
}

/// log2(x): the exponent, plus the series of artanh, log2(m) = 2/ln 2 (s + s^3/3 + s^5/5 ..) with s = (m - 1)/(m + 1), where
/// m lies between sqrt(1/2) and sqrt(2), so that |s| < 0.172.
pub(super) fn lg2(x: f32) -> f64 {
    const SERIES: [f64; 12] = {
        let mut result = [0.0; 12];
        let mut i = 0;
        while i < 12 {
            result[i] = 1.0 / (2 * i + 1) as f64;
            i += 1;
        }
        result
    };
    let x = f64::from(x);
    match x {
        _ if x == 0.0 => return f64::NEG_INFINITY,
        _ if x < 0.0 || x.is_nan() => return f64::NAN,
        f64::INFINITY => return x,
        _ => {}
    }
    let (exponent, _) = parts(x);
    let mantissa = x * power_of_two(-exponent);
    let (mantissa, exponent) = if mantissa > SQRT_2 { (mantissa / 2.0, exponent + 1) } else { (mantissa, exponent) };
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    f64::from(exponent) + 2.0 / LN_2 * s * polynomial(s * s, SERIES)
}

/// tanh(x): Lambert's continued fraction for small x, 1 - 2/(e^2x + 1) above.
pub(super) fn tanh(x: f64) -> f64 {
    let magnitude = x.abs();
    let result = if magnitude < 0.5 {
        let square = magnitude * magnitude;
        let tail = [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0].into_iter().fold(17.0, |tail, n| n + square / tail);
        magnitude / tail
    } else {
        1.0 - 2.0 / (ex2(2.0 * magnitude / LN_2) + 1.0)
    };
    result.copysign(x)
}

/// sin(x).
pub(super) fn sin(x: f32) -> f64 {
    sine_of_turns(x, 0)
}

/// cos(x) = sin(x + a quarter of a turn).
pub(super) fn cos(x: f32) -> f64 {
    sine_of_turns(x, 1)
}

/// sin(x + quarters/4 of a turn).
fn sine_of_turns(x: f32, quarters: u64) -> f64 {
    const SINE: [f64; 9] = inverse_factorials(1, 2, true);
    const COSINE: [f64; 9] = inverse_factorials(0, 2, true);
    if !x.is_finite() {
        return f64::NAN;
    }
    let (quadrant, rest) = reduce(f64::from(x));
    let square = rest * rest;
    let sine = match (quadrant + quarters) % 4 {
        0 => rest * polynomial(square, SINE),
        1 => polynomial(square, COSINE),
        2 => -rest * polynomial(square, SINE),
        _ => -polynomial(square, COSINE),
    };
    // sin(-0) is -0: the product of a zero keeps its sign.
    sine
}

/// x as (quadrant, rest) with x = quadrant * pi/2 + rest modulo 2 pi and |rest| <= pi/4 or so.
fn reduce(x: f64) -> (u64, f64) {
    use std::f64::consts::{FRAC_PI_2, FRAC_PI_4};
    if x.abs() <= FRAC_PI_4 {
        return (0, x);
    }
    // Payne and Hanek: x / (2 pi) modulo 1 needs only the bits of 1/(2 pi) whose products with x's 24 bits are not whole
    // numbers. x is an integer of 24 bits times 2^scale.
    let (exponent, significand) = parts(x);
    let (integer, scale) = (significand >> 40, exponent - 23);
    // 128 bits of 1/(2 pi) behind the binary point of 2^scale / (2 pi).
    let turns = u128::from(integer).wrapping_mul(inverse_turn(scale));
    // Quarters, rounded to nearest; what is left is a signed fraction of a quarter.
    let quadrant = (turns.wrapping_add(1 << 125) >> 126) as u64 & 3;
    let rest = (turns << 2) as i128 as f64 * power_of_two(-128) * FRAC_PI_2;
    if x < 0.0 { ((4 - quadrant) & 3, -rest) } else { (quadrant, rest) }
}

/// The 128 bits of 2^scale / (2 pi) behind the binary point, for -24 <= scale <= 104.
fn inverse_turn(scale: i32) -> u128 {
    // 1/(2 pi) = 0.159.., 256 bits behind the point.
    const BITS: [u128; 2] = [0x28be_60db_9391_054a_7f09_d5f4_7d4d_3770, 0x36d8_a566_4f10_e410_7f94_58ea_f7ae_f158];
    match scale {
        ..=0 => BITS[0] >> -scale,
        _ => BITS[0] << scale | BITS[1] >> (128 - scale),
    }
}
