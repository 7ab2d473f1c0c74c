//! Layer norm.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::{Var, ops};
use kinglet_tensor::{DType, Result};

/// A norm of the last dimension, with weight and bias of the data's dtype, or frozen of another.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    shape: &'static [usize],
    weight: Option<DType>,
}

const EPS: f32 = 1e-5;

impl Case for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn instances() -> Vec<Self> {
        let case = |shape, weight| LayerNorm { shape, weight };
        let plain: [&[usize]; 5] = [&[2], &[5, 67], &[3, 4, 16], &[70, 300], &[600, 7]];
        let mixed = [DType::F32, DType::BF16].map(|w| case(&[9, 33], Some(w)));
        plain.map(|s| case(s, None)).into_iter().chain(mixed).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        let width = &self.shape[self.shape.len() - 1..];
        let fixed = |input: Input| self.weight.map_or(input.clone(), |dtype| input.always(dtype).frozen());
        vec![float("x", self.shape), fixed(float("weight", width)), fixed(float("bias", width))]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (x, weight, bias) = (&inputs[0], &inputs[1], &inputs[2]);
        let mean = |x: &[S]| x.iter().fold(S::from_f64(0.0), |sum, &x| sum + x) / S::from_f64(x.len() as f64);
        let row = |x: &[S]| {
            let m = mean(x);
            let centred: Vec<S> = x.iter().map(|&x| x - m).collect();
            let variance = mean(&centred.iter().map(|&c| c * c).collect::<Vec<_>>());
            let deviation = (variance + S::from_f64(f64::from(EPS))).sqrt();
            let scaled = centred.into_iter().zip(weight.data.iter().zip(&bias.data));
            scaled.map(|(c, (&w, &b))| c / deviation * w + b).collect::<Vec<_>>()
        };
        Array::new(&x.shape, x.rows().flat_map(row).collect())
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        ops::layer_norm(&inputs[0], &inputs[1], &inputs[2], EPS)
    }

    fn flops(&self) -> usize {
        7 * self.shape.iter().product::<usize>()
    }
}
