//! Gradient rules of the root-mean-square norm, of one value or of a sum.

use super::binary::record_sum;
use crate::{Save, Var};
use kinglet_tensor::{Result, Tensor, ops};

/// `x` [.., d] normalised over its last dimension and scaled by `weight` `[d]`; see [`ops::rms_norm`].
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub fn rms_norm<'t>(x: &Var<'t>, weight: &Var<'t>, eps: f32) -> Result<Var<'t>> {
    let y = ops::rms_norm(&x.value, &weight.value, eps)?;
    record_norm("rms_norm", x, weight, eps, y)
}

/// `x` + `residual`, and [`rms_norm`] of that sum, by one kernel: the bits of the two ops; see [`ops::add_rms_norm`].
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub fn add_rms_norm<'t>(x: &Var<'t>, residual: &Var<'t>, weight: &Var<'t>, eps: f32) -> Result<(Var<'t>, Var<'t>)> {
    let (sum, y) = ops::add_rms_norm(&x.value, &residual.value, &weight.value, eps)?;
    // The tape sees the two ops: the sum is kept, and its norm can be made again from it.
    let sum = record_sum(x, residual, sum)?;
    let y = record_norm("add_rms_norm", &sum, weight, eps, y)?;
    Ok((sum, y))
}

/// Records `y` as the norm of `x`, whichever kernel made it.
fn record_norm<'t>(op: &'static str, x: &Var<'t>, weight: &Var<'t>, eps: f32, y: Tensor) -> Result<Var<'t>> {
    // y = n w with n = x r, r = (mean(x²) + eps)^-1/2:
    //   dw = Σ dy n over the rows,   dx = r (dy w - n mean(dy w n))
    let (inputs, saved) = ([x, weight], [Save::Var(x), Save::Var(weight)]);
    let record = x.tape.record(op, &inputs, y).save(saved);
    record.recipe(move |saved| ops::rms_norm(saved.tensor(0)?, saved.tensor(1)?, eps)).rule(move |dy, saved, sink| {
        let (x, weight) = (saved.tensor(0)?, saved.tensor(1)?);
        let (wants_weight, mut d_weight) = (sink.wants(1), None);
        // Beside the norm there is mostly a residual connection, whose gradient is here already.
        sink.add_to(0, |d_sum| match d_sum {
            _ if wants_weight => {
                let (dx, dw) = ops::rms_norm_backward_both(d_sum, dy, x, weight, eps)?;
                d_weight = Some(dw);
                Ok(dx)
            }
            Some(d_sum) => ops::add_rms_norm_backward(d_sum, dy, x, weight, eps),
            None => ops::rms_norm_backward(dy, x, weight, eps),
        })?;
        if wants_weight {
            let d_weight = d_weight.map_or_else(|| ops::rms_norm_backward_weight(dy, x, eps), Ok)?;
            sink.add(1, d_weight)?;
        }
        Ok(())
    })
}
