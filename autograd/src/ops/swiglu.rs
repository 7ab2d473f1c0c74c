//! Gradient rule of SwiGLU.

use crate::{Save, Var};
use kinglet_tensor::{Result, ops};

/// silu(`gate`) · `up`; see [`ops::swiglu`].
///
/// # Errors
/// When shapes, dtypes or devices differ.
pub fn swiglu<'t>(gate: &Var<'t>, up: &Var<'t>) -> Result<Var<'t>> {
    let y = ops::swiglu(&gate.value, &up.value)?;
    // y = g s u with s = sigmoid(g), ds/dg = s (1 - s):
    //   du = dy g s,   dg = dy u s (1 + g (1 - s))
    let (inputs, saved) = ([gate, up], [Save::Var(gate), Save::Var(up)]);
    let record = gate.tape.record("swiglu", &inputs, y).save(saved);
    record.recipe(|saved| ops::swiglu(saved.tensor(0)?, saved.tensor(1)?)).rule(|dy, saved, sink| {
        let (d_gate, d_up) = ops::swiglu_backward(dy, saved.tensor(0)?, saved.tensor(1)?)?;
        sink.add(0, d_gate)?;
        sink.add(1, d_up)
    })
}
