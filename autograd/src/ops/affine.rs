//! Gradient rule of x · scale + shift.

use crate::Var;
use kinglet_tensor::{Result, ops};

impl<'t> Var<'t> {
    /// self · scale + shift
    ///
    /// # Errors
    /// When the dtype is no float.
    pub fn affine(&self, scale: f32, shift: f32) -> Result<Var<'t>> {
        let y = ops::affine(&self.value, scale, shift)?;
        // y = x s + t: dx = dy s
        self.tape.record("affine", &[self], y).rule(move |dy, _, sink| sink.add(0, ops::affine(dy, scale, 0.0)?))
    }
}
