//! Softmax and its logarithm.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::{Result, ops};

/// One of the two, along the last dimension.
#[derive(Clone, Debug)]
pub struct Softmax {
    op: ops::Softmax,
    shape: &'static [usize],
}

impl Case for Softmax {
    const NAME: &'static str = "softmax";

    fn instances() -> Vec<Self> {
        let shapes: [&[usize]; 5] = [&[1], &[3, 1], &[5, 7], &[2, 3, 65], &[3, 1100]];
        let both = [ops::Softmax::Plain, ops::Softmax::Log];
        both.into_iter().flat_map(|op| shapes.map(|shape| Softmax { op, shape })).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.shape).within(-6.0, 6.0)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let row = |x: &[S]| {
            let max = x.iter().copied().reduce(S::max).expect("no instance is empty");
            let exps: Vec<S> = x.iter().map(|&x| (x - max).exp()).collect();
            let sum = exps.iter().copied().reduce(|a, b| a + b).expect("no instance is empty");
            match self.op {
                ops::Softmax::Plain => exps.iter().map(|&e| e / sum).collect::<Vec<S>>(),
                ops::Softmax::Log => x.iter().map(|&x| x - max - sum.ln()).collect(),
            }
        };
        Array::new(self.shape, inputs[0].rows().flat_map(row).collect())
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        match self.op {
            ops::Softmax::Plain => inputs[0].softmax(),
            ops::Softmax::Log => inputs[0].log_softmax(),
        }
    }
}
