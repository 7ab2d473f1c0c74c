//! Random tensors: functions of the key and the element's index.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Result, ops};
use std::f64::consts::TAU;

/// A distribution, on a shape. The one input only says where.
#[derive(Clone, Debug)]
pub struct Random {
    shape: &'static [usize],
    normal: bool,
}

impl Random {
    fn key() -> Key {
        Key::derive(&[3, 1, 4])
    }
}

impl Case for Random {
    const NAME: &'static str = "random";

    fn instances() -> Vec<Self> {
        let shapes: [&[usize]; 4] = [&[1], &[5, 3], &[129, 131], &[2, 8192]];
        shapes.iter().flat_map(|&shape| [false, true].map(|normal| Random { shape, normal })).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("place", self.shape).frozen()]
    }

    fn dtypes(&self) -> &'static [DType] {
        &[DType::F32]
    }

    fn truth<S: Scalar>(&self, _: &[Array<S>]) -> Array<S> {
        let unit = |word: u32| f64::from(word >> 8) / 16_777_216.0;
        Array::from_fn(self.shape, |i| {
            let i = i.iter().zip(self.shape).fold(0, |at, (i, d)| at * d + i);
            let words = Self::key().words(i as u64 / 4);
            if !self.normal {
                return S::from_f64(-2.0) + S::from_f64(5.0) * S::from_f64(unit(words[i % 4]));
            }
            let (u, v) = (words[i % 4 / 2 * 2], words[i % 4 / 2 * 2 + 1]);
            let radius = (S::from_f64(-2.0) * S::from_f64(1.0 - unit(u)).ln()).sqrt();
            let angle = S::from_f64(TAU) * S::from_f64(unit(v));
            S::from_f64(0.5) * radius * if i % 2 == 0 { angle.cos() } else { angle.sin() }
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let device = inputs[0].value().device();
        let y = if self.normal {
            ops::normal(self.shape, 0.5, Self::key(), device)
        } else {
            ops::uniform(self.shape, -2.0, 3.0, Self::key(), device)
        };
        Ok(inputs[0].tape().constant(y?))
    }
}
