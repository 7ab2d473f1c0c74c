//! f64 arithmetic in the rounding modes that the CPU is not in, by integers of 128 bits. Operands are finite; what infinity
//! and NaN give does not depend on the mode.

use super::format::{F64, parts};
use crate::program::Rounding;

/// An exact value, but for the lowest bit of the significand, which also stands for everything below: (-1)^negative *
/// significand * 2^(exponent - 127). The significand is 0 or has its top bit set.
#[derive(Clone, Copy)]
struct Exact {
    negative: bool,
    exponent: i32,
    significand: u128,
}

impl Exact {
    fn of(x: f64) -> Self {
        let (exponent, significand) = parts(x);
        Exact { negative: x.is_sign_negative(), exponent, significand: u128::from(significand) << 64 }
    }

    /// Moves the top bit to its place.
    fn normalised(self) -> Self {
        if self.significand == 0 {
            return self;
        }
        let up = self.significand.leading_zeros();
        Exact { exponent: self.exponent - up as i32, significand: self.significand << up, ..self }
    }

    fn round(self, rounding: Rounding) -> f64 {
        let Exact { negative, exponent, significand } = self.normalised();
        f64::from_bits(F64.round(negative, exponent, jam(significand, 64) as u64, rounding))
    }
}

/// `x >> by`, with the lowest bit set if a bit that is lost was.
fn jam(x: u128, by: u32) -> u128 {
    match by {
        0 => x,
        1..128 => x >> by | u128::from(x << (128 - by) != 0),
        _ => u128::from(x != 0),
    }
}

/// The exact product: 53 times 53 bits are 106.
fn product(a: f64, b: f64) -> Exact {
    let ((a_exponent, a_significand), (b_exponent, b_significand)) = (parts(a), parts(b));
    let significand = u128::from(a_significand) * u128::from(b_significand);
    let negative = a.is_sign_negative() != b.is_sign_negative();
    // Two tops at 63 make one at 126 or 127.
    Exact { negative, exponent: a_exponent + b_exponent + 1, significand }.normalised()
}

/// x + y. An exact sum of zero is +0, or -0 when rounding down, unless both are zeros of one sign.
///
/// The smaller is shifted to the place of the larger and jammed. If bits of it are lost at all, it is at least 20 places
/// smaller (a significand has at most 106 bits here), so that the sum keeps more than 100 bits above the jammed one.
fn sum(x: Exact, y: Exact, rounding: Rounding) -> f64 {
    let (large, small) = if order(&x) >= order(&y) { (x, y) } else { (y, x) };
    if small.significand == 0 && large.significand != 0 {
        return large.round(rounding);
    }
    // One place for the carry.
    let down = large.exponent.wrapping_sub(small.exponent) as u32 + 1;
    let (upper, lower) = (large.significand >> 1, jam(small.significand, down));
    let exponent = large.exponent + 1;
    if large.negative == small.negative {
        return Exact { negative: large.negative, exponent, significand: upper + lower }.round(rounding);
    }
    let significand = upper - lower;
    let negative = if significand == 0 { rounding == Rounding::Rm } else { large.negative };
    Exact { negative, exponent, significand }.round(rounding)
}

/// Sorts by magnitude.
fn order(x: &Exact) -> (bool, i32, u128) {
    (x.significand != 0, if x.significand == 0 { 0 } else { x.exponent }, x.significand)
}

/// a + b
pub(super) fn add(a: f64, b: f64, rounding: Rounding) -> f64 {
    directed(a + b, &[a, b], |[a, b]| sum(Exact::of(*a), Exact::of(*b), rounding))
}

/// a * b
pub(super) fn mul(a: f64, b: f64, rounding: Rounding) -> f64 {
    directed(a * b, &[a, b], |[a, b]| product(*a, *b).round(rounding))
}

/// a * b + c
pub(super) fn fma(a: f64, b: f64, c: f64, rounding: Rounding) -> f64 {
    directed(a.mul_add(b, c), &[a, b, c], |[a, b, c]| sum(product(*a, *b), Exact::of(*c), rounding))
}

/// a / b
pub(super) fn div(a: f64, b: f64, rounding: Rounding) -> f64 {
    if a == 0.0 || b == 0.0 {
        return a / b;
    }
    directed(a / b, &[a, b], |[a, b]| {
        let ((a_exponent, a_significand), (b_exponent, b_significand)) = (parts(*a), parts(*b));
        let (numerator, denominator) = (u128::from(a_significand) << 63, u128::from(b_significand));
        // The quotient has 63 or 64 bits; a remainder is what lies below its last.
        let quotient = (numerator / denominator) << 1 | u128::from(numerator % denominator != 0);
        let negative = a.is_sign_negative() != b.is_sign_negative();
        Exact { negative, exponent: a_exponent - b_exponent + 63, significand: quotient }.round(rounding)
    })
}

/// The square root.
pub(super) fn sqrt(a: f64, rounding: Rounding) -> f64 {
    if a <= 0.0 {
        return a.sqrt();
    }
    directed(a.sqrt(), &[a], |[a]| {
        let (exponent, significand) = parts(*a);
        // An even exponent can be halved; the root of 127 or 128 bits has 64.
        let square = u128::from(significand) << (63 + exponent.rem_euclid(2));
        let root = square.isqrt();
        let significand = root << 1 | u128::from(root * root != square);
        Exact { negative: false, exponent: exponent.div_euclid(2) + 63, significand }.round(rounding)
    })
}

/// `exact` of finite operands, else what the CPU says.
fn directed<const N: usize>(native: f64, operands: &[f64; N], exact: impl Fn(&[f64; N]) -> f64) -> f64 {
    if operands.iter().all(|x| x.is_finite()) { exact(operands) } else { native }
}
