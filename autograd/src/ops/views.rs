//! Gradient rules of views: the gradient takes the way back.

use crate::Var;
use kinglet_tensor::Result;

impl<'t> Var<'t> {
    /// The same elements in row-major order under another shape.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Var<'t>> {
        let y = self.value.reshape(shape)?;
        let old = *self.value.layout().shape();
        self.tape.record("reshape", &[self], y).rule(move |dy, _, sink| sink.add(0, dy.reshape(&old)?))
    }
}
