//! The choice between two values by a mask. Comparisons are functions of tensors: no gradient flows through them.

use crate::{Save, Sink, Var};
use kinglet_tensor::{Result, Tensor, ops};

impl<'t> Var<'t> {
    /// Self where `mask` (u8, from [`ops::compare`]) is not 0, else `other`; all three broadcast.
    ///
    /// # Errors
    /// When shapes do not broadcast, devices or dtypes differ, or the mask is not u8.
    pub fn where_(&self, mask: &Tensor, other: &Var<'t>) -> Result<Var<'t>> {
        let y = ops::where_(mask, &self.value, &other.value)?;
        // da = dy where the mask holds, db = dy elsewhere
        self.tape
            .record("where", &[self, other], y)
            .save([Save::Tensor(mask)])
            .rule(|dy, saved, sink| split(saved.tensor(0)?, dy, sink))
    }
}

/// `dy` where `mask` holds goes to the first input, the rest of it to the second.
pub(super) fn split(mask: &Tensor, dy: &Tensor, sink: &mut Sink<'_>) -> Result<()> {
    let zero = Tensor::zeros(&[], dy.dtype(), dy.device())?;
    if sink.wants(0) {
        sink.add(0, ops::where_(mask, dy, &zero)?)?;
    }
    if sink.wants(1) {
        sink.add(1, ops::where_(mask, &zero, dy)?)?;
    }
    Ok(())
}
