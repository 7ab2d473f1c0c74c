//! Gradient rule of layer norm.

use crate::{Save, Var};
use kinglet_tensor::{Result, ops};

/// `x` [.., d] normalised over its last dimension, scaled by `weight` `[d]` and shifted by `bias` `[d]`; see
/// [`ops::layer_norm`].
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub fn layer_norm<'t>(x: &Var<'t>, weight: &Var<'t>, bias: &Var<'t>, eps: f32) -> Result<Var<'t>> {
    let y = ops::layer_norm(&x.value, &weight.value, &bias.value, eps)?;
    // y = n w + b with n = (x - mean) r:
    //   dw = Σ dy n, db = Σ dy over the rows,   dx = r (dy w - mean(dy w) - n mean(dy w n))
    let (inputs, saved) = ([x, weight, bias], [Save::Var(x), Save::Var(weight), Save::Var(bias)]);
    let record = x.tape.record("layer_norm", &inputs, y).save(saved);
    let again = record.recipe(move |saved| ops::layer_norm(saved.tensor(0)?, saved.tensor(1)?, saved.tensor(2)?, eps));
    again.rule(move |dy, saved, sink| {
        let (x, weight) = (saved.tensor(0)?, saved.tensor(1)?);
        if sink.wants(0) {
            sink.add(0, ops::layer_norm_backward(dy, x, weight, eps)?)?;
        }
        if sink.wants(1) || sink.wants(2) {
            let (d_weight, d_bias) = ops::layer_norm_backward_weight(dy, x, eps)?;
            sink.add(1, d_weight)?;
            sink.add(2, d_bias)?;
        }
        Ok(())
    })
}
