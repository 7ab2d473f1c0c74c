//! Gradient rules of softmax and its logarithm.

use crate::{Save, Var};
use kinglet_tensor::ops::Softmax;
use kinglet_tensor::{Result, ops};

impl<'t> Var<'t> {
    /// eˣ / Σ eˣ along the last dimension.
    ///
    /// # Errors
    /// When there is no dimension, or the dtype is no float.
    pub fn softmax(&self) -> Result<Var<'t>> {
        self.softmax_of(Softmax::Plain, "softmax")
    }

    /// x - log Σ eˣ along the last dimension.
    ///
    /// # Errors
    /// As [`Var::softmax`].
    pub fn log_softmax(&self) -> Result<Var<'t>> {
        self.softmax_of(Softmax::Log, "log_softmax")
    }

    fn softmax_of(&self, op: Softmax, name: &'static str) -> Result<Var<'t>> {
        let y = ops::softmax(op, &self.value)?;
        self.tape
            .record(name, &[self], y.clone())
            .save([Save::Tensor(&y)])
            .rule(move |dy, saved, sink| sink.add(0, ops::softmax_backward(op, saved.tensor(0)?, dy)?))
    }
}
