//! Dropout, whose mask is a function of the key and the element's index.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::{Var, ops};
use kinglet_tensor::Result;
use kinglet_tensor::philox::Key;

/// Elements dropped with probability `p`.
#[derive(Clone, Debug)]
pub struct Dropout {
    shape: &'static [usize],
    p: f32,
}

impl Dropout {
    fn key() -> Key {
        Key::derive(&[42, 7])
    }
}

impl Case for Dropout {
    const NAME: &'static str = "dropout";

    fn instances() -> Vec<Self> {
        let cases: [(&[usize], f32); 5] =
            [(&[1], 0.5), (&[9, 7], 0.0), (&[9, 7], 0.1), (&[3, 4, 5], 0.999), (&[131, 129], 0.25)];
        cases.map(|(shape, p)| Dropout { shape, p }).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.shape)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        dropped(&inputs[0], self.p, Self::key())
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        ops::dropout(&inputs[0], self.p, Self::key())
    }
}

/// Element i is kept, times 1/(1-p), where word i of the key's stream is at least p.
pub(super) fn dropped<S: Scalar>(x: &Array<S>, p: f32, key: Key) -> Array<S> {
    let p = f64::from(p);
    let element = |(i, &x): (usize, &S)| {
        let word = key.words(i as u64 / 4)[i % 4];
        let kept = f64::from(word) >= (p * 2f64.powi(32)).floor();
        x * S::from_f64(if kept { 1.0 / (1.0 - p) } else { 0.0 })
    };
    Array::new(&x.shape, x.data.iter().enumerate().map(element).collect())
}
