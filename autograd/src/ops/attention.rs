//! Gradient rule of attention.

use crate::{Save, Var};
use kinglet_tensor::Result;
use kinglet_tensor::ops::{self, KvView, Mask, Segments};
use std::sync::Arc;

/// Attention of `q` [tokens, heads, d] over `k` and `v` [entries, key heads, d] within `segments`; see
/// [`ops::attention`].
///
/// # Errors
/// When shapes, dtypes or devices do not fit each other or the segments.
pub fn attention<'t>(
    q: &Var<'t>,
    k: &Var<'t>,
    v: &Var<'t>,
    segments: &Segments,
    mask: Mask,
    scale: f32,
) -> Result<Var<'t>> {
    let (y, lse) = ops::attention(&q.value, KvView { k: &k.value, v: &v.value }, segments, mask, scale)?;
    let held = Save::Handle(Arc::new(segments.clone()));
    let (out, sums) = (y.clone(), Save::Tensor(&lse));
    let saved = [Save::Var(q), Save::Var(k), Save::Var(v), Save::Tensor(&out), sums, held];
    // With s = scale q kᵀ, p = exp(s - lse), y = p v and D = Σ dy y over a row:
    //   dv = pᵀ dy,   ds = p (dy vᵀ - D),   dq = scale ds k,   dk = scale dsᵀ q
    q.tape.record("attention", &[q, k, v], y).save(saved).rule(move |dy, saved, sink| {
        let (q, k, v) = (saved.tensor(0)?, saved.tensor(1)?, saved.tensor(2)?);
        let (out, lse, segments) = (saved.tensor(3)?, saved.tensor(4)?, saved.handle::<Segments>(5)?);
        let kv = KvView { k, v };
        let [dq, dk, dv] = ops::attention_backward(dy, q, kv, out, lse, segments, mask, scale)?;
        sink.add(0, dq)?;
        sink.add(1, dk)?;
        sink.add(2, dv)
    })
}
