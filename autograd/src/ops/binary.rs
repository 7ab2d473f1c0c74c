//! Gradient rules of elementwise operations of two tensors. Broadcast inputs are summed back by the sink.

use crate::{Save, Var};
use kinglet_tensor::{Result, ops};

impl<'t> Var<'t> {
    /// self + other
    ///
    /// # Errors
    /// When the shapes do not broadcast, or dtypes or devices differ.
    pub fn add(&self, other: &Var<'t>) -> Result<Var<'t>> {
        let y = ops::add(&self.value, &other.value)?;
        // y = a + b: da = dy, db = dy
        self.tape.record("add", &[self, other], y).rule(|dy, _, sink| {
            sink.add(0, dy.clone())?;
            sink.add(1, dy.clone())
        })
    }

    /// self · other, element by element
    ///
    /// # Errors
    /// When the shapes do not broadcast, or dtypes or devices differ.
    pub fn mul(&self, other: &Var<'t>) -> Result<Var<'t>> {
        let y = ops::mul(&self.value, &other.value)?;
        // y = a b: da = dy b, db = dy a
        self.tape.record("mul", &[self, other], y).save([Save::Var(self), Save::Var(other)]).rule(|dy, saved, sink| {
            if sink.wants(0) {
                sink.add(0, ops::mul(dy, saved.tensor(1)?)?)?;
            }
            if sink.wants(1) {
                sink.add(1, ops::mul(dy, saved.tensor(0)?)?)?;
            }
            Ok(())
        })
    }
}
