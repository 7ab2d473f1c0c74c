//! Gradient rule of matrix products.

use crate::{Save, Var};
use kinglet_tensor::{DType, Result, Tensor, ops};

impl<'t> Var<'t> {
    /// self [.., m, k] times other [.., k, n], where the dimensions before the last two broadcast.
    ///
    /// # Errors
    /// When shapes do not fit, devices differ, or a dtype is no float.
    pub fn matmul(&self, other: &Var<'t>) -> Result<Var<'t>> {
        let y = ops::matmul(&self.value, &other.value)?;
        let saved = [Save::Var(self), Save::Var(other)];
        // Y = A B: dA = dY Bᵀ, dB = Aᵀ dY, both through transposed views
        self.tape.record("matmul", &[self, other], y).save(saved).rule(|dy, saved, sink| {
            let (a, b) = (saved.tensor(0)?, saved.tensor(1)?);
            if sink.wants(0) {
                sink.add(0, ops::matmul(dy, &transposed(b)?)?)?;
            }
            if !sink.wants(1) {
                return Ok(());
            }
            if b.rank() > 2 {
                return sink.add(1, ops::matmul(&transposed(a)?, dy)?);
            }
            // One matrix met every batch: its gradient is one product over all rows.
            let (a, dy) = (rows(a)?, rows(dy)?);
            if b.dtype() == DType::F32
                && let Some(db) = sink.dest(1)?
            {
                return ops::matmul_into(&transposed(&a)?, &dy, db);
            }
            sink.add(1, ops::matmul(&transposed(&a)?, &dy)?)
        })
    }
}

fn transposed(x: &Tensor) -> Result<Tensor> {
    x.transpose(x.rank() - 2, x.rank() - 1)
}

/// [.., m, k] as one matrix of all rows.
fn rows(x: &Tensor) -> Result<Tensor> {
    let (width, rank) = (x.shape()[x.rank() - 1], x.rank());
    x.reshape(&[x.shape()[..rank - 1].iter().product(), width])
}
