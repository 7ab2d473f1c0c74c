//! Gradient rule of rotary position embedding.

use crate::{Save, Var};
use kinglet_tensor::{Result, Tensor, ops};

/// `x` [tokens, heads, d] turned by the angles of its tokens, whose `cos` and `sin` come from [`ops::rope_table`]; see
/// [`ops::rope`].
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub fn rope<'t>(x: &Var<'t>, cos: &Tensor, sin: &Tensor) -> Result<Var<'t>> {
    let y = ops::rope(&x.value, cos, sin)?;
    // y = R x with R a rotation (times the table's factor): dx = Rᵀ dy, the turn by the opposite angle
    x.tape
        .record("rope", &[x], y)
        .save([Save::Tensor(cos), Save::Tensor(sin)])
        .rule(|dy, saved, sink| sink.add(0, ops::rope_backward(dy, saved.tensor(0)?, saved.tensor(1)?)?))
}
