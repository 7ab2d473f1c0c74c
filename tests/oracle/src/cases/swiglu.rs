//! SwiGLU.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::{Var, ops};
use kinglet_tensor::Result;

/// silu(gate) · up
#[derive(Clone, Debug)]
pub struct Swiglu {
    shape: &'static [usize],
    /// The largest |gate|.
    gate: f64,
}

impl Case for Swiglu {
    const NAME: &'static str = "swiglu";

    fn instances() -> Vec<Self> {
        let shapes: [(&[usize], f64); 4] = [(&[1], 2.0), (&[5, 33], 2.0), (&[7, 19], 60.0), (&[3, 67, 129], 8.0)];
        shapes.map(|(shape, gate)| Swiglu { shape, gate }).to_vec()
    }

    fn timed() -> Vec<Self> {
        vec![Swiglu { shape: &[4096, 1536], gate: 8.0 }]
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("gate", self.shape).within(-self.gate, self.gate), float("up", self.shape)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let one = S::from_f64(1.0);
        let y = |(&g, &u): (&S, &S)| g / (one + (-g).exp()) * u;
        Array::new(self.shape, inputs[0].data.iter().zip(&inputs[1].data).map(y).collect())
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        ops::swiglu(&inputs[0], &inputs[1])
    }

    fn flops(&self) -> usize {
        5 * self.shape.iter().product::<usize>()
    }
}
