//! Gradient rule of a change of dtype.

use crate::{Save, Var};
use kinglet_tensor::{DType, Result};

/// `x` as `dtype`, rounded to nearest even.
///
/// # Errors
/// When memory runs out.
pub fn cast<'t>(x: &Var<'t>, dtype: DType) -> Result<Var<'t>> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    // Rounding counts as the identity; the sink casts the gradient to the dtype of x.
    let y = x.value.to_dtype(dtype)?;
    x.tape
        .record("cast", &[x], y)
        .save([Save::Var(x)])
        .recipe(move |saved| saved.tensor(0)?.to_dtype(dtype))
        .rule(|dy, _, sink| sink.add(0, dy.clone()))
}
