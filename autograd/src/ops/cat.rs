//! Gradient rules of joining tensors; cutting one apart is views.

use crate::{Save, Var};
use kinglet_tensor::{Error, Result, Tensor, ops};
use std::sync::Arc;

impl<'t> Var<'t> {
    /// The variables one after another along `dim`.
    ///
    /// # Errors
    /// When there is none, or they differ in dtype, device or in a dimension other than `dim`.
    pub fn cat(parts: &[&Var<'t>], dim: usize) -> Result<Var<'t>> {
        let first = parts.first().ok_or_else(|| Error::shape("cat", "takes at least one tensor"))?;
        let values: Vec<&Tensor> = parts.iter().map(|v| &v.value).collect();
        let y = ops::cat(&values, dim)?;
        let sizes: Vec<usize> = values.iter().map(|x| x.shape()[dim]).collect();
        // Each part's gradient is its piece of dy.
        first.tape.record("cat", parts, y).save([Save::Handle(Arc::new(sizes))]).rule(move |dy, saved, sink| {
            let mut start = 0;
            for (i, &size) in saved.handle::<Vec<usize>>(0)?.iter().enumerate() {
                if sink.wants(i) {
                    sink.add(i, dy.narrow(dim, start, size)?)?;
                }
                start += size;
            }
            Ok(())
        })
    }

    /// The variables, of one shape, along a new dimension before `dim`.
    ///
    /// # Errors
    /// As [`Var::cat`].
    pub fn stack(parts: &[&Var<'t>], dim: usize) -> Result<Var<'t>> {
        let parts: Vec<Var<'t>> = parts.iter().map(|v| v.unsqueeze(dim)).collect::<Result<_>>()?;
        Var::cat(&parts.iter().collect::<Vec<_>>(), dim)
    }

    /// Consecutive pieces of the given sizes along `dim`: views.
    ///
    /// # Errors
    /// When the sizes do not add up to the dimension.
    pub fn split(&self, sizes: &[usize], dim: usize) -> Result<Vec<Var<'t>>> {
        if sizes.iter().sum::<usize>() != self.value.dim(dim)? {
            let what = format!("{sizes:?} along dimension {dim} of {:?}", self.shape());
            return Err(Error::shape("split", what));
        }
        let starts = sizes.iter().scan(0, |end, &size| {
            *end += size;
            Some(*end - size)
        });
        starts.zip(sizes).map(|(start, &size)| self.narrow(dim, start, size)).collect()
    }

    /// `count` pieces of equal size along `dim` (the last may be smaller, and fewer pieces may do): views.
    ///
    /// # Errors
    /// When `count` is 0 or there is no such dimension.
    pub fn chunk(&self, count: usize, dim: usize) -> Result<Vec<Var<'t>>> {
        if count == 0 {
            return Err(Error::invalid("chunk: into no pieces"));
        }
        let whole = self.value.dim(dim)?;
        let size = whole.div_ceil(count).max(1);
        let sizes: Vec<usize> = (0..whole).step_by(size).map(|start| size.min(whole - start)).collect();
        self.split(&sizes, dim)
    }
}
