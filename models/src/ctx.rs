//! What a forward pass runs under: adapters, training or not, randomness, recomputation.

use kinglet_autograd::{ParamId, ParamSet, Tape, Var};
use kinglet_quant::Lora;
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// The context of a forward pass. A cheap handle: two adapters over one model, or the base beside its adapter, are
/// two contexts.
#[derive(Clone)]
pub struct Ctx {
    /// The adapters in force; `None` is the base model.
    pub adapters: Option<AdapterSet>,
    /// Whether dropout is on.
    pub train: bool,
    /// The key of this micro-batch; layers and sites derive theirs from it.
    pub key: Key,
    /// Run each block again in the backward pass instead of keeping what is inside it.
    pub checkpoint: bool,
    /// The dtype of activations.
    pub dtype: DType,
}

impl Ctx {
    /// The base model, evaluated in `dtype`.
    #[must_use]
    pub fn eval(dtype: DType) -> Self {
        Ctx { adapters: None, train: false, key: Key::derive(&[0]), checkpoint: false, dtype }
    }

    /// The same with `adapters` in force.
    #[must_use]
    pub fn with_adapters(mut self, adapters: AdapterSet) -> Self {
        self.adapters = Some(adapters);
        self
    }

    /// The trained replacement of the tensor called `name`, if there is one.
    pub(crate) fn trained<'t>(&self, tape: &'t Tape, name: &str) -> Result<Option<Var<'t>>> {
        let Some(set) = &self.adapters else { return Ok(None) };
        set.map.tensors.get(name).map(|&id| tape.param(&set.params, id)).transpose()
    }

    /// The LoRA adapters of the linear layer called `module`.
    pub(crate) fn loras<'t>(&self, tape: &'t Tape, module: &Site) -> Result<Vec<Lora<'t>>> {
        let Some(set) = &self.adapters else { return Ok(Vec::new()) };
        let Some(places) = set.map.loras.get(&*module.name) else { return Ok(Vec::new()) };
        let build = |(i, place): (usize, &LoraPlace)| {
            let key = self.key.child(module.number).child(i as u64);
            Ok(Lora {
                a: tape.param(&set.params, place.a)?,
                b: tape.param(&set.params, place.b)?,
                scale: place.scale,
                dropout: (self.train && place.dropout > 0.0).then_some((place.dropout, key)),
            })
        };
        places.iter().enumerate().map(build).collect()
    }
}

/// Where in a model something happens: the module's name in files, and a number that is stable for one model.
#[derive(Clone, Debug)]
pub struct Site {
    /// Such as `model.layers.3.self_attn.q_proj`.
    pub name: Arc<str>,
    /// Position in the model's order of modules: part of the key of everything random there.
    pub number: u64,
}

/// Trained parameters and where in the model they act.
#[derive(Clone)]
pub struct AdapterSet {
    /// Which parameter acts where.
    pub map: Arc<AdapterMap>,
    /// Their values.
    pub params: Arc<ParamSet>,
}

/// Which parameter acts where. Made by `kinglet_peft`.
#[derive(Clone, Debug, Default)]
pub struct AdapterMap {
    /// By module name.
    pub loras: HashMap<String, Vec<LoraPlace>>,
    /// Tensors of the model (`model.norm.weight`, ..) that a parameter replaces: full fine-tuning, `modules_to_save`.
    pub tensors: HashMap<String, ParamId>,
}

/// The parameters of one LoRA adapter.
#[derive(Clone, Copy, Debug)]
pub struct LoraPlace {
    /// Parameter A [r, in].
    pub a: ParamId,
    /// Parameter B [out, r].
    pub b: ParamId,
    /// alpha / r, or alpha / sqrt(r) with rsLoRA.
    pub scale: f32,
    /// Probability of dropping an input element in training.
    pub dropout: f32,
}
