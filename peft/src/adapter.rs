//! Trainable parameters beside a model, and where in it they act.

use crate::config::{Init, LoraConfig};
use crate::modules::{Kind, Module, Stored, modules};
use crate::targets::Matcher;
use kinglet_autograd::ParamSet;
use kinglet_models::{AdapterMap, AdapterSet, Decoder, LoraPlace};
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Device, Error, Result, Tensor, ops};
use std::sync::Arc;

/// What PEFT puts before a module's name in files.
pub(crate) const PREFIX: &str = "base_model.model.";

/// A LoRA adapter of one model.
pub struct Adapter {
    /// Its settings.
    pub config: LoraConfig,
    /// Its parameters, under their names in `adapter_model.safetensors`.
    pub params: Arc<ParamSet>,
    /// Where they act.
    pub map: Arc<AdapterMap>,
    /// What `target_modules` is written as where it is `all-linear`.
    pub(crate) target_names: Vec<String>,
}

impl Adapter {
    /// A new adapter of `model`, whose output it does not change yet: A is random by `seed` and its name, B is zero.
    ///
    /// # Errors
    /// When the configuration has no sense, means no module of the model, names one that it has not, or asks for an
    /// adapter where there can be none.
    pub fn new(config: LoraConfig, model: &Decoder, seed: u64) -> Result<Self> {
        let plan = Plan::new(&config, model)?;
        plan.check_names(&config)?;
        let values = plan.slots.iter().map(|slot| Ok((slot.name.clone(), slot.fresh(&config, seed, model.device())?)));
        let values = values.collect::<Result<_>>()?;
        Self::build(config, plan, values, model.device())
    }

    pub(crate) fn build(
        config: LoraConfig,
        plan: Plan,
        values: Vec<(String, Tensor)>,
        device: &Device,
    ) -> Result<Self> {
        let params = Arc::new(ParamSet::new(values, device)?);
        let target_names = plan.target_names();
        Ok(Adapter { config, params, map: Arc::new(plan.map), target_names })
    }

    /// What a forward pass takes. It must be dropped before the parameters are updated.
    #[must_use]
    pub fn set(&self) -> AdapterSet {
        AdapterSet { map: self.map.clone(), params: self.params.clone() }
    }
}

/// Every weight of `model` as a parameter under its name in files, and where each acts: full fine-tuning. Where the
/// output projection is the embedding, it stays so.
///
/// # Errors
/// When a weight is quantised, or memory runs out.
pub fn full(model: &Decoder) -> Result<(ParamSet, AdapterMap)> {
    let (mut values, mut map) = (Vec::new(), AdapterMap::default());
    for module in modules(model) {
        for (name, stored) in &module.tensors {
            let id = match module.kind {
                Kind::TiedHead => 0, // the embedding, which comes first
                _ => {
                    values.push((name.clone(), stored.dense(name)?));
                    values.len() - 1
                }
            };
            map.tensors.insert(name.clone(), id);
        }
    }
    Ok((ParamSet::new(values, model.device())?, map))
}

/// One parameter of an adapter in the making.
pub(crate) struct Slot {
    /// Its name in files.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    start: Start,
}

enum Start {
    /// Matrix A.
    Random,
    /// Matrix B.
    Zero,
    /// The base's own tensor, of this name.
    Base(String, Stored),
}

impl Slot {
    fn fresh(&self, config: &LoraConfig, seed: u64, device: &Device) -> Result<Tensor> {
        match &self.start {
            Start::Zero => Tensor::zeros(&self.shape, DType::F32, device),
            Start::Base(name, stored) => stored.dense(name),
            Start::Random => match config.init {
                // torch's kaiming_uniform_ with a = sqrt(5).
                Init::Kaiming => {
                    let bound = 1.0 / (self.shape[1] as f32).sqrt();
                    ops::uniform(&self.shape, -bound, bound, self.key(seed), device)
                }
                Init::Gaussian => ops::normal(&self.shape, 1.0 / self.shape[0] as f32, self.key(seed), device),
            },
        }
    }

    /// A key of this parameter alone, so that its start depends on no other.
    fn key(&self, seed: u64) -> Key {
        let parts: Vec<u64> = [seed].into_iter().chain(self.name.bytes().map(u64::from)).collect();
        Key::derive(&parts)
    }
}

/// The parameters that a configuration asks of a model, in the order of its modules, A before B.
pub(crate) struct Plan {
    pub(crate) slots: Vec<Slot>,
    pub(crate) map: AdapterMap,
    modules: Vec<Module>,
}

impl Plan {
    pub(crate) fn new(config: &LoraConfig, model: &Decoder) -> Result<Self> {
        Self::of(config, modules(model))
    }

    fn of(config: &LoraConfig, modules: Vec<Module>) -> Result<Self> {
        config.validate()?;
        let matcher = Matcher::new(config)?;
        let mut plan = Plan { slots: Vec::new(), map: AdapterMap::default(), modules: Vec::new() };
        for module in &modules {
            if matcher.is_saved(&module.name) {
                plan.save(module)?;
            } else if matcher.is_target(&module.name, module.kind == Kind::Linear) {
                plan.adapt(module, config, &matcher)?;
            }
        }
        if plan.map.loras.is_empty() {
            let names = modules.iter().filter(|m| m.kind == Kind::Linear).map(|m| m.name.as_str());
            let some: Vec<_> = names.take(7).collect();
            let what = format!("target_modules {} means no linear layer", config.target_modules.to_json());
            return Err(Error::invalid(format!("{what}; the model has {}, ..", some.join(", "))));
        }
        plan.modules = modules;
        Ok(plan)
    }

    /// Copies of a module's own tensors.
    fn save(&mut self, module: &Module) -> Result<()> {
        for (name, stored) in &module.tensors {
            self.map.tensors.insert(name.clone(), self.slots.len());
            let start = Start::Base(name.clone(), stored.clone());
            self.slots.push(Slot { name: format!("{PREFIX}{name}"), shape: stored.shape()?, start });
        }
        Ok(())
    }

    /// A and B of one module.
    fn adapt(&mut self, module: &Module, config: &LoraConfig, matcher: &Matcher<'_>) -> Result<()> {
        let name = &module.name;
        let (out, inputs) = match (module.kind, module.tensors.first()) {
            (Kind::Linear | Kind::Head | Kind::TiedHead, Some((_, Stored::Matrix(w)))) => w.dims()?,
            _ => {
                let what = format!("target_modules: {name} is no linear layer and takes no adapter");
                return Err(Error::unsupported(format!("{what}: put it into modules_to_save")));
            }
        };
        let r = matcher.rank(name);
        let a = self.slots.len();
        let slot = |part: &str, shape: [usize; 2], start| Slot {
            name: format!("{PREFIX}{name}.lora_{part}.weight"),
            shape: shape.to_vec(),
            start,
        };
        self.slots.push(slot("A", [r, inputs], Start::Random));
        self.slots.push(slot("B", [out, r], Start::Zero));
        let scale = config.scale(r, matcher.alpha(name));
        let place = LoraPlace { a, b: a + 1, scale, dropout: config.lora_dropout };
        self.map.loras.insert(name.clone(), vec![place]);
        Ok(())
    }

    /// Refuses names in the configuration that no module has: a typing error would train less than was asked.
    fn check_names(&self, config: &LoraConfig) -> Result<()> {
        let names: Vec<&str> = self.modules.iter().map(|m| m.name.as_str()).collect();
        match Matcher::new(config)?.unmatched(&names).first() {
            None => Ok(()),
            Some(name) => {
                let what = format!("no module of the model is called {name:?}");
                let has = self.target_names().join(", ");
                Err(Error::invalid(format!("{what}: it has {has}, embed_tokens, norm and lm_head")))
            }
        }
    }

    /// Last parts of the names of the linear layers, sorted.
    fn target_names(&self) -> Vec<String> {
        let linear = self.modules.iter().filter(|m| m.kind == Kind::Linear);
        let mut names: Vec<String> = linear.map(|m| m.name.rsplit('.').next().unwrap_or(&m.name).to_string()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests;
