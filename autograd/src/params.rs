//! Trainable parameters and their gradients: one flat f32 buffer each, in the model's order.

use kinglet_tensor::{DType, Device, Error, Result, Shape, Tensor, TensorMut, ops};
use std::collections::HashMap;
use std::sync::Arc;

/// Index of a parameter in its set.
pub type ParamId = usize;

/// Name and place of one parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// The name in files.
    pub name: String,
    /// The size of each dimension.
    pub shape: Shape,
    /// The first element in the flat buffer.
    pub start: usize,
}

impl Param {
    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Tells one [`ParamSet`] from every other.
#[derive(Clone)]
pub(crate) struct SetId(Arc<()>);

impl PartialEq for SetId {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The trainable parameters of a run.
pub struct ParamSet {
    pub(crate) identity: SetId,
    params: Vec<Param>,
    ids: HashMap<String, ParamId>,
    values: Tensor,
    version: u64,
}

impl ParamSet {
    /// Copies the given values, in order, into one flat f32 buffer on `device`.
    ///
    /// # Errors
    /// When two share a name, or memory runs out.
    pub fn new(values: Vec<(String, Tensor)>, device: &Device) -> Result<Self> {
        let mut params = Vec::with_capacity(values.len());
        let mut ids = HashMap::new();
        let mut start = 0;
        for (name, value) in &values {
            if ids.insert(name.clone(), params.len()).is_some() {
                return Err(Error::invalid(format!("two parameters are called {name}")));
            }
            params.push(Param { name: name.clone(), shape: *value.layout().shape(), start });
            start += value.len();
        }
        let mut flat = device.alloc(&[start], DType::F32)?;
        for (param, (_, value)) in params.iter().zip(&values) {
            ops::copy_into(&value.to(device)?, flat.view().part(param.start, &param.shape)?)?;
        }
        Ok(ParamSet { identity: SetId(Arc::new(())), params, ids, values: flat.finish(), version: 0 })
    }

    /// The parameters in order.
    #[must_use]
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The parameter called `name`.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<ParamId> {
        self.ids.get(name).copied()
    }

    /// All elements of all parameters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is nothing to train.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The flat buffer.
    #[must_use]
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// How often the values were changed.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The value of a parameter: a view, which must be dropped before the next update.
    ///
    /// # Errors
    /// When there is no such parameter.
    pub fn tensor(&self, id: ParamId) -> Result<Tensor> {
        let param = self.params.get(id).ok_or_else(|| Error::invalid(format!("no parameter {id}")))?;
        self.values.narrow(0, param.start, param.len())?.reshape(&param.shape)
    }

    /// Replaces all values by `values`, flat in the order of the set.
    ///
    /// # Errors
    /// `is_aliased` as [`ParamSet::update`]; when there are more or fewer.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        self.values.write(values)?;
        self.version += 1;
        Ok(())
    }

    /// Changes the values in place.
    ///
    /// # Errors
    /// `is_aliased` while anybody (a tape, a context, a tensor) still holds them, and those of `change`.
    pub fn update<R>(&mut self, change: impl FnOnce(TensorMut<'_>) -> Result<R>) -> Result<R> {
        let values = self
            .values
            .as_mut()
            .ok_or_else(|| Error::aliased("parameters cannot be updated while a tape or a tensor holds them"))?;
        self.version += 1;
        change(values)
    }
}

/// Called with each parameter whose gradient of this backward pass is complete.
type OnReady = Box<dyn FnMut(ParamId) + Send>;

/// The gradients of a [`ParamSet`]: allocated once, added to by every backward pass until zeroed.
pub struct Grads {
    /// Whose gradients these are.
    set: Option<SetId>,
    params: Vec<Param>,
    flat: Option<Tensor>,
    /// Uses still to come of each parameter in the backward pass that is running.
    uses: Vec<usize>,
    on_ready: Option<OnReady>,
}

impl Grads {
    /// Zero gradients for `set`, on its device.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(set: &ParamSet) -> Result<Self> {
        let flat = Tensor::zeros(&[set.len()], DType::F32, set.values.device())?;
        let identity = Some(set.identity.clone());
        Ok(Grads {
            set: identity,
            params: set.params.clone(),
            flat: Some(flat),
            uses: vec![0; set.params.len()],
            on_ready: None,
        })
    }

    /// For a tape that has leaves but no parameters.
    #[must_use]
    pub fn none() -> Self {
        Grads { set: None, params: Vec::new(), flat: None, uses: Vec::new(), on_ready: None }
    }

    /// Calls `f` in every backward pass as soon as a parameter's gradient is complete: where data parallelism hooks in.
    pub fn on_ready(&mut self, f: impl FnMut(ParamId) + Send + 'static) {
        self.on_ready = Some(Box::new(f));
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// When somebody still holds them.
    pub fn zero(&mut self) -> Result<()> {
        match &mut self.flat {
            None => Ok(()),
            Some(flat) => ops::fill(&mut flat.as_mut().ok_or_else(held)?, 0.0),
        }
    }

    /// The flat buffer, in the order of the set.
    ///
    /// # Errors
    /// When there are no parameters.
    pub fn flat(&self) -> Result<&Tensor> {
        self.flat.as_ref().ok_or_else(|| Error::invalid("no gradients: there are no parameters"))
    }

    /// The gradient of one parameter: a view.
    ///
    /// # Errors
    /// When there is no such parameter.
    pub fn tensor(&self, id: ParamId) -> Result<Tensor> {
        let param = self.params.get(id).ok_or_else(|| Error::invalid(format!("no parameter {id}")))?;
        self.flat()?.narrow(0, param.start, param.len())?.reshape(&param.shape)
    }

    /// Refuses gradients of another set than `set`, the one whose parameters a tape recorded.
    pub(crate) fn expect_set(&self, set: Option<&SetId>) -> Result<()> {
        match (set, &self.set) {
            (Some(recorded), Some(own)) if recorded != own => Err(Error::invalid(
                "backward: the tape recorded the parameters of another set than these gradients are of",
            )),
            _ => Ok(()),
        }
    }

    /// The place to accumulate one parameter's gradient into.
    pub(crate) fn param(&mut self, id: ParamId) -> Result<TensorMut<'_>> {
        let missing = || Error::invalid(format!("these gradients have no parameter {id}"));
        let param = self.params.get(id).ok_or_else(missing)?;
        let flat = self.flat.as_mut().ok_or_else(missing)?.as_mut().ok_or_else(held)?;
        flat.into_part(param.start, &param.shape)
    }

    pub(crate) fn count_uses<'a>(&mut self, ids: impl Iterator<Item = &'a ParamId>) {
        self.uses.fill(0);
        for &id in ids {
            if let Some(n) = self.uses.get_mut(id) {
                *n += 1;
            }
        }
    }

    /// One use of `id` is done; after the last its gradient is complete.
    pub(crate) fn used(&mut self, id: ParamId) {
        if let Some(n) = self.uses.get_mut(id) {
            *n = n.saturating_sub(1);
            if let (0, Some(f)) = (*n, &mut self.on_ready) {
                f(id);
            }
        }
    }
}

fn held() -> Error {
    Error::aliased("gradients cannot be written while a tensor holds them")
}
