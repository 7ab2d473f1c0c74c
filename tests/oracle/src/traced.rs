//! A scalar that remembers how it was made: exact gradients of any truth, at any size.

use crate::scalar::{Function, Real, Scalar};
use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The record of a computation over [`Traced`] scalars.
#[derive(Default)]
pub struct Trace {
    steps: RefCell<Vec<Step>>,
}

/// One recorded scalar: which scalars it was made from, and its derivative by each.
#[derive(Clone, Copy)]
struct Step {
    parents: [usize; 2],
    slopes: [Real; 2],
}

/// A [`Real`] on a [`Trace`]; a constant is on none.
#[derive(Clone, Copy)]
pub struct Traced<'t> {
    v: Real,
    place: Option<(&'t Trace, usize)>,
}

/// No parent: the slope beside it is never read.
const NONE: usize = usize::MAX;

impl Trace {
    /// A variable whose gradient will be asked for.
    pub fn leaf(&self, v: Real) -> Traced<'_> {
        self.push(v, [NONE; 2], [Real::default(); 2])
    }

    /// A number that no gradient flows to.
    #[must_use]
    pub fn constant<'t>(v: Real) -> Traced<'t> {
        Traced { v, place: None }
    }

    fn push(&self, v: Real, parents: [usize; 2], slopes: [Real; 2]) -> Traced<'_> {
        let mut steps = self.steps.borrow_mut();
        steps.push(Step { parents, slopes });
        Traced { v, place: Some((self, steps.len() - 1)) }
    }

    /// The derivatives of Σ seed · output by each of `leaves`.
    #[must_use]
    pub fn gradients(&self, outputs: &[Traced<'_>], seeds: &[Real], leaves: &[Traced<'_>]) -> Vec<Real> {
        let steps = self.steps.borrow();
        let mut adjoint = vec![Real::default(); steps.len()];
        for (output, &seed) in outputs.iter().zip(seeds) {
            if let Some((_, at)) = output.place {
                adjoint[at] = sum(adjoint[at], seed);
            }
        }
        for (at, step) in steps.iter().enumerate().rev() {
            for (&parent, &slope) in step.parents.iter().zip(&step.slopes) {
                if parent != NONE {
                    adjoint[parent] = sum(adjoint[parent], slope * adjoint[at]);
                }
            }
        }
        leaves.iter().map(|leaf| leaf.place.map_or(Real::default(), |(_, at)| adjoint[at])).collect()
    }
}

/// a + b, where a first term costs no rounding.
fn sum(a: Real, b: Real) -> Real {
    if a.v == 0.0 && a.rounding == 0.0 { b } else { a + b }
}

impl<'t> Traced<'t> {
    /// The number and its bounds.
    #[must_use]
    pub fn real(self) -> Real {
        self.v
    }

    /// The result `v` of a step with the derivatives `slopes` by `self` and `other`.
    fn step(self, other: Self, v: Real, slopes: [Real; 2]) -> Self {
        let Some((trace, _)) = self.place.or(other.place) else { return Self { v, place: None } };
        let parent = |t: Self| t.place.map_or(NONE, |(_, at)| at);
        trace.push(v, [parent(self), parent(other)], slopes)
    }
}

const ONE: Real = Real { v: 1.0, rounding: 0.0, storage: 0.0 };

impl Scalar for Traced<'_> {
    fn from_f64(v: f64) -> Self {
        Trace::constant(Real::from_f64(v))
    }

    fn value(self) -> f64 {
        self.v.v
    }

    fn stored_within(self, by: f64) -> Self {
        Traced { v: self.v.stored_within(by), ..self }
    }

    fn function(self, f: Function) -> Self {
        let y = self.v.function(f);
        match self.place {
            None => Trace::constant(y),
            Some((trace, at)) => trace.push(y, [at, NONE], [f.slope(self.v, y), Real::default()]),
        }
    }
}

impl Add for Traced<'_> {
    type Output = Self;
    fn add(self, b: Self) -> Self {
        self.step(b, self.v + b.v, [ONE, ONE])
    }
}

impl Sub for Traced<'_> {
    type Output = Self;
    fn sub(self, b: Self) -> Self {
        self.step(b, self.v - b.v, [ONE, -ONE])
    }
}

impl Mul for Traced<'_> {
    type Output = Self;
    fn mul(self, b: Self) -> Self {
        self.step(b, self.v * b.v, [b.v, self.v])
    }
}

impl Div for Traced<'_> {
    type Output = Self;
    fn div(self, b: Self) -> Self {
        let v = self.v / b.v;
        self.step(b, v, [ONE / b.v, -(v / b.v)])
    }
}

impl Neg for Traced<'_> {
    type Output = Self;
    fn neg(self) -> Self {
        self.step(Trace::constant(Real::default()), -self.v, [-ONE, Real::default()])
    }
}

impl std::fmt::Debug for Traced<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.v.v.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation of a scalar, in one expression of three variables.
    fn everything<S: Scalar>(x: &[S]) -> S {
        let c = S::from_f64;
        let (a, b, c2) = (x[0], x[1], x[2]);
        let u = (a * b - c2 / (a * a + c(1.5))).tanh();
        let w = ((b + c(3.0)).sqrt() + (c2 * c2 + c(0.5)).ln()).sin() * (-a).exp();
        let v = (a.cos() - b).erf().max(c2.min(a * b)) + (u * w).powi(3);
        v / (c(2.0) + u) + w
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for i in 0..50 {
            let x: Vec<f64> = (0..3).map(|k| (f64::from(i) * 0.37 + f64::from(k) * 1.9).sin()).collect();
            let trace = Trace::default();
            let leaves: Vec<_> = x.iter().map(|&v| trace.leaf(Real::input(v))).collect();
            let y = everything(&leaves);
            let got = trace.gradients(&[y], &[ONE], &leaves);
            for k in 0..3 {
                let at = |h: f64| {
                    let mut x: Vec<Real> = x.iter().map(|&v| Real::input(v)).collect();
                    x[k].v += h;
                    everything(&x).v
                };
                // Central differences with one step of Richardson's extrapolation.
                let d = |h: f64| (at(h) - at(-h)) / (2.0 * h);
                let want = (4.0 * d(1e-4) - d(2e-4)) / 3.0;
                assert!((got[k].v - want).abs() < 1e-8, "{} is not {want}", got[k].v);
            }
        }
    }

    #[test]
    fn a_variable_used_often_gathers_all_its_gradients() {
        let trace = Trace::default();
        let x = trace.leaf(Real::input(3.0));
        let unused = trace.leaf(Real::input(1.0));
        let outputs = [x * x, x + x, Traced::from_f64(5.0)];
        let got = trace.gradients(&outputs, &[ONE, Real::input(10.0), ONE], &[x, unused]);
        assert_eq!([got[0].v, got[1].v], [26.0, 0.0]);
    }
}
