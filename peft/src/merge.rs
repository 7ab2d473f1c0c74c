//! Writing a model with its trained parameters as one dense Hugging Face model.

use crate::files::write_tensor;
use crate::modules::{Kind, Stored, modules};
use kinglet_autograd::Tape;
use kinglet_models::fs::Folder;
use kinglet_models::safetensors::{TensorSpec, write_model};
use kinglet_models::{AdapterSet, Batch, Ctx, Decoder, EMBEDDING, HEAD, LoraPlace, StoredType};
use kinglet_quant::{Direction, Weight};
use kinglet_tensor::cpu::gemm::Accumulate;
use kinglet_tensor::{DType, Error, Result, Tensor, ops};
use std::io::Write;

/// How to write a merged model.
#[derive(Clone, Copy, Debug)]
pub struct MergeOptions {
    /// The dtype of every weight; `None` keeps each as it is stored (bf16 where the base is a GGUF file).
    pub dtype: Option<DType>,
    /// Allow a base in bitsandbytes' 4-bit blocks: what is written are the decoded values, which other programs will
    /// not find in the original model.
    pub dequantize: bool,
    /// A larger model is cut into shards of at most this many bytes.
    pub max_shard_bytes: usize,
}

impl Default for MergeOptions {
    /// As stored, in shards of 5 GB.
    fn default() -> Self {
        MergeOptions { dtype: None, dequantize: false, max_shard_bytes: 5_000_000_000 }
    }
}

/// Rows that are merged at a time: bounds the memory beside the tensor that is read.
const TILE: usize = 256;

/// Adds config.json and the weights of `model` with `trained` in force to `folder`: W + scale·B·A, added in f32 and
/// then rounded once; tensors that were trained in full take the place of the base's. Tensors are read, merged and
/// written one after the other. Where output projection and embedding are one, they stay so unless only one of them
/// was trained.
///
/// # Errors
/// When the base is in 4-bit blocks and `dequantize` is off, or the file system fails.
pub fn merge(model: &Decoder, trained: &AdapterSet, options: &MergeOptions, folder: &mut Folder<'_>) -> Result<()> {
    let jobs = jobs(model, trained, options)?;
    let mut config = model.config().clone();
    config.tied = config.tied && !jobs.iter().any(|job| job.spec.name == HEAD);
    let dtype = jobs.first().map_or(StoredType::BF16, |job| job.spec.dtype);
    folder.write_json("config.json", &config.to_json(config_name(dtype))?)?;
    let specs: Vec<TensorSpec> = jobs.iter().map(|job| job.spec.clone()).collect();
    write_model(folder, &specs, options.max_shard_bytes, |spec, out| {
        let job = jobs.iter().find(|job| job.spec.name == spec.name);
        job.ok_or_else(|| Error::invalid("not a tensor of this model"))?.write(trained, out)
    })
}

/// The largest difference between two models' logits for the text `ids`.
///
/// # Errors
/// When `ids` do not fit a model.
pub fn logit_gap(a: (&Decoder, &Ctx), b: (&Decoder, &Ctx), ids: &[i32]) -> Result<f32> {
    let logits = |(model, ctx): (&Decoder, &Ctx)| {
        let tape = Tape::inert();
        let batch = Batch::new(ids, &[0, ids.len()], model.device())?;
        let hidden = model.hidden(&tape, &batch, None, ctx)?;
        model.logits(&hidden, ctx)?.value().to_vec::<f32>()
    };
    let (a, b) = (logits(a)?, logits(b)?);
    // `max` would drop a NaN, which must not pass for a small gap.
    Ok(a.iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, gap| if gap > max || gap.is_nan() { gap } else { max }))
}

/// One tensor to be written.
struct Job {
    spec: TensorSpec,
    base: Stored,
    /// Adapters that act on it.
    loras: Vec<LoraPlace>,
}

fn jobs(model: &Decoder, trained: &AdapterSet, options: &MergeOptions) -> Result<Vec<Job>> {
    let map = &trained.map;
    let untied =
        map.tensors.get(EMBEDDING) != map.tensors.get(HEAD) || map.loras.contains_key(&*model.head().site.name);
    let from_gguf = model.config().json.is_none();
    let mut jobs = Vec::new();
    for module in modules(model).into_iter().filter(|m| m.kind != Kind::TiedHead || untied) {
        for (name, base) in module.tensors {
            let dtype = match options.dtype {
                Some(dtype) => dtype,
                None if from_gguf => DType::BF16,
                None => stored_dtype(&base),
            };
            if matches!(&base, Stored::Matrix(w) if matches!(**w, Weight::FourBit(_))) && !options.dequantize {
                let what = format!("{name} is stored in 4 bits: merging into it would round the adapter away");
                return Err(Error::invalid(format!(
                    "{what}; give the original model, or --dequantize to merge into the decoded values"
                )));
            }
            let loras = match base {
                Stored::Matrix(_) if name.ends_with(".weight") => map.loras.get(&module.name).cloned(),
                _ => None,
            };
            let spec = TensorSpec { name, dtype: stored(dtype)?, shape: base.shape()? };
            jobs.push(Job { spec, base, loras: loras.unwrap_or_default() });
        }
    }
    Ok(jobs)
}

impl Job {
    fn write(&self, trained: &AdapterSet, out: &mut dyn Write) -> Result<()> {
        if let Some(&id) = trained.map.tensors.get(&self.spec.name) {
            return write_tensor(&trained.params.tensor(id)?, self.spec.dtype, out);
        }
        let base = match &self.base {
            Stored::Vector(v) => return write_tensor(v, self.spec.dtype, out),
            Stored::Matrix(w) => match &**w {
                Weight::Dense(w) => w.clone(),
                Weight::Gguf(w) => w.dequantize(DType::F32)?,
                Weight::FourBit(w) => w.dequantize(DType::F32)?,
                _ => return Err(Error::unsupported("a custom weight cannot be merged")),
            },
        };
        let rows = self.spec.shape[0];
        for start in (0..rows).step_by(TILE) {
            let len = TILE.min(rows - start);
            let mut tile = base.narrow(0, start, len)?;
            for place in &self.loras {
                tile = add_product(&tile, trained, place, start)?;
            }
            write_tensor(&tile, self.spec.dtype, out)?;
        }
        Ok(())
    }
}

/// rows + scale · B[start..] A, in f32.
fn add_product(rows: &Tensor, trained: &AdapterSet, place: &LoraPlace, start: usize) -> Result<Tensor> {
    let mut sum = ops::copy(rows, DType::F32)?;
    let a = Weight::Dense(trained.params.tensor(place.a)?);
    let b = trained.params.tensor(place.b)?.narrow(0, start, rows.shape()[0])?;
    let out = sum.as_mut().ok_or_else(|| Error::aliased("merge: the sum is held elsewhere"))?;
    a.matmul_into(&b, Direction::Backward, out, Accumulate::Add, place.scale)?;
    Ok(sum)
}

fn stored_dtype(base: &Stored) -> DType {
    match base {
        Stored::Vector(v) => v.dtype(),
        Stored::Matrix(w) => match &**w {
            Weight::Dense(w) => w.dtype(),
            Weight::FourBit(w) => w.dtype(),
            _ => DType::BF16,
        },
    }
}

fn stored(dtype: DType) -> Result<StoredType> {
    match dtype {
        DType::F32 => Ok(StoredType::F32),
        DType::BF16 => Ok(StoredType::BF16),
        DType::F16 => Ok(StoredType::F16),
        other => Err(Error::dtype("merge", format!("weights are not written as {other}"))),
    }
}

/// A dtype's name in config.json.
fn config_name(dtype: StoredType) -> &'static str {
    match dtype {
        StoredType::F32 => "float32",
        StoredType::F16 => "float16",
        _ => "bfloat16",
    }
}
