//! Gradient rule of dropout.

use crate::{Save, Var};
use kinglet_tensor::philox::Key;
use kinglet_tensor::{Result, ops};

/// `x` with each element zero with probability `p`, else divided by 1 - p; see [`ops::dropout`]. The mask is made
/// again from `key` in the backward pass, never kept.
///
/// # Errors
/// When `p` is not in [0, 1), or `x` is not of a float type.
pub fn dropout<'t>(x: &Var<'t>, p: f32, key: Key) -> Result<Var<'t>> {
    let y = ops::dropout(&x.value, p, key)?;
    if p == 0.0 {
        return Ok(x.clone());
    }
    // y = x m with m = 0 or 1 / (1 - p): dx = dy m
    x.tape
        .record("dropout", &[x], y)
        .save([Save::Var(x)])
        .recipe(move |saved| ops::dropout(saved.tensor(0)?, p, key))
        .rule(move |dy, _, sink| sink.add(0, ops::dropout(dy, p, key)?))
}
