//! A model as PEFT sees it: modules by name, in a fixed order.

use kinglet_models::Decoder;
use kinglet_quant::Weight;
use kinglet_tensor::cpu::ggml::Format;
use kinglet_tensor::{DType, Error, Result, Tensor};
use std::sync::Arc;

/// What a module is to an adapter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A linear layer of a block.
    Linear,
    /// The output projection with weights of its own.
    Head,
    /// The output projection that is the embedding.
    TiedHead,
    /// The embedding.
    Embedding,
    /// A norm.
    Norm,
}

/// A module and its tensors, by their names in files.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) tensors: Vec<(String, Stored)>,
}

/// A tensor of the base in its stored form.
#[derive(Clone)]
pub(crate) enum Stored {
    Matrix(Arc<Weight>),
    Vector(Tensor),
}

impl Stored {
    pub(crate) fn shape(&self) -> Result<Vec<usize>> {
        Ok(match self {
            Stored::Matrix(w) => <[usize; 2]>::from(w.dims()?).to_vec(),
            Stored::Vector(v) => v.shape().to_vec(),
        })
    }

    /// The values to train on from.
    pub(crate) fn dense(&self, name: &str) -> Result<Tensor> {
        match self {
            Stored::Vector(v) => Ok(v.clone()),
            Stored::Matrix(w) => match &**w {
                Weight::Dense(w) => Ok(w.clone()),
                Weight::Gguf(w) if Format::PLAIN.contains(&w.format()) => w.dequantize(DType::F32),
                _ => Err(Error::invalid(format!(
                    "{name} is quantised and cannot be trained: leave it out of --modules-to-save, take --method lora or \
                     qlora instead of full, or give the original model of 16 bits"
                ))),
            },
        }
    }
}

/// Every module of `model`: embedding, linear layers, norms, output projection.
pub(crate) fn modules(model: &Decoder) -> Vec<Module> {
    let matrix = |module: &str, weight: &Arc<Weight>| (format!("{module}.weight"), Stored::Matrix(weight.clone()));
    let embedding = "model.embed_tokens";
    let mut modules = vec![Module {
        name: embedding.into(),
        kind: Kind::Embedding,
        tensors: vec![matrix(embedding, model.embedding())],
    }];
    let linear = |layer: &kinglet_models::Linear, kind| {
        let name = layer.site.name.to_string();
        let bias = layer.bias.as_ref().map(|b| (format!("{name}.bias"), Stored::Vector(b.clone())));
        Module { tensors: [matrix(&name, &layer.weight)].into_iter().chain(bias).collect(), kind, name }
    };
    modules.extend(model.linears().map(|layer| linear(layer, Kind::Linear)));
    modules.extend(model.norms().map(|(tensor, weight)| Module {
        name: tensor.trim_end_matches(".weight").into(),
        kind: Kind::Norm,
        tensors: vec![(tensor.into(), Stored::Vector(weight.clone()))],
    }));
    modules.push(linear(model.head(), if model.is_tied() { Kind::TiedHead } else { Kind::Head }));
    modules
}

/// Elements of all weights of `model`; those of a tied output projection count once.
///
/// # Errors
/// When a weight is no matrix.
pub fn count_parameters(model: &Decoder) -> Result<usize> {
    let own = modules(model).into_iter().filter(|m| m.kind != Kind::TiedHead);
    own.flat_map(|m| m.tensors).map(|(_, t)| Ok(t.shape()?.iter().product::<usize>())).sum()
}
