//! Gradient rule of the root-mean-square norm.

use crate::{Save, Var};
use kinglet_tensor::{Result, ops};

/// `x` [.., d] normalised over its last dimension and scaled by `weight` `[d]`; see [`ops::rms_norm`].
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub fn rms_norm<'t>(x: &Var<'t>, weight: &Var<'t>, eps: f32) -> Result<Var<'t>> {
    let y = ops::rms_norm(&x.value, &weight.value, eps)?;
    // y = n w with n = x r, r = (mean(x²) + eps)^-1/2:
    //   dw = Σ dy n over the rows,   dx = r (dy w - n mean(dy w n))
    let (inputs, saved) = ([x, weight], [Save::Var(x), Save::Var(weight)]);
    let record = x.tape.record("rms_norm", &inputs, y).save(saved);
    record.recipe(move |saved| ops::rms_norm(saved.tensor(0)?, saved.tensor(1)?, eps)).rule(move |dy, saved, sink| {
        let (x, weight) = (saved.tensor(0)?, saved.tensor(1)?);
        if sink.wants(0) {
            sink.add(0, ops::rms_norm_backward(dy, x, weight, eps)?)?;
        }
        if sink.wants(1) {
            sink.add(1, ops::rms_norm_backward_weight(dy, x, eps)?)?;
        }
        Ok(())
    })
}
