//! Dropout, whose mask is a function of the key and the element's index.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::{Var, ops};
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Result, ops as tensor_ops};

/// Shapes and probabilities.
const CASES: [(&[usize], f32); 5] =
    [(&[1], 0.5), (&[9, 7], 0.0), (&[9, 7], 0.1), (&[3, 4, 5], 0.999), (&[131, 129], 0.25)];

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
        CASES.map(|(shape, p)| Dropout { shape, p }).to_vec()
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

/// out += dropout(x), as the gradient of a linear layer's input gets its adapters' terms; `wide`: x is f32 whatever `out` is.
#[derive(Clone, Debug)]
pub struct AddDropout {
    shape: &'static [usize],
    p: f32,
    wide: bool,
}

impl Case for AddDropout {
    const NAME: &'static str = "dropout";

    fn instances() -> Vec<Self> {
        let each = |(shape, p)| [false, true].map(|wide| AddDropout { shape, p, wide });
        CASES.into_iter().flat_map(each).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        let (out, x) = (float("out", self.shape).frozen(), float("x", self.shape).frozen());
        vec![out, if self.wide { x.always(DType::F32) } else { x }]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let dropped = dropped(&inputs[1], self.p, Dropout::key());
        Array::from_fn(self.shape, |i| inputs[0].at(i) + dropped.at(i))
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let (old, x) = (inputs[0].value(), inputs[1].value());
        let mut out = x.device().alloc(self.shape, old.dtype())?;
        tensor_ops::copy_into(old, out.view())?;
        tensor_ops::add_dropout(x, self.p, Dropout::key(), out.view())?;
        Ok(inputs[0].tape().constant(out.finish()))
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
