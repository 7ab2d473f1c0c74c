//! What correct rounding is, by definition and nothing else: of all numbers of a format, find the two around the exact value
//! by bisection, comparing whole numbers of any length, and choose as the mode says.

use kinglet_emulator::program::Rounding;
use std::cmp::Ordering;

/// A natural number, lowest limb first, no zero limb on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Natural(Vec<u64>);

impl Natural {
    pub fn new(x: u128) -> Self {
        Natural(vec![x as u64, (x >> 64) as u64]).trimmed()
    }

    fn trimmed(mut self) -> Self {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
        self
    }

    pub fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    pub fn shl(&self, by: u32) -> Self {
        let mut limbs = vec![0; (by / 64) as usize];
        let mut carry = 0;
        for limb in &self.0 {
            let wide = u128::from(*limb) << (by % 64);
            limbs.push(wide as u64 | carry);
            carry = (wide >> 64) as u64;
        }
        limbs.push(carry);
        Natural(limbs).trimmed()
    }

    pub fn mul(&self, other: &Self) -> Self {
        let mut limbs = vec![0u64; self.0.len() + other.0.len()];
        for (i, a) in self.0.iter().enumerate() {
            let mut carry = 0u128;
            for (j, b) in other.0.iter().enumerate() {
                let sum = u128::from(*a) * u128::from(*b) + u128::from(limbs[i + j]) + carry;
                limbs[i + j] = sum as u64;
                carry = sum >> 64;
            }
            limbs[i + other.0.len()] = carry as u64;
        }
        Natural(limbs).trimmed()
    }

    fn limb(&self, i: usize) -> u64 {
        self.0.get(i).copied().unwrap_or(0)
    }

    pub fn add(&self, other: &Self) -> Self {
        let mut carry = 0u128;
        let limbs = (0..=self.0.len().max(other.0.len())).map(|i| {
            carry += u128::from(self.limb(i)) + u128::from(other.limb(i));
            let limb = carry as u64;
            carry >>= 64;
            limb
        });
        Natural(limbs.collect()).trimmed()
    }

    /// self - other, for self >= other.
    pub fn sub(&self, other: &Self) -> Self {
        let mut borrow = false;
        let limbs = (0..self.0.len()).map(|i| {
            let (x, first) = self.limb(i).overflowing_sub(other.limb(i));
            let (x, second) = x.overflowing_sub(borrow.into());
            borrow = first || second;
            x
        });
        Natural(limbs.collect()).trimmed()
    }

    pub fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}

/// (-1)^negative * magnitude * 2^exponent
#[derive(Clone, Debug)]
pub struct Dyadic {
    pub negative: bool,
    pub magnitude: Natural,
    pub exponent: i32,
}

impl Dyadic {
    pub fn integer(x: i128) -> Self {
        Dyadic { negative: x < 0, magnitude: Natural::new(x.unsigned_abs()), exponent: 0 }
    }

    pub fn is_zero(&self) -> bool {
        self.magnitude.is_zero()
    }

    /// The magnitude without its exponent, of at most 64 bits.
    pub fn small_magnitude(&self) -> i128 {
        assert!(self.magnitude.0.len() <= 1);
        self.magnitude.limb(0).into()
    }

    pub fn negated(mut self) -> Self {
        self.negative = !self.negative;
        self
    }

    pub fn mul(&self, other: &Self) -> Self {
        Dyadic {
            negative: self.negative != other.negative,
            magnitude: self.magnitude.mul(&other.magnitude),
            exponent: self.exponent + other.exponent,
        }
    }

    /// Both magnitudes with one exponent, the smaller.
    fn aligned(&self, other: &Self) -> (Natural, Natural, i32) {
        let exponent = self.exponent.min(other.exponent);
        let shift = |x: &Self| x.magnitude.shl((x.exponent - exponent) as u32);
        (shift(self), shift(other), exponent)
    }

    pub fn add(&self, other: &Self) -> Self {
        let (a, b, exponent) = self.aligned(other);
        let (negative, magnitude) = if self.negative == other.negative {
            (self.negative, a.add(&b))
        } else if a.cmp(&b) == Ordering::Less {
            (other.negative, b.sub(&a))
        } else {
            (self.negative, a.sub(&b))
        };
        Dyadic { negative, magnitude, exponent }
    }

    pub fn cmp_magnitude(&self, other: &Self) -> Ordering {
        let (a, b, _) = self.aligned(other);
        a.cmp(&b)
    }
}

/// A format, by its stored fraction bits and exponent bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub fraction: u32,
    pub exponent: u32,
    /// The bits of the largest finite number.
    pub largest: u64,
}

pub const F16: Format = Format { fraction: 10, exponent: 5, largest: 0x7bff };
pub const BF16: Format = Format { fraction: 7, exponent: 8, largest: 0x7f7f };
pub const TF32: Format = Format { fraction: 10, exponent: 8, largest: 0x3fbff };
pub const F32: Format = Format { fraction: 23, exponent: 8, largest: 0x7f7f_ffff };
pub const F64: Format = Format { fraction: 52, exponent: 11, largest: 0x7fef_ffff_ffff_ffff };
pub const E4M3: Format = Format { fraction: 3, exponent: 4, largest: 0x7e };
pub const E5M2: Format = Format { fraction: 2, exponent: 5, largest: 0x7b };

impl Format {
    pub const fn bits(self) -> u32 {
        1 + self.exponent + self.fraction
    }

    pub const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    pub fn is_finite(self, bits: u64) -> bool {
        bits & !self.sign() <= self.largest
    }

    pub fn is_nan(self, bits: u64) -> bool {
        let has_infinity = self != E4M3;
        bits & !self.sign() > self.largest + u64::from(has_infinity)
    }

    /// The value of a finite number; of the bits above the largest, what they would be if exponents went on.
    pub fn value(self, bits: u64) -> Dyadic {
        let magnitude = bits & !self.sign();
        let (exponent, fraction) = (magnitude >> self.fraction, magnitude & ((1 << self.fraction) - 1));
        let bias = (1 << (self.exponent - 1)) - 1;
        let implicit = u64::from(exponent != 0) << self.fraction;
        Dyadic {
            negative: bits & self.sign() != 0,
            magnitude: Natural::new((fraction | implicit).into()),
            exponent: exponent.max(1) as i32 - bias - self.fraction as i32,
        }
    }

    /// The number that an exact value rounds to. `compare(x)` compares the value's magnitude with that of `x`; a value of 0
    /// keeps the sign given.
    pub fn rounded(self, negative: bool, rounding: Rounding, compare: impl Fn(&Dyadic) -> Ordering) -> u64 {
        // The largest number that is not above the value.
        let (mut below, mut above) = (0, self.largest + 1);
        while above - below > 1 {
            let middle = below + (above - below) / 2;
            if compare(&self.value(middle)) == Ordering::Less { above = middle } else { below = middle }
        }
        let is_exact = compare(&self.value(below)) == Ordering::Equal;
        let sum = self.value(below).add(&self.value(above));
        let half = compare(&Dyadic { exponent: sum.exponent - 1, ..sum });
        let up = !is_exact
            && match rounding {
                Rounding::Rn => half == Ordering::Greater || half == Ordering::Equal && below % 2 == 1,
                Rounding::Rna => half != Ordering::Less,
                Rounding::Rz => false,
                Rounding::Rm => negative,
                Rounding::Rp => !negative,
            };
        (if up { above } else { below }) | if negative { self.sign() } else { 0 }
    }

    /// [`Format::rounded`] of a value that is a fraction of a power of two.
    pub fn round(self, x: &Dyadic, rounding: Rounding) -> u64 {
        self.rounded(x.negative, rounding, |y| x.cmp_magnitude(y))
    }
}
