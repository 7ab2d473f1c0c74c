//! Gradient rules of the output projection fused with cross-entropy: the gradients are made in the forward pass, while
//! the logits are there, and only scaled here.

use crate::{Save, Var};
use kinglet_tensor::ops::{self, Projection, Wants};
use kinglet_tensor::{Result, Tensor};

/// The sum of -log softmax(`hidden` · `weight`ᵀ)\[target\] over the rows that have a target, over `divisor`, for a
/// trainable (or tracked) `weight` [classes, d], whose gradient is kept in f32; see [`ops::linear_cross_entropy`].
/// The second result is the loss of each row.
///
/// # Errors
/// When a target is no class, or shapes, dtypes or devices do not fit.
pub fn linear_cross_entropy<'t>(
    hidden: &Var<'t>,
    weight: &Var<'t>,
    targets: &Tensor,
    divisor: f32,
) -> Result<(Var<'t>, Tensor)> {
    let wants = Wants { hidden: hidden.is_tracked(), weight: weight.is_tracked() };
    let made = ops::linear_cross_entropy(&hidden.value, &weight.value.contiguous()?, targets, divisor, wants)?;
    let saved = [&made.d_hidden, &made.d_weight].into_iter().flatten().map(Save::Tensor);
    // The gradients g of the loss are there: d = dy g
    let inputs = [hidden, weight];
    let loss =
        hidden.tape.record("linear_cross_entropy", &inputs, made.loss).save(saved).rule(move |dy, saved, sink| {
            if wants.hidden {
                sink.add(0, ops::scale(saved.tensor(0)?, dy)?)?;
            }
            match sink.dest(1)? {
                Some(dest) => ops::add_scaled(saved.tensor(usize::from(wants.hidden))?, dy, dest),
                None => Ok(()),
            }
        })?;
    Ok((loss, made.losses))
}

/// As [`linear_cross_entropy`], for a frozen weight in any stored form.
///
/// # Errors
/// When a target is no class, or shapes, dtypes or devices do not fit.
pub fn linear_cross_entropy_frozen<'t>(
    hidden: &Var<'t>,
    weight: &dyn Projection,
    targets: &Tensor,
    divisor: f32,
) -> Result<(Var<'t>, Tensor)> {
    let wants = Wants { hidden: hidden.is_tracked(), weight: false };
    let made = ops::linear_cross_entropy(&hidden.value, weight, targets, divisor, wants)?;
    let saved = made.d_hidden.as_ref().map(Save::Tensor);
    // The gradient g of the loss is there: dh = dy g
    let inputs = [hidden];
    let loss = hidden
        .tape
        .record("linear_cross_entropy", &inputs, made.loss)
        .save(saved)
        .rule(|dy, saved, sink| sink.add(0, ops::scale(saved.tensor(0)?, dy)?))?;
    Ok((loss, made.losses))
}
