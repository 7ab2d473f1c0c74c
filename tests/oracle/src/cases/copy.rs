//! Copies of any layout.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::{Result, ops};

/// A copy to row-major order.
#[derive(Clone, Debug)]
pub struct Copy {
    shape: &'static [usize],
}

impl Case for Copy {
    const NAME: &'static str = "copy";

    fn instances() -> Vec<Self> {
        let shapes: [&[usize]; 6] = [&[], &[1], &[67], &[5, 33], &[2, 1, 3, 4, 1, 5], &[300, 129]];
        shapes.map(|shape| Copy { shape }).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.shape).frozen()]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        inputs[0].clone()
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let x = inputs[0].value();
        Ok(inputs[0].tape().constant(ops::copy(x, x.dtype())?))
    }
}
