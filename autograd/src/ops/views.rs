//! Gradient rules of views: the gradient is a view of dy, or dy among zeros.

use crate::Var;
use kinglet_tensor::{Dims, MAX_RANK, Result, ops};

impl<'t> Var<'t> {
    /// The same elements in row-major order under another shape: a view where possible, else a copy.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Var<'t>> {
        let old = *self.value.layout().shape();
        let y = self.value.reshape(shape)?;
        self.tape.record("reshape", &[self], y).rule(move |dy, _, sink| sink.add(0, dy.reshape(&old)?))
    }

    /// Without dimension `dim`, which must be 1.
    ///
    /// # Errors
    /// When it is not 1.
    pub fn squeeze(&self, dim: usize) -> Result<Var<'t>> {
        let y = self.value.squeeze(dim)?;
        self.tape.record("squeeze", &[self], y).rule(move |dy, _, sink| sink.add(0, dy.unsqueeze(dim)?))
    }

    /// With a new dimension of size 1 before `dim`.
    ///
    /// # Errors
    /// When `dim` is past the end.
    pub fn unsqueeze(&self, dim: usize) -> Result<Var<'t>> {
        let y = self.value.unsqueeze(dim)?;
        self.tape.record("unsqueeze", &[self], y).rule(move |dy, _, sink| sink.add(0, dy.squeeze(dim)?))
    }

    /// Two dimensions exchanged.
    ///
    /// # Errors
    /// When there is no such dimension.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Var<'t>> {
        let y = self.value.transpose(a, b)?;
        self.tape.record("transpose", &[self], y).rule(move |dy, _, sink| sink.add(0, dy.transpose(a, b)?))
    }

    /// Dimensions in another order: `order[i]` is the old place of new dimension `i`.
    ///
    /// # Errors
    /// When `order` is not a permutation of the dimensions.
    pub fn permute(&self, order: &[usize]) -> Result<Var<'t>> {
        let y = self.value.permute(order)?;
        let mut places = [0; MAX_RANK];
        order.iter().enumerate().for_each(|(new, &old)| places[old] = new);
        let back = Dims::new(&places[..order.len()])?;
        self.tape.record("permute", &[self], y).rule(move |dy, _, sink| sink.add(0, dy.permute(&back)?))
    }

    /// The entries along `dim` in reverse order.
    ///
    /// # Errors
    /// When there is no such dimension.
    pub fn flip(&self, dim: usize) -> Result<Var<'t>> {
        let y = self.value.flip(dim)?;
        self.tape.record("flip", &[self], y).rule(move |dy, _, sink| sink.add(0, dy.flip(dim)?))
    }

    /// `len` entries from `start` along `dim`.
    ///
    /// # Errors
    /// When they are not all there.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Var<'t>> {
        let y = self.value.narrow(dim, start, len)?;
        let after = self.value.dim(dim)? - start - len;
        // What was left out has gradient zero.
        self.tape.record("narrow", &[self], y).rule(move |dy, _, sink| sink.add(0, ops::pad(dy, dim, start, after)?))
    }

    /// Entry `index` along `dim`, without that dimension.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn select(&self, dim: usize, index: usize) -> Result<Var<'t>> {
        self.narrow(dim, index, 1)?.squeeze(dim)
    }

    /// Dimensions of size 1 repeated, and new ones in front, up to `shape`.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Var<'t>> {
        let y = self.value.broadcast_to(shape)?;
        // The sink sums over what was repeated.
        self.tape.record("broadcast_to", &[self], y).rule(|dy, _, sink| sink.add(0, dy.clone()))
    }
}
