//! The numbers that truths are written over.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A number that an op's truth is computed with: [`Real`] for values, [`crate::Traced`] for gradients.
pub trait Scalar:
    Copy + Debug + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// A constant.
    fn from_f64(v: f64) -> Self;
    /// The number, to decide by (a branch, an index, a mask).
    fn value(self) -> f64;
    /// f(self)
    #[must_use]
    fn function(self, f: Function) -> Self;

    /// The number as it is where a kernel stores it with an error of up to `by` in units of eps(dtype).
    #[must_use]
    fn stored_within(self, by: f64) -> Self;

    /// e^self
    #[must_use]
    fn exp(self) -> Self {
        self.function(Function::Exp)
    }
    /// The natural logarithm.
    #[must_use]
    fn ln(self) -> Self {
        self.function(Function::Ln)
    }
    /// The square root.
    #[must_use]
    fn sqrt(self) -> Self {
        self.function(Function::Sqrt)
    }
    /// The sine.
    #[must_use]
    fn sin(self) -> Self {
        self.function(Function::Sin)
    }
    /// The cosine.
    #[must_use]
    fn cos(self) -> Self {
        self.function(Function::Cos)
    }
    /// The hyperbolic tangent.
    #[must_use]
    fn tanh(self) -> Self {
        self.function(Function::Tanh)
    }
    /// The error function.
    #[must_use]
    fn erf(self) -> Self {
        self.function(Function::Erf)
    }
    /// self to the power n.
    #[must_use]
    fn powi(self, n: u32) -> Self {
        (0..n).fold(Self::from_f64(1.0), |y, _| y * self)
    }
    /// The larger; `self` where they are equal.
    #[must_use]
    fn max(self, other: Self) -> Self {
        if other.value() > self.value() { other } else { self }
    }
    /// The smaller; `self` where they are equal.
    #[must_use]
    fn min(self, other: Self) -> Self {
        if other.value() < self.value() { other } else { self }
    }
}

/// The elementary functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// e^x
    Exp,
    /// log x
    Ln,
    /// √x
    Sqrt,
    /// sin x
    Sin,
    /// cos x
    Cos,
    /// tanh x
    Tanh,
    /// erf x
    Erf,
}

impl Function {
    /// f(x)
    #[must_use]
    pub fn value(self, x: f64) -> f64 {
        match self {
            Function::Exp => x.exp(),
            Function::Ln => x.ln(),
            Function::Sqrt => x.sqrt(),
            Function::Sin => x.sin(),
            Function::Cos => x.cos(),
            Function::Tanh => x.tanh(),
            Function::Erf => erf(x),
        }
    }

    /// f'(x), in terms of x and y = f(x).
    pub(crate) fn slope<S: Scalar>(self, x: S, y: S) -> S {
        let c = S::from_f64;
        match self {
            Function::Exp => y,
            Function::Ln => c(1.0) / x,
            Function::Sqrt => c(0.5) / y,
            Function::Sin => x.cos(),
            Function::Cos => -x.sin(),
            Function::Tanh => c(1.0) - y * y,
            Function::Erf => c(std::f64::consts::FRAC_2_SQRT_PI) * (-(x * x)).exp(),
        }
    }
}

/// The error function by its series of positive terms, 2/√π e^(-x²) Σ 2ⁿ x^(2n+1) / (2n+1)!!; ±1 beyond 6.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    sum * (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI
}

impl Scalar for f64 {
    fn from_f64(v: f64) -> Self {
        v
    }

    fn value(self) -> f64 {
        self
    }

    fn function(self, f: Function) -> Self {
        f.value(self)
    }

    fn stored_within(self, _: f64) -> Self {
        self
    }
}

/// A number in f64 with two running first-order bounds on what a kernel may be off by. A kernel reads data stored in
/// some dtype, computes in f32 and stores the result; so its error is at most
///
/// `eps(f32) · rounding + eps(dtype) · (storage + |v|)`
///
/// whatever the op is: see [`crate::tolerance`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Real {
    /// The number.
    pub v: f64,
    /// Rounding errors of every arithmetic step, carried through the steps after it, in units of eps(f32).
    pub rounding: f64,
    /// The effect of rounding every input once (Σ |∂v/∂x| |x|), in units of eps(dtype): what storing intermediate
    /// results in the dtype of the data may cost.
    pub storage: f64,
}

impl Real {
    /// A value of the data, exact as it is stored.
    #[must_use]
    pub fn input(v: f64) -> Self {
        Real { v, rounding: 0.0, storage: v.abs() }
    }

    /// The result `v` of one step, rounded `roundings` times, that changes by `slope` for a change of each operand.
    fn step(v: f64, roundings: f64, operands: &[(Real, f64)]) -> Self {
        // An operand without error brings none, however steep the step.
        let carry = |bound: f64, slope: f64| if bound == 0.0 { 0.0 } else { bound * slope.abs() };
        Real {
            v,
            rounding: operands.iter().fold(roundings * v.abs(), |sum, (x, slope)| sum + carry(x.rounding, *slope)),
            storage: operands.iter().fold(0.0, |sum, (x, slope)| sum + carry(x.storage, *slope)),
        }
    }
}

impl Scalar for Real {
    /// Constants that f32 cannot hold are rounded once in a kernel too.
    fn from_f64(v: f64) -> Self {
        let exact = f64::from(v as f32) == v;
        Real { v, rounding: if exact { 0.0 } else { v.abs() }, storage: 0.0 }
    }

    fn value(self) -> f64 {
        self.v
    }

    /// Two roundings: a polynomial is evaluated to about one unit in the last place.
    fn function(self, f: Function) -> Self {
        let (x, y) = (self.v, f.value(self.v));
        Real::step(y, 2.0, &[(self, f.slope(x, y))])
    }

    fn stored_within(self, by: f64) -> Self {
        Real { storage: self.storage + by, ..self }
    }
}

impl Add for Real {
    type Output = Self;
    fn add(self, b: Self) -> Self {
        Real::step(self.v + b.v, 1.0, &[(self, 1.0), (b, 1.0)])
    }
}

impl Sub for Real {
    type Output = Self;
    fn sub(self, b: Self) -> Self {
        Real::step(self.v - b.v, 1.0, &[(self, 1.0), (b, 1.0)])
    }
}

impl Mul for Real {
    type Output = Self;
    fn mul(self, b: Self) -> Self {
        Real::step(self.v * b.v, 1.0, &[(self, b.v), (b, self.v)])
    }
}

impl Div for Real {
    type Output = Self;
    fn div(self, b: Self) -> Self {
        let v = self.v / b.v;
        Real::step(v, 1.0, &[(self, 1.0 / b.v), (b, v / b.v)])
    }
}

impl Neg for Real {
    type Output = Self;
    fn neg(self) -> Self {
        Real { v: -self.v, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A polynomial, a sum and a division, in f32 and with bounds.
    #[test]
    fn bounds_hold_for_f32_arithmetic_and_are_not_far_off() {
        let mut worst = 0f64;
        for i in 1..2000 {
            let x = i as f32 * 7.31e-3 - 7.0;
            let terms = (1..20).map(|k| x / k as f32);
            let f32s = (terms.clone().map(|t| t * t).sum::<f32>() + x) / (x * x + 1.0);
            let x = Real::input(f64::from(x));
            let squares = (1..20).map(|k| x / Real::from_f64(f64::from(k))).map(|t| t * t);
            let sum = squares.fold(Real::default(), |a, b| a + b);
            let real = (sum + x) / (x * x + Real::from_f64(1.0));
            worst = worst.max((f64::from(f32s) - real.v).abs() / (2f64.powi(-24) * real.rounding));
        }
        assert!(worst <= 1.0, "the error was {worst} times the bound");
        assert!(worst >= 0.05, "the bound is {} times too wide", 1.0 / worst);
    }

    #[test]
    fn the_error_function_is_right() {
        for (x, want) in [(0.0, 0.0), (0.5, 0.520_499_877_813_046_5), (-2.0, -0.995_322_265_018_952_7), (7.0, 1.0)] {
            assert!((erf(x) - want).abs() < 1e-15);
        }
    }
}
