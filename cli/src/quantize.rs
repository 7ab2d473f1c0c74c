//! `kinglet quantize`: a model folder in bitsandbytes' 4-bit form, which transformers loads as it is.

use crate::args::QuantizeArgs;
use crate::console::{bytes, next, note, out, quoted};
use crate::device;
use crate::merge::write_companions;
use crate::render::renderer;
use crate::session::{check_requantisation, quantization, warn_of_unused};
use crate::target::Target;
use kinglet_models::fs::Folder;
use kinglet_models::safetensors::{TensorSpec, write_model};
use kinglet_models::{Decoder, EMBEDDING, HEAD, LoadOptions, QuantOptions, StoredType};
use kinglet_peft::write_tensor;
use kinglet_quant::nf4::Format;
use kinglet_quant::{Weight, bnb};
use kinglet_tensor::{DType, Error, Result, Tensor};
use kinglet_train::{Base, OpenOptions};
use serde_json::{Value, json};
use std::io::Write;

/// As Hugging Face cuts models by default.
const SHARD: usize = 5_000_000_000;

/// # Errors
/// When the input is at fault.
pub(crate) fn run(args: &QuantizeArgs) -> Result<()> {
    let options = quantization(Some(args.quant), !args.no_double_quant)
        .ok_or_else(|| Error::invalid("--quant none: nothing to do; say nf4 or fp4"))?;
    let target = Target::new(&args.output, args.overwrite, &[&args.model])?;
    let renderer = renderer()?;
    let base = Base::open(&args.model, OpenOptions { renderer: Some(&renderer), ..OpenOptions::default() })?;
    check_requantisation(&base)?;
    let model = base.load(&LoadOptions {
        device: device::open(&device::Choice { threads: args.threads, ..device::Choice::default() })?,
        quant: Some(options),
    })?;
    warn_of_unused(&base, &model);
    let tensors = tensors(&model, base.source.gguf.is_some())?;
    let after = size(tensors.iter().map(|t| &t.spec))?;
    let config = config(&model, options, &tensors)?;
    target.write(|folder| {
        folder.write_json("config.json", &config)?;
        write_tensors(&tensors, folder)?;
        write_companions(&base, folder)?;
        base.check_unchanged()
    })?;
    note(format!("saved {}", args.output.display()));
    let before = base.source.weights.entries.values().map(|e| e.range.len()).sum();
    out(format!("weights: {} before, {} after", bytes(before), bytes(after)))?;
    next(format!("generate --model {} --prompt 'Hello'", quoted(&args.output)));
    Ok(())
}

/// One tensor of the folder.
struct Part {
    spec: TensorSpec,
    value: Stored,
}

enum Stored {
    Plain(Tensor),
    /// A matrix that is decoded while it is written.
    Blocks(std::sync::Arc<Weight>),
}

/// Every tensor of the quantised model. Those that stay dense keep their dtype; a GGUF file's become bf16.
fn tensors(model: &Decoder, from_gguf: bool) -> Result<Vec<Part>> {
    let dense = |name: &str, tensor: &Tensor| {
        let dtype = if from_gguf { StoredType::BF16 } else { stored(tensor.dtype())? };
        let spec = TensorSpec { name: name.into(), dtype, shape: tensor.shape().to_vec() };
        Ok::<_, Error>(Part { spec, value: Stored::Plain(tensor.clone()) })
    };
    let matrix = |name: &str, weight: &std::sync::Arc<Weight>| match &**weight {
        Weight::Dense(tensor) => dense(name, tensor),
        _ => {
            let (rows, columns) = weight.dims()?;
            let spec = TensorSpec { name: name.into(), dtype: StoredType::BF16, shape: vec![rows, columns] };
            Ok(Part { spec, value: Stored::Blocks(weight.clone()) })
        }
    };
    let mut parts = vec![matrix(EMBEDDING, model.embedding())?];
    for linear in model.linears() {
        let name = format!("{}.weight", linear.site.name);
        let Weight::FourBit(weight) = &*linear.weight else {
            return Err(Error::invalid(format!("{name}: was not quantised")));
        };
        for (name, tensor) in bnb::write(&name, weight)? {
            let spec = TensorSpec { name, dtype: stored(tensor.dtype())?, shape: tensor.shape().to_vec() };
            parts.push(Part { spec, value: Stored::Plain(tensor) });
        }
        if let Some(bias) = &linear.bias {
            parts.push(dense(&format!("{}.bias", linear.site.name), bias)?);
        }
    }
    for (name, norm) in model.norms() {
        parts.push(dense(name, norm)?);
    }
    if !model.is_tied() {
        parts.push(matrix(HEAD, &model.head().weight)?);
    }
    Ok(parts)
}

fn stored(dtype: DType) -> Result<StoredType> {
    match dtype {
        DType::F32 => Ok(StoredType::F32),
        DType::BF16 => Ok(StoredType::BF16),
        DType::F16 => Ok(StoredType::F16),
        DType::U8 => Ok(StoredType::U8),
        other => Err(Error::dtype("quantize", format!("weights are not written as {other}"))),
    }
}

fn size<'a>(specs: impl Iterator<Item = &'a TensorSpec>) -> Result<usize> {
    let sizes = specs.map(|s| s.dtype.bytes(&s.shape).ok_or_else(|| Error::invalid(format!("{}: too large", s.name))));
    sizes.sum()
}

fn write_tensors(parts: &[Part], folder: &mut Folder<'_>) -> Result<()> {
    let specs: Vec<TensorSpec> = parts.iter().map(|part| part.spec.clone()).collect();
    write_model(folder, &specs, SHARD, |spec, out| {
        let part = parts.iter().find(|part| part.spec.name == spec.name);
        write_part(part.ok_or_else(|| Error::invalid("not a tensor of this model"))?, out)
    })
}

fn write_part(part: &Part, out: &mut dyn Write) -> Result<()> {
    match &part.value {
        Stored::Plain(tensor) if tensor.dtype() == DType::U8 => {
            out.write_all(tensor.as_slice::<u8>()?).map_err(|e| Error::io("cannot write", e))
        }
        Stored::Plain(tensor) => write_tensor(tensor, part.spec.dtype, out),
        Stored::Blocks(weight) => match &**weight {
            Weight::Gguf(matrix) => write_tensor(&matrix.dequantize(DType::BF16)?, part.spec.dtype, out),
            _ => Err(Error::unsupported("a custom weight cannot be written")),
        },
    }
}

/// config.json with the keys by which transformers knows the form.
fn config(model: &Decoder, options: QuantOptions, parts: &[Part]) -> Result<serde_json::Map<String, Value>> {
    let dtype = match parts.first().map(|part| part.spec.dtype) {
        Some(StoredType::F32) => "float32",
        Some(StoredType::F16) => "float16",
        _ => "bfloat16",
    };
    let mut config = model.config().to_json(dtype)?;
    let kind = match options.format {
        Format::Nf4 => "nf4",
        Format::Fp4 => "fp4",
    };
    let quantization = json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": options.double,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": ["lm_head"],
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    });
    config.insert("quantization_config".into(), quantization);
    Ok(config)
}
