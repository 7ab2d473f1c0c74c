//! Gradient rules of reductions over dimensions.

use crate::{Save, Var};
use kinglet_tensor::ops::Reduce;
use kinglet_tensor::{Dims, Result, ops};

impl<'t> Var<'t> {
    /// The sum over `dims`, which stay with size 1 if `keep`, else are dropped.
    ///
    /// # Errors
    /// When a dimension is not there or given twice, or the dtype is no float.
    pub fn sum(&self, dims: &[usize], keep: bool) -> Result<Var<'t>> {
        self.total(Reduce::Sum, "sum", dims, keep)
    }

    /// The mean over `dims`.
    ///
    /// # Errors
    /// As [`Var::sum`].
    pub fn mean(&self, dims: &[usize], keep: bool) -> Result<Var<'t>> {
        self.total(Reduce::Mean, "mean", dims, keep)
    }

    /// The largest over `dims`; the first of equal ones gets the gradient.
    ///
    /// # Errors
    /// As [`Var::sum`], and when there are no elements.
    pub fn max(&self, dims: &[usize], keep: bool) -> Result<Var<'t>> {
        self.extreme_over(Reduce::Max, "max", dims, keep)
    }

    /// The smallest over `dims`; the first of equal ones gets the gradient.
    ///
    /// # Errors
    /// As [`Var::max`].
    pub fn min(&self, dims: &[usize], keep: bool) -> Result<Var<'t>> {
        self.extreme_over(Reduce::Min, "min", dims, keep)
    }

    /// The sum of all elements, without dimensions.
    ///
    /// # Errors
    /// When the dtype is no float.
    pub fn sum_all(&self) -> Result<Var<'t>> {
        self.sum(&(0..self.shape().len()).collect::<Vec<_>>(), false)
    }

    /// The mean of all elements, without dimensions.
    ///
    /// # Errors
    /// When the dtype is no float.
    pub fn mean_all(&self) -> Result<Var<'t>> {
        self.mean(&(0..self.shape().len()).collect::<Vec<_>>(), false)
    }

    fn total(&self, op: Reduce, name: &'static str, dims: &[usize], keep: bool) -> Result<Var<'t>> {
        let y = ops::reduce(op, &self.value, dims, keep)?;
        let (shape, kept) = (*self.value.layout().shape(), Dims::new(&ops::kept_shape(&self.value, dims))?);
        let count: usize = dims.iter().map(|&d| shape[d]).product();
        // Every element that went into a sum has its gradient (a view); into a mean, that over the number of elements.
        self.tape.record(name, &[self], y).rule(move |dy, _, sink| {
            let dy = match op {
                Reduce::Mean => ops::affine(dy, 1.0 / count as f32, 0.0)?,
                _ => dy.clone(),
            };
            sink.add(0, dy.reshape(&kept)?.broadcast_to(&shape)?)
        })
    }

    fn extreme_over(&self, op: Reduce, name: &'static str, dims: &[usize], keep: bool) -> Result<Var<'t>> {
        let y = ops::reduce(op, &self.value, dims, false)?;
        let given = if keep { y.reshape(&ops::kept_shape(&self.value, dims))? } else { y.clone() };
        let reduced = Dims::new(dims)?;
        let saved = [Save::Var(self), Save::Tensor(&y)];
        // The element that was chosen has all of the gradient.
        self.tape.record(name, &[self], given).save(saved).rule(move |dy, saved, sink| {
            let (x, y) = (saved.tensor(0)?, saved.tensor(1)?);
            sink.add(0, ops::extreme_backward(x, y, &dy.reshape(y.shape())?, &reduced)?)
        })
    }
}
