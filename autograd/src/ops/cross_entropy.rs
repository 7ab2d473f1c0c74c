//! Gradient rule of cross-entropy.

use crate::{Save, Var};
use kinglet_tensor::{Result, Tensor, ops};

/// The sum of -log softmax(`logits`)\[target\] over the rows that have a target, over `divisor`; see
/// [`ops::cross_entropy`].
///
/// # Errors
/// When a target is no class, or shapes, dtypes or devices do not fit.
pub fn cross_entropy<'t>(logits: &Var<'t>, targets: &Tensor, divisor: f32) -> Result<Var<'t>> {
    let (loss, lse) = ops::cross_entropy(&logits.value, targets, divisor)?;
    let saved = [Save::Var(logits), Save::Tensor(targets), Save::Tensor(&lse)];
    // loss = Σ (lse(x) - x[target]) / divisor: dx = dy (softmax(x) - onehot(target)) / divisor
    logits.tape.record("cross_entropy", &[logits], loss).save(saved).rule(move |dy, saved, sink| {
        let (logits, targets, lse) = (saved.tensor(0)?, saved.tensor(1)?, saved.tensor(2)?);
        sink.add(0, ops::cross_entropy_backward(dy, logits, targets, lse, divisor)?)
    })
}
