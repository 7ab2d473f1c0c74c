//! Where gradient rules put what they compute.

use crate::params::Grads;
use crate::tape::{Value, ValueId, ValueKind};
use kinglet_tensor::{DType, Error, Result, Tensor, TensorMut, ops};

/// The gradients of an op's inputs, as its rule sees them.
pub struct Sink<'a> {
    pub(crate) op: &'static str,
    pub(crate) inputs: &'a [Option<ValueId>],
    pub(crate) values: &'a [Value],
    pub(crate) running: &'a mut [Option<Tensor>],
    pub(crate) grads: &'a mut Grads,
}

impl Sink<'_> {
    /// Whether anybody needs the gradient of input `i`. A rule skips what nobody wants.
    #[must_use]
    pub fn wants(&self, i: usize) -> bool {
        self.id(i).is_some()
    }

    fn id(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// Adds `gradient` to the gradient of input `i`. Where the input was broadcast, the gradient is summed over the
    /// repeated entries here, in this one place. Ignored when nobody wants it.
    ///
    /// # Errors
    /// When the shape is not the input's, nor one that the input broadcasts to.
    pub fn add(&mut self, i: usize, gradient: Tensor) -> Result<()> {
        let Some(id) = self.id(i) else { return Ok(()) };
        let value = &self.values[id];
        let gradient = if *gradient.shape() == *value.shape {
            gradient
        } else {
            ops::sum_to(&gradient, &value.shape).map_err(|e| e.context(format!("gradient of {}", self.op)))?
        };
        if let ValueKind::Param(param) = value.kind {
            return ops::accumulate(&mut self.grads.param(param)?, &gradient);
        }
        accumulate(&mut self.running[id], gradient.to_dtype(value.dtype)?)
    }

    /// Gives input `i` the gradient that `make` makes of the sum that has arrived from ops recorded later, `None` where
    /// nothing has or the input is a parameter: a kernel that reads the sum and adds to it saves a pass over memory.
    /// Where there is a sum, what is made must include it. `make` is not called when nobody wants the gradient.
    ///
    /// # Errors
    /// As [`Sink::add`], and those of `make`.
    pub fn add_to(&mut self, i: usize, make: impl FnOnce(Option<&Tensor>) -> Result<Tensor>) -> Result<()> {
        let Some(id) = self.id(i) else { return Ok(()) };
        let sum = self.running[id].take();
        let gradient = make(sum.as_ref())?;
        self.add(i, gradient)
    }

    /// The f32 buffer to accumulate the gradient of input `i` into, so that a kernel can add where it is kept instead
    /// of making a tensor that is then added. `None` when nobody wants it.
    ///
    /// # Errors
    /// When the input is neither a parameter nor f32, or memory runs out.
    pub fn dest(&mut self, i: usize) -> Result<Option<TensorMut<'_>>> {
        let Some(id) = self.id(i) else { return Ok(None) };
        let value = &self.values[id];
        if let ValueKind::Param(param) = value.kind {
            return self.grads.param(param).map(Some);
        }
        if value.dtype != DType::F32 {
            return Err(Error::dtype(self.op, format!("accumulates gradients in f32, not {}", value.dtype)));
        }
        let running = &mut self.running[id];
        let unique = running.take().map_or_else(
            || Tensor::zeros(&value.shape, DType::F32, &value.device),
            |mut t| if t.as_mut().is_some() { Ok(t) } else { ops::copy(&t, DType::F32) },
        )?;
        Ok(running.insert(unique).as_mut())
    }
}

/// `running += gradient`, in place where nobody else holds the running sum, so that no gradient given to a rule is
/// ever written.
pub(crate) fn accumulate(running: &mut Option<Tensor>, gradient: Tensor) -> Result<()> {
    *running = Some(match running.take() {
        None => gradient,
        Some(mut sum) => match sum.as_mut() {
            Some(mut place) => {
                ops::accumulate(&mut place, &gradient)?;
                sum
            }
            None => ops::add(&sum, &gradient)?,
        },
    });
    Ok(())
}
