//! Rotary position embedding.

use crate::{Array, Case, Input, Scalar, float, integers};
use kinglet_autograd::{Var, ops};
use kinglet_tensor::{DType, Result, ops as forward};

/// `x` of this shape, turned by `angles` angles a token.
#[derive(Clone, Debug)]
pub struct Rope {
    shape: [usize; 3],
    angles: usize,
}

impl Case for Rope {
    const NAME: &'static str = "rope";

    fn instances() -> Vec<Self> {
        let sizes = [([1, 1, 2], 1), ([5, 3, 16], 8), ([7, 2, 20], 6), ([2, 3, 5], 0), ([130, 9, 64], 32)];
        sizes.map(|(shape, angles)| Rope { shape, angles }).to_vec()
    }

    fn timed() -> Vec<Self> {
        vec![Rope { shape: [4096, 9, 64], angles: 32 }]
    }

    fn inputs(&self) -> Vec<Input> {
        let table = |name| float(name, &[self.shape[0], self.angles]).within(-1.0, 1.0).frozen().always(DType::F32);
        vec![float("x", &self.shape), table("cos"), table("sin")]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (x, cos, sin, n) = (&inputs[0], &inputs[1], &inputs[2], self.angles);
        Array::from_fn(&self.shape, |index| {
            let &[token, head, i] = index else { unreachable!("three dimensions") };
            let x = |i: usize| x.at(&[token, head, i]);
            let (c, s) = (|i: usize| cos.at(&[token, i]), |i: usize| sin.at(&[token, i]));
            match i {
                i if i < n => x(i) * c(i) - x(i + n) * s(i),
                i if i < 2 * n => x(i) * c(i - n) + x(i - n) * s(i - n),
                i => x(i),
            }
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        ops::rope(&inputs[0], inputs[1].value(), inputs[2].value())
    }

    fn flops(&self) -> usize {
        6 * self.shape[0] * self.shape[1] * self.angles
    }
}

/// Cosines and sines of so many positions times so many frequencies, beside each other.
#[derive(Clone, Debug)]
pub struct RopeTable {
    tokens: usize,
    angles: usize,
}

impl RopeTable {
    const SCALING: f32 = 1.25;

    /// Falling from 1, as those of models do.
    fn frequencies(&self) -> Vec<f32> {
        (0..self.angles).map(|i| 100f32.powf(-(i as f32) / self.angles as f32)).collect()
    }
}

impl Case for RopeTable {
    const NAME: &'static str = "rope_table";

    fn instances() -> Vec<Self> {
        [(1, 1), (7, 5), (300, 32), (3, 128)].map(|(tokens, angles)| RopeTable { tokens, angles }).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        let positions: Vec<i32> = (0..self.tokens as i32).map(|i| i * i % 1009).collect();
        vec![integers("positions", &[self.tokens], &positions)]
    }

    fn dtypes(&self) -> &'static [DType] {
        &[DType::F32]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (frequencies, scaling) = (self.frequencies(), S::from_f64(f64::from(Self::SCALING)));
        Array::from_fn(&[self.tokens, 2 * self.angles], |index| {
            let angle = inputs[0].at(&[index[0]]) * S::from_f64(f64::from(frequencies[index[1] % self.angles]));
            scaling * if index[1] < self.angles { angle.cos() } else { angle.sin() }
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let (cos, sin) = forward::rope_table(inputs[0].value(), &self.frequencies(), Self::SCALING)?;
        Ok(inputs[0].tape().constant(forward::cat(&[&cos, &sin], 1)?))
    }
}
