//! x · scale + shift.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::Result;

/// One scale and shift.
#[derive(Clone, Debug)]
pub struct Affine {
    shape: &'static [usize],
    scale: f32,
    shift: f32,
}

impl Case for Affine {
    const NAME: &'static str = "affine";

    fn instances() -> Vec<Self> {
        let shapes: [&[usize]; 4] = [&[], &[7], &[33, 65], &[2, 1025]];
        let numbers = [(-0.3, 0.7), (2.0, 0.0)];
        shapes.iter().flat_map(|shape| numbers.map(|(scale, shift)| Affine { shape, scale, shift })).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.shape)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (scale, shift) = (S::from_f64(self.scale.into()), S::from_f64(self.shift.into()));
        inputs[0].map(|x| x * scale + shift)
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        inputs[0].affine(self.scale, self.shift)
    }
}
