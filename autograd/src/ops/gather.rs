//! Gradient rules of reading and adding at indices.

use crate::{Save, Var};
use kinglet_tensor::{Result, Tensor, ops};

impl<'t> Var<'t> {
    /// out[.., i, ..] = self[.., index[.., i, ..], ..] along `dim`; see [`ops::gather`].
    ///
    /// # Errors
    /// When shapes do not fit, `index` is not i32, or an index is out of range.
    pub fn gather(&self, dim: usize, index: &Tensor) -> Result<Var<'t>> {
        let y = ops::gather(&self.value, dim, index)?;
        let shape = *self.value.layout().shape();
        // dx = dy, added at the indices
        self.tape.record("gather", &[self], y).save([Save::Tensor(index)]).rule(move |dy, saved, sink| {
            let zeros = Tensor::zeros(&[], dy.dtype(), dy.device())?.broadcast_to(&shape)?;
            sink.add(0, ops::scatter_add(&zeros, dim, saved.tensor(0)?, dy)?)
        })
    }

    /// The entries `ids` (i32, one dimension) along `dim`.
    ///
    /// # Errors
    /// As [`Var::gather`].
    pub fn index_select(&self, dim: usize, ids: &Tensor) -> Result<Var<'t>> {
        let y = ops::index_select(&self.value, dim, ids)?;
        let shape = *self.value.layout().shape();
        // dx = dy, added at the indices: an index that is read twice gathers both gradients
        self.tape.record("index_select", &[self], y).save([Save::Tensor(ids)]).rule(move |dy, saved, sink| {
            let zeros = Tensor::zeros(&[], dy.dtype(), dy.device())?.broadcast_to(&shape)?;
            sink.add(0, ops::index_add(&zeros, dim, saved.tensor(0)?, dy)?)
        })
    }

    /// Self, with every element of `src` added at its index along `dim`; see [`ops::scatter_add`].
    ///
    /// # Errors
    /// As [`Var::gather`], and when the dtypes differ.
    pub fn scatter_add(&self, dim: usize, index: &Tensor, src: &Var<'t>) -> Result<Var<'t>> {
        let y = ops::scatter_add(&self.value, dim, index, &src.value)?;
        // dx = dy; dsrc = dy, read at the indices
        self.tape.record("scatter_add", &[self, src], y).save([Save::Tensor(index)]).rule(move |dy, saved, sink| {
            if sink.wants(1) {
                sink.add(1, ops::gather(dy, dim, saved.tensor(0)?)?)?;
            }
            sink.add(0, dy.clone())
        })
    }
}
