//! Root-mean-square norm, of one value or of a sum.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::{Var, ops};
use kinglet_tensor::{DType, Result};

/// A norm of the last dimension, with a weight of the data's dtype, or frozen of another.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    shape: &'static [usize],
    weight: Option<DType>,
}

const EPS: f32 = 1e-5;

fn norm<S: Scalar>(x: &Array<S>, weight: &Array<S>) -> Array<S> {
    let row = |x: &[S]| {
        let squares = x.iter().fold(S::from_f64(0.0), |sum, &x| sum + x * x);
        let rms = (squares / S::from_f64(x.len() as f64) + S::from_f64(f64::from(EPS))).sqrt();
        x.iter().zip(&weight.data).map(|(&x, &w)| x / rms * w).collect::<Vec<_>>()
    };
    Array::new(&x.shape, x.rows().flat_map(row).collect())
}

impl Case for RmsNorm {
    const NAME: &'static str = "rms_norm";

    fn instances() -> Vec<Self> {
        let case = |shape, weight| RmsNorm { shape, weight };
        let plain: [&[usize]; 6] = [&[1], &[1, 1], &[5, 67], &[3, 4, 16], &[70, 300], &[600, 7]];
        let mixed = [DType::F32, DType::BF16, DType::F16].map(|w| case(&[9, 33], Some(w)));
        plain.map(|s| case(s, None)).into_iter().chain(mixed).collect()
    }

    fn timed() -> Vec<Self> {
        vec![RmsNorm { shape: &[4096, 576], weight: None }]
    }

    fn inputs(&self) -> Vec<Input> {
        let weight = float("weight", &self.shape[self.shape.len() - 1..]);
        vec![float("x", self.shape), self.weight.map_or(weight.clone(), |dtype| weight.always(dtype).frozen())]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        norm(&inputs[0], &inputs[1])
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        ops::rms_norm(&inputs[0], &inputs[1], EPS)
    }

    fn flops(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

/// A norm of x + residual: what it gives, or the sum and that, one after the other.
#[derive(Clone, Debug)]
pub struct AddRmsNorm {
    norm: RmsNorm,
    with_sum: bool,
}

impl Case for AddRmsNorm {
    const NAME: &'static str = "add_rms_norm";

    fn instances() -> Vec<Self> {
        let case = |norm: RmsNorm| [true, false].map(|with_sum| AddRmsNorm { norm: norm.clone(), with_sum });
        RmsNorm::instances().into_iter().flat_map(case).collect()
    }

    fn timed() -> Vec<Self> {
        RmsNorm::timed().into_iter().map(|norm| AddRmsNorm { norm, with_sum: false }).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        let mut inputs = self.norm.inputs();
        inputs.push(float("residual", self.norm.shape));
        inputs
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (x, weight, residual) = (&inputs[0], &inputs[1], &inputs[2]);
        let sum = Array::new(&x.shape, x.data.iter().zip(&residual.data).map(|(&x, &r)| x + r).collect());
        let y = norm(&sum, weight);
        if !self.with_sum {
            return y;
        }
        Array::new(&[&[2], self.norm.shape].concat(), [sum.data, y.data].concat())
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let (sum, y) = ops::add_rms_norm(&inputs[0], &inputs[2], &inputs[1], EPS)?;
        if self.with_sum { Var::stack(&[&sum, &y], 0) } else { Ok(y) }
    }

    fn flops(&self) -> usize {
        5 * self.norm.shape.iter().product::<usize>()
    }
}
