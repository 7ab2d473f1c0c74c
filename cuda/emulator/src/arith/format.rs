//! The floating-point formats, and how an exact value becomes one of their numbers.
//!
//! Everything here rests on one function, [`Format::round`]: an exact value, given as a significand of 64 bits whose lowest
//! bit also stands for everything below it ("jammed"), becomes the nearest number in the direction of the rounding mode.
//! That is right for every format whose significand has at most 62 bits: the jammed bit lies below the half of the last
//! place, so comparing what is cut off with 0 and with the half gives what the exact value would give.
//!
//! For f32 and narrower, exact values come as f64 *rounded to odd*: if the value is not an f64, then the one of its two
//! neighbours whose last bit is 1. An f64 has 53 bits and no such format more than 24, so that last bit is jammed in the
//! sense above, and rounding twice is rounding once (Boldo & Melquiond, "Emulation of FMA and correctly rounded sums:
//! proved algorithms using rounding to odd", 2008).

use crate::program::Rounding;

/// A binary floating-point format with a sign bit on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// Stored bits of the significand.
    pub(crate) fraction: u32,
    /// Bits of the exponent.
    pub(crate) exponent: u32,
    /// Has no infinity, and only one NaN a sign: all ones.
    pub(crate) finite: bool,
}

pub(crate) const F16: Format = Format { fraction: 10, exponent: 5, finite: false };
pub(crate) const BF16: Format = Format { fraction: 7, exponent: 8, finite: false };
/// As 19 bits; in a register they are the upper ones of 32.
pub(crate) const TF32: Format = Format { fraction: 10, exponent: 8, finite: false };
pub(crate) const F32: Format = Format { fraction: 23, exponent: 8, finite: false };
pub(crate) const F64: Format = Format { fraction: 52, exponent: 11, finite: false };
pub(crate) const E4M3: Format = Format { fraction: 3, exponent: 4, finite: true };
pub(crate) const E5M2: Format = Format { fraction: 2, exponent: 5, finite: false };

impl Format {
    /// Bits of a number.
    pub(crate) const fn bits(self) -> u32 {
        1 + self.exponent + self.fraction
    }

    /// The sign bit.
    pub(crate) const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// The exponent of the least normal number.
    const fn least_exponent(self) -> i32 {
        2 - (1 << (self.exponent - 1))
    }

    /// The bits of infinity; of a format without one, those of NaN.
    pub(crate) const fn infinity(self) -> u64 {
        let exponents = ((1 << self.exponent) - 1) << self.fraction;
        if self.finite { self.sign() - 1 } else { exponents }
    }

    /// The bits of the largest finite number.
    pub(crate) const fn largest(self) -> u64 {
        self.infinity() - 1
    }

    /// The NaN that results are: 0x7fff, 0x7fffffff, 0x7f (all ones but the sign) as the ISA says. For f64 the ISA promises
    /// payloads but names no NaN for invalid operations; this is the one that GPUs make (CUDA's `CUDART_NAN`).
    pub(crate) const fn nan(self) -> u64 {
        if self.fraction == F64.fraction { 0xfff8_0000_0000_0000 } else { self.sign() - 1 }
    }

    /// Whether these bits are a NaN.
    #[inline(always)]
    pub(crate) const fn is_nan(self, bits: u64) -> bool {
        let magnitude = bits & (self.sign() - 1);
        if self.finite { magnitude == self.infinity() } else { magnitude > self.infinity() }
    }

    /// A subnormal number becomes zero of its sign.
    #[inline(always)]
    pub(crate) const fn flush(self, bits: u64) -> u64 {
        if bits & (self.infinity() & !((1 << self.fraction) - 1)) == 0 { bits & self.sign() } else { bits }
    }

    /// (-1)^negative * significand * 2^(exponent - 63) as a number of this format, rounded once. The significand is zero or
    /// has its top bit set, and is jammed. Beyond the largest number: infinity or the largest, as the mode says.
    #[inline(always)]
    pub(crate) fn round(self, negative: bool, exponent: i32, significand: u64, rounding: Rounding) -> u64 {
        let sign = if negative { self.sign() } else { 0 };
        if significand == 0 {
            return sign;
        }
        // Below the least normal exponent the last place stays where it is, so more bits are cut off.
        let kept_exponent = exponent.max(self.least_exponent());
        let cut = (63 - self.fraction as i32 + kept_exponent - exponent).min(65) as u32;
        let (kept, rest) = match cut {
            ..64 => (significand >> cut, significand << (64 - cut)),
            64 => (0, significand),
            _ => (0, 1),
        };
        const HALF: u64 = 1 << 63;
        let up = match rounding {
            Rounding::Rn => rest > HALF || rest == HALF && kept & 1 == 1,
            Rounding::Rna => rest >= HALF,
            Rounding::Rz => false,
            Rounding::Rm => negative && rest != 0,
            Rounding::Rp => !negative && rest != 0,
        };
        // The leading one of a normal significand adds 1 to the exponent's field, and so does a carry out of it.
        let place = (kept_exponent - self.least_exponent()) as u64;
        let magnitude = (place << self.fraction) + kept + u64::from(up);
        if magnitude <= self.largest() {
            return sign | magnitude;
        }
        let to_infinity = match rounding {
            Rounding::Rn | Rounding::Rna => true,
            Rounding::Rz => false,
            Rounding::Rm => negative,
            Rounding::Rp => !negative,
        };
        sign | if to_infinity { self.infinity() } else { self.largest() }
    }

    /// A value as f64 becomes a number of this format; `x` is exact or rounded to odd. NaN becomes [`Format::nan`].
    #[inline(always)]
    pub(crate) fn narrow(self, x: f64, rounding: Rounding) -> u64 {
        let negative = x.is_sign_negative();
        if x.is_nan() {
            return self.nan();
        }
        if x.is_infinite() {
            return self.infinity() | if negative { self.sign() } else { 0 };
        }
        let (exponent, significand) = parts(x);
        self.round(negative, exponent, significand, rounding)
    }

    /// [`Format::narrow`] with `.ftz`: what is below the least normal number after rounding is zero of its sign. Rounding
    /// here is to full precision, as if exponents went on: a number just below may round up to the least normal number
    /// among subnormals only, and is flushed. (So does ptxas when it computes constants.)
    #[inline(always)]
    pub(crate) fn narrow_flushed(self, x: f64, rounding: Rounding) -> u64 {
        // Twice the value, next to the least normal number, is not subnormal.
        let doubled = self.narrow(2.0 * x, rounding);
        let is_tiny = doubled & !self.sign() < 2 << self.fraction;
        if is_tiny { doubled & self.sign() } else { self.narrow(x, rounding) }
    }

    /// The value of a number of this format, exactly. NaN becomes some NaN.
    #[inline(always)]
    pub(crate) fn widen(self, bits: u64) -> f64 {
        let magnitude = bits & (self.sign() - 1);
        let sign = (bits & self.sign()) << (63 - (self.bits() - 1));
        let fields = magnitude << (F64.fraction - self.fraction);
        // Read as an f64, the exponent is too small by the difference of the biases; multiplying by a power of two is exact
        // and makes subnormals right too.
        let shift = (F64.least_exponent() - self.least_exponent()).unsigned_abs();
        let value = f64::from_bits(fields) * power_of_two(shift as i32);
        let value = if self.is_nan(bits) {
            f64::NAN
        } else if magnitude == self.infinity() {
            f64::INFINITY
        } else {
            value
        };
        f64::from_bits(value.to_bits() | sign)
    }
}

/// The value of an f16, as [`Format::widen`] has it, in operations of 32 bits, which CPUs do more of at once.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let (magnitude, sign) = (u32::from(bits & 0x7fff), u32::from(bits & 0x8000) << 16);
    const BIASES_APART: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let value = (f32::from_bits(magnitude << 13) * BIASES_APART).to_bits();
    let infinity = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value | infinity | sign)
}

/// An f32 rounded to nearest as f16, as [`Format::narrow`] has it, without branches; exact or rounded to odd before.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    const BIASES_APART: u32 = (127 - 15) << 23;
    const LEAST_NORMAL: u32 = BIASES_APART + (1 << 23);
    let bits = x.to_bits();
    let (magnitude, sign) = (bits & 0x7fff_ffff, bits >> 16 & 0x8000);
    // The 13 bits that go, plus half of the last place, less one where the kept bits are even; may carry up to infinity.
    let kept = magnitude.wrapping_sub(BIASES_APART);
    let normal = kept.wrapping_add(0xfff + (kept >> 13 & 1)) >> 13;
    // Adding 1/2 moves an f16 subnormal's last place to that of the f32, whose addition rounds.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < LEAST_NORMAL { subnormal } else { normal };
    let large = if magnitude > 0x7f80_0000 { F16.nan() as u32 } else { sign | 0x7c00 };
    (if magnitude >= 65536f32.to_bits() { large } else { sign | finite }) as u16
}

/// An f32 rounded to nearest as bf16, its upper half: adding half of the last place, less one where the kept bits are even.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { BF16.nan() as u32 } else { rounded }) as u16
}

/// An f64, exact or rounded to odd, as f32 rounded to odd: what is beyond the largest number becomes that, which is odd.
#[inline(always)]
pub(crate) fn f64_to_odd_f32(x: f64) -> f32 {
    let nearest = x as f32;
    let bits = nearest.to_bits();
    let error = x - f64::from(nearest);
    let odd =
        if (error > 0.0) == (nearest > 0.0 || nearest == 0.0 && x > 0.0) { bits + 1 } else { bits.wrapping_sub(1) };
    let is_exact = error == 0.0 || error.is_nan();
    if is_exact || bits & 1 == 1 { nearest } else { f32::from_bits(odd) }
}

/// The exponent of a finite `x` and its significand, whose top bit is set unless `x` is 0.
#[inline(always)]
pub(crate) fn parts(x: f64) -> (i32, u64) {
    let fields = x.to_bits() & (F64.sign() - 1);
    let exponent = (fields >> F64.fraction) as i32;
    let fraction = fields << F64.exponent;
    if exponent == 0 {
        // Subnormal: bit 62 would weigh half of the least normal number.
        let up = fraction.leading_zeros();
        return (F64.least_exponent() - up as i32, if fraction == 0 { 0 } else { fraction << up });
    }
    (exponent + F64.least_exponent() - 1, fraction | 1 << 63)
}

/// 2^n for an n whose power is a normal f64.
#[inline(always)]
pub(crate) const fn power_of_two(n: i32) -> f64 {
    f64::from_bits(((n - F64.least_exponent() + 1) as u64) << F64.fraction)
}

/// `nearest + error`, rounded to odd, where `nearest` is that sum rounded to nearest.
///
/// If `nearest` is not exact then it is one of the two neighbours of the sum, and the other lies on the error's side. Their
/// bits differ by 1, so exactly one is odd.
#[inline(always)]
fn to_odd(nearest: f64, error: f64) -> f64 {
    let bits = nearest.to_bits();
    let odd = if (error > 0.0) == (nearest > 0.0) { bits + 1 } else { bits.wrapping_sub(1) };
    // The error is NaN where the sum is infinite or NaN.
    let is_exact = error == 0.0 || error.is_nan();
    if is_exact || bits & 1 == 1 { nearest } else { f64::from_bits(odd) }
}

/// a + b rounded to nearest, and its exact error: Knuth's.
#[inline(always)]
pub(crate) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let nearest = a + b;
    let b_part = nearest - a;
    (nearest, (a - (nearest - b_part)) + (b - b_part))
}

/// a + b rounded to odd, for values whose sum cannot overflow. An exact sum of zero is -0 when rounding down, unless both are
/// +0.
#[inline(always)]
pub(crate) fn sum(a: f64, b: f64, rounding: Rounding) -> f64 {
    let (nearest, error) = two_sum(a, b);
    if nearest == 0.0 && rounding == Rounding::Rm && (a.is_sign_negative() || b.is_sign_negative()) {
        return -0.0;
    }
    to_odd(nearest, error)
}

/// a / b rounded to odd, for values of f32.
#[inline(always)]
pub(crate) fn quotient(a: f64, b: f64) -> f64 {
    let nearest = a / b;
    // The remainder is exact: it is a multiple of both last places and smaller than b times one of them. Its sign and b's
    // give the error's sign.
    let remainder = (-nearest).mul_add(b, a);
    to_odd(nearest, if b < 0.0 { -remainder } else { remainder })
}

/// The square root rounded to odd, for values of f32.
#[inline(always)]
pub(crate) fn root(a: f64) -> f64 {
    let nearest = a.sqrt();
    to_odd(nearest, (-nearest).mul_add(nearest, a))
}
