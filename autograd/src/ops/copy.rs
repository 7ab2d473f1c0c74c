//! Gradient rules of copies and changes of dtype.

use crate::{Save, Var};
use kinglet_tensor::{DType, Error, Result};

impl<'t> Var<'t> {
    /// The values as `dtype`, rounded to nearest even. The gradient flows back in the dtype that self has.
    ///
    /// # Errors
    /// When a gradient flows to self and `dtype` is no float (detach it first).
    pub fn to_dtype(&self, dtype: DType) -> Result<Var<'t>> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        if self.is_tracked() && !dtype.is_float() {
            return Err(Error::dtype("to_dtype", format!("no gradient flows through {dtype}; detach the value first")));
        }
        let y = self.value.to_dtype(dtype)?;
        // The sink gives every gradient the dtype of its value.
        self.tape
            .record("to_dtype", &[self], y)
            .save([Save::Var(self)])
            .recipe(move |saved| saved.tensor(0)?.to_dtype(dtype))
            .rule(|dy, _, sink| sink.add(0, dy.clone()))
    }

    /// This, or a row-major copy of it.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn contiguous(&self) -> Result<Var<'t>> {
        if self.value.is_contiguous() {
            return Ok(self.clone());
        }
        let y = self.value.contiguous()?;
        // y = x in another order of memory: dx = dy
        self.tape.record("contiguous", &[self], y).rule(|dy, _, sink| sink.add(0, dy.clone()))
    }
}
