//! Root-mean-square norm.

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

impl Case for RmsNorm {
    const NAME: &'static str = "rms_norm";

    fn instances() -> Vec<Self> {
        let case = |shape, weight| RmsNorm { shape, weight };
        let plain: [&[usize]; 5] = [&[1], &[1, 1], &[5, 67], &[3, 4, 16], &[70, 300]];
        let mixed = [DType::F32, DType::BF16, DType::F16].map(|w| case(&[9, 33], Some(w)));
        plain.map(|s| case(s, None)).into_iter().chain(mixed).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        let weight = float("weight", &self.shape[self.shape.len() - 1..]);
        vec![float("x", self.shape), self.weight.map_or(weight.clone(), |dtype| weight.always(dtype).frozen())]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (x, weight) = (&inputs[0], &inputs[1]);
        let row = |x: &[S]| {
            let squares = x.iter().fold(S::from_f64(0.0), |sum, &x| sum + x * x);
            let rms = (squares / S::from_f64(x.len() as f64) + S::from_f64(f64::from(EPS))).sqrt();
            x.iter().zip(&weight.data).map(|(&x, &w)| x / rms * w).collect::<Vec<_>>()
        };
        Array::new(&x.shape, x.rows().flat_map(row).collect())
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        ops::rms_norm(&inputs[0], &inputs[1], EPS)
    }

    fn flops(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}
