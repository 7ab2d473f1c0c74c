//! Random numbers: a function of a key and a counter, nothing else.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Result, ops};

/// Values of one distribution. The input gives the device alone.
#[derive(Clone, Debug)]
pub struct Random {
    shape: &'static [usize],
    normal: bool,
}

const KEY: Key = Key([7, 0x9E37_79B9]);
const DEVIATION: f32 = 0.02;
const RANGE: [f32; 2] = [-0.5, 1.5];

impl Case for Random {
    const NAME: &'static str = "random";

    fn instances() -> Vec<Self> {
        let shapes: [&[usize]; 4] = [&[1], &[7], &[5, 67], &[3, 2001]];
        shapes.iter().flat_map(|shape| [true, false].map(|normal| Random { shape, normal })).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("device", &[1]).frozen()]
    }

    fn dtypes(&self) -> &'static [DType] {
        &[DType::F32]
    }

    /// Four values of a Philox counter: uniform ones of 24 bits each, or two pairs by Box and Muller.
    fn truth<S: Scalar>(&self, _: &[Array<S>]) -> Array<S> {
        let c = S::from_f64;
        let mut at = 0;
        Array::from_fn(self.shape, |_| {
            let (words, lane) = (KEY.words(at / 4), (at % 4) as usize);
            at += 1;
            let unit = |i: usize| c(f64::from(words[i] >> 8) * 2f64.powi(-24));
            if !self.normal {
                let [low, high] = RANGE.map(|v| c(v.into()));
                return low + (high - low) * unit(lane);
            }
            let pair = lane / 2 * 2;
            let radius = (c(-2.0) * (c(1.0) - unit(pair)).ln()).sqrt();
            let angle = c(std::f64::consts::TAU) * unit(pair + 1);
            c(DEVIATION.into()) * radius * if lane % 2 == 0 { angle.cos() } else { angle.sin() }
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let device = inputs[0].value().device();
        let values = match self.normal {
            true => ops::normal(self.shape, DEVIATION, KEY, device)?,
            false => ops::uniform(self.shape, RANGE[0], RANGE[1], KEY, device)?,
        };
        Ok(inputs[0].tape().constant(values))
    }
}
