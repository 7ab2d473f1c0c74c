//! Tensors of random numbers: functions of the key and the element's index.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Result, ops};

/// Which distribution, and the shape.
#[derive(Clone, Debug)]
pub enum Random {
    /// Of mean 0 and this standard deviation.
    Normal(&'static [usize], f32),
    /// From the first number up to the second.
    Uniform(&'static [usize], f32, f32),
}

impl Random {
    fn key() -> Key {
        Key::derive(&[3, 1])
    }

    fn shape(&self) -> &'static [usize] {
        match *self {
            Random::Normal(shape, _) | Random::Uniform(shape, ..) => shape,
        }
    }
}

impl Case for Random {
    const NAME: &'static str = "random";

    fn instances() -> Vec<Self> {
        vec![
            Random::Normal(&[1], 1.0),
            Random::Normal(&[7, 9], 0.02),
            Random::Normal(&[130, 131], 2.0),
            Random::Uniform(&[7, 9], -0.5, 0.25),
            Random::Uniform(&[130, 131], 0.0, 1.0),
        ]
    }

    /// The generator has no inputs; this one brings the tape.
    fn inputs(&self) -> Vec<Input> {
        vec![float("none", &[1]).frozen()]
    }

    fn dtypes(&self) -> &'static [DType] {
        &[DType::F32]
    }

    fn truth<S: Scalar>(&self, _: &[Array<S>]) -> Array<S> {
        let c = S::from_f64;
        let len: usize = self.shape().iter().product();
        let unit = |word: u32| c(f64::from(word >> 8) / 2f64.powi(24));
        let element = |i: usize| {
            let words = Self::key().words(i as u64 / 4);
            match *self {
                Random::Uniform(_, low, high) => {
                    let (low, high) = (c(f64::from(low)), c(f64::from(high)));
                    low + (high - low) * unit(words[i % 4])
                }
                Random::Normal(_, deviation) => {
                    let pair = i % 4 / 2 * 2;
                    let radius = (c(-2.0) * (c(1.0) - unit(words[pair])).ln()).sqrt();
                    let angle = c(std::f64::consts::TAU) * unit(words[pair + 1]);
                    radius * (if i.is_multiple_of(2) { angle.cos() } else { angle.sin() }) * c(f64::from(deviation))
                }
            }
        };
        Array::new(self.shape(), (0..len).map(element).collect())
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let device = inputs[0].value().device();
        Ok(inputs[0].tape().constant(match *self {
            Random::Normal(shape, deviation) => ops::normal(shape, deviation, Self::key(), device)?,
            Random::Uniform(shape, low, high) => ops::uniform(shape, low, high, Self::key(), device)?,
        }))
    }
}
