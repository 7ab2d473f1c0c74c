//! Gradient rule of the embedding.

use crate::{Save, Var};
use kinglet_tensor::{DType, Result, Tensor, ops};

/// Row `ids[i]` of `weight` [vocabulary, d] for each i, as `dtype`; see [`ops::embedding`]. The weight's gradient is
/// kept in f32, so a tracked weight is f32.
///
/// # Errors
/// When an id is not in the table, or shapes, dtypes or devices do not fit.
pub fn embedding<'t>(weight: &Var<'t>, ids: &Tensor, dtype: DType) -> Result<Var<'t>> {
    let y = ops::embedding(&weight.value, ids, dtype)?;
    // y[i] = w[ids[i]]: dw[ids[i]] += dy[i]
    weight.tape.record("embedding", &[weight], y).save([Save::Tensor(ids)]).rule(|dy, saved, sink| {
        match sink.dest(0)? {
            Some(dest) => ops::embedding_backward(dy, saved.tensor(0)?, dest),
            None => Ok(()),
        }
    })
}
