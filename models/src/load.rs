//! Building a decoder from weight files, or from random numbers.

use crate::config::Config;
use crate::ctx::Site;
use crate::decoder::{Decoder, EMBEDDING, HEAD};
use crate::layers::{Attention, Block, Linear, Mlp, Norm};
use crate::{Bytes, Entry, Source, SourceTensor, StoredType};
use kinglet_quant::{FourBit, GgufMatrix, RowOrder, Weight, bnb, ggml, nf4};
use kinglet_tensor::ops::Mask;
use kinglet_tensor::philox::Key;
use kinglet_tensor::{CpuOptions, DType, Device, Error, Result, Tensor, ops};
use std::sync::{Arc, OnceLock};

/// How to hold a model's weights.
#[derive(Clone)]
pub struct LoadOptions {
    /// Where the model shall live.
    pub device: Device,
    /// Quantise the linear layers of the blocks while loading; `None` keeps every tensor as it is stored.
    pub quant: Option<QuantOptions>,
}

/// 4-bit quantisation as bitsandbytes does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantOptions {
    /// NF4 or FP4.
    pub format: nf4::Format,
    /// Quantise the block scales too.
    pub double: bool,
}

/// Elements that share a scale under [`QuantOptions`].
const BLOCK: usize = 64;

/// Where the tensors of a model come from, by their Hugging Face names.
trait Tensors: Sync {
    /// A vector [len].
    fn vector(&self, name: &str, len: usize) -> Result<Tensor>;
    /// A matrix [rows, columns].
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Weight>;
}

impl Decoder {
    /// The model of `source`. Weights stay in the mapped files; only what is quantised or cannot be used as it lies is
    /// copied, at most two tensors at a time.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape than the configuration asks, or a type that cannot be used; the
    /// error names it.
    pub fn load(source: &Source, options: &LoadOptions) -> Result<Self> {
        // What lies in values, such as the format of 4-bit weights, only the host can read.
        let host = match options.device.as_cpu() {
            Ok(_) => options.device.clone(),
            Err(_) => Device::cpu(CpuOptions { threads: Some(1), ..CpuOptions::default() })?,
        };
        let model = build(&source.config, &Files { source, device: &options.device, host: &host }, options)?;
        source.weights.release_unused();
        source.check_unchanged()?;
        Ok(model)
    }

    /// A model with random weights: normal with the deviation `initializer_range` (0.02 where the configuration has
    /// none), norms one, biases zero, as transformers initialises these models.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn random(config: Config, seed: u64, device: &Device) -> Result<Self> {
        Self::random_as(config, seed, DType::F32, &LoadOptions { device: device.clone(), quant: None })
    }

    /// As [`Decoder::random`], with weights of `dtype`, quantised one by one where `options` ask for it: no more than two of them
    /// are ever held in f32.
    ///
    /// # Errors
    /// As [`Decoder::random`]; when `dtype` is no float.
    pub fn random_as(config: Config, seed: u64, dtype: DType, options: &LoadOptions) -> Result<Self> {
        let deviation = match config.json.as_ref().and_then(|json| json.get("initializer_range")) {
            None => 0.02,
            Some(value) => value
                .as_f64()
                .filter(|range| range.is_finite() && *range >= 0.0)
                .ok_or_else(|| Error::invalid(format!("config.json: initializer_range is {value}, not a deviation")))?,
        };
        build(&config, &Random { seed, deviation: deviation as f32, dtype, device: &options.device }, options)
    }
}

fn build(config: &Config, source: &dyn Tensors, options: &LoadOptions) -> Result<Decoder> {
    let c = config;
    let embedding = Arc::new(source.matrix(EMBEDDING, [c.vocab, c.hidden])?);
    let blocks = in_pairs(&options.device, c.layers.len(), |i| Ok(Arc::new(block(c, i, source, options)?)))?;
    let norm = norm(c, "model.norm", c.hidden, source)?;
    let site = Site { name: "lm_head".into(), number: (c.layers.len() * SITES) as u64 };
    let projection = if c.tied { embedding.clone() } else { Arc::new(source.matrix(HEAD, [c.vocab, c.hidden])?) };
    let head = Linear::new(site, projection, None);
    Ok(Decoder { config: c.clone(), embedding, blocks, norm, head, device: options.device.clone() })
}

/// All `make(i)` for i < `count`. A CPU makes two at a time: while one waits for its pages, which come by one thread alone, the
/// other is quantised. More at a time would hold more of the stored weights than memory may have room for.
fn in_pairs<T: Send + Sync>(device: &Device, count: usize, make: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let Ok(cpu) = device.as_cpu() else { return (0..count).map(make).collect() };
    let mut made = Vec::with_capacity(count);
    for first in (0..count).step_by(2) {
        let pair = [OnceLock::new(), OnceLock::new()];
        // Inside of the pool, so that both share their own loops with its other threads.
        cpu.enter(|| {
            cpu.run(pair.len().min(count - first), |i| {
                pair[i].get_or_init(|| make(first + i));
            });
        });
        for one in pair.into_iter().filter_map(OnceLock::into_inner) {
            made.push(one?);
        }
    }
    Ok(made)
}

/// Numbers of sites that each block has, more than it needs.
const SITES: usize = 16;

fn block(c: &Config, i: usize, source: &dyn Tensors, options: &LoadOptions) -> Result<Block> {
    let name = format!("model.layers.{i}");
    let linear = |number: usize, part: &str, rows: usize, columns: usize, bias: bool| {
        let site = Site { name: format!("{name}.{part}").into(), number: (i * SITES + number) as u64 };
        let weight_name = format!("{}.weight", site.name);
        let mut weight = source.matrix(&weight_name, [rows, columns])?;
        if let (Some(quant), false) = (options.quant, matches!(weight, Weight::FourBit(_))) {
            weight = quantize(&weight_name, weight, quant)?;
        }
        let bias = if bias { Some(source.vector(&format!("{}.bias", site.name), rows)?) } else { None };
        Ok::<_, Error>(Linear::new(site, Arc::new(weight), bias))
    };
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let head_norm = |part: &str| -> Result<Option<Norm>> {
        if !c.qk_norm {
            return Ok(None);
        }
        norm(c, &format!("{name}.self_attn.{part}"), c.head_dim, source).map(Some)
    };
    let layer = c.layers[i];
    let attention = Attention {
        q: linear(0, "self_attn.q_proj", q, c.hidden, c.qkv_bias)?,
        k: linear(1, "self_attn.k_proj", kv, c.hidden, c.qkv_bias)?,
        v: linear(2, "self_attn.v_proj", kv, c.hidden, c.qkv_bias)?,
        o: linear(3, "self_attn.o_proj", c.hidden, q, c.o_bias)?,
        q_norm: head_norm("q_norm")?,
        k_norm: head_norm("k_norm")?,
        heads: c.heads,
        kv_heads: c.kv_heads,
        head_dim: c.head_dim,
        mask: layer.window.map_or(Mask::Causal, Mask::Window),
        rope: layer.rope,
    };
    let mlp = Mlp {
        gate: linear(4, "mlp.gate_proj", c.intermediate, c.hidden, c.mlp_bias)?,
        up: linear(5, "mlp.up_proj", c.intermediate, c.hidden, c.mlp_bias)?,
        down: linear(6, "mlp.down_proj", c.hidden, c.intermediate, c.mlp_bias)?,
    };
    Ok(Block {
        input_norm: norm(c, &format!("{name}.input_layernorm"), c.hidden, source)?,
        attention,
        post_norm: norm(c, &format!("{name}.post_attention_layernorm"), c.hidden, source)?,
        mlp,
        name: name.into(),
    })
}

fn norm(c: &Config, module: &str, len: usize, source: &dyn Tensors) -> Result<Norm> {
    let weight_name = format!("{module}.weight");
    let weight = source.vector(&weight_name, len)?;
    Ok(Norm { weight_name, weight, eps: c.eps as f32 })
}

/// The weight in 4-bit blocks, as it is if it has such already. A dense source is read where it lies; a GGUF one is
/// decoded for this one tensor, and that copy is dropped here.
fn quantize(name: &str, weight: Weight, quant: QuantOptions) -> Result<Weight> {
    let dense = match &weight {
        Weight::Dense(w) => w.clone(),
        Weight::Gguf(w) => w.dequantize(DType::F32)?,
        Weight::FourBit(_) => return Ok(weight),
        Weight::Custom(_) => return Err(Error::unsupported(format!("{name}: cannot quantise a custom weight"))),
    };
    let quantized = FourBit::quantize(&dense, quant.format, BLOCK, quant.double);
    quantized.map(|w| Weight::FourBit(Arc::new(w))).map_err(|e| e.context(name))
}

/// Tensors in files.
struct Files<'a> {
    source: &'a Source,
    device: &'a Device,
    /// `device`, or one that can read values for it.
    host: &'a Device,
}

impl Files<'_> {
    /// The bytes of a tensor; a planner never reads them.
    fn bytes(&self, entry: &Entry) -> Result<Bytes> {
        let weights = &self.source.weights;
        if self.device.is_meta() { weights.bytes_unread(entry) } else { weights.bytes(entry) }
    }

    /// A tensor of plain numbers where it lies.
    fn plain(&self, entry: &Entry) -> Result<Tensor> {
        let dtype = match entry.dtype {
            StoredType::F32 => DType::F32,
            StoredType::BF16 => DType::BF16,
            StoredType::F16 => DType::F16,
            StoredType::U8 => DType::U8,
            other => return Err(unusable(entry, format!("is {}, which cannot be a weight", other.name()))),
        };
        let bytes = self.bytes(entry)?;
        Tensor::from_shared(bytes.owner, bytes.range.start, dtype, &entry.shape, self.device)
    }

    /// A tensor of plain floats, its rows (or the elements of a bias) in Hugging Face's order.
    fn floats(&self, tensor: SourceTensor<'_>) -> Result<Tensor> {
        let t = self.plain(tensor.entry)?;
        if !t.dtype().is_float() {
            return Err(unusable(tensor.entry, "is u8 without the companions of a 4-bit weight"));
        }
        let RowOrder::Interleaved { head_dim } = tensor.rows else { return Ok(t) };
        let rows = t.shape()[0];
        let rest: usize = t.shape()[1..].iter().product();
        let pairs = t.reshape(&[rows / head_dim, head_dim / 2, 2, rest])?;
        pairs.transpose(1, 2)?.contiguous()?.reshape(t.shape())
    }

    /// bitsandbytes' 4-bit blocks, if the file holds them under this name.
    fn four_bit(&self, name: &str) -> Result<Option<FourBit>> {
        let on_host = Files { device: self.host, ..*self };
        let found = bnb::read(name, |n| on_host.source.weights.entries.get(n).map(|e| on_host.plain(e)).transpose())?;
        found.map(|weight| if weight.device() == self.device { Ok(weight) } else { weight.to(self.device) }).transpose()
    }
}

fn unusable(entry: &Entry, why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("tensor {:?} {why}", entry.name))
}

impl Tensors for Files<'_> {
    fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        self.floats(self.source.tensor(name, &[len])?)
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        if self.source.gguf.is_none()
            && let Some(weight) = self.four_bit(name)?
        {
            let what = format!("{:?} where the configuration asks for {shape:?}", weight.shape());
            return if weight.shape() == shape {
                Ok(Weight::FourBit(Arc::new(weight)))
            } else {
                Err(Error::shape(&format!("tensor {name:?}"), what))
            };
        }
        let tensor = self.source.tensor(name, &shape)?;
        // Plain numbers are a dense tensor where they lie, unless their rows lie in another order.
        let plain = tensor.rows == RowOrder::Plain && !tensor.entry.dtype.is_block();
        let Some(format) = ggml_format(tensor.entry.dtype).filter(|_| !plain) else {
            return self.floats(tensor).map(Weight::Dense);
        };
        let bytes = self.bytes(tensor.entry)?;
        let len = bytes.range.len();
        let blocks = Tensor::from_shared(bytes.owner, bytes.range.start, DType::U8, &[len], self.device)?;
        let matrix = GgufMatrix::new(format, shape, tensor.rows, blocks);
        matrix.map(Weight::Gguf).map_err(|e| e.context(format!("tensor {:?}", tensor.entry.name)))
    }
}

fn ggml_format(dtype: StoredType) -> Option<ggml::Format> {
    use ggml::Format;
    Some(match dtype {
        StoredType::Q4_0 => Format::Q4_0,
        StoredType::Q4_1 => Format::Q4_1,
        StoredType::Q5_0 => Format::Q5_0,
        StoredType::Q5_1 => Format::Q5_1,
        StoredType::Q8_0 => Format::Q8_0,
        StoredType::Q2_K => Format::Q2_K,
        StoredType::Q3_K => Format::Q3_K,
        StoredType::Q4_K => Format::Q4_K,
        StoredType::Q5_K => Format::Q5_K,
        StoredType::Q6_K => Format::Q6_K,
        StoredType::F32 => Format::F32,
        StoredType::F16 => Format::F16,
        StoredType::BF16 => Format::BF16,
        _ => return None,
    })
}

/// Fresh weights.
struct Random<'a> {
    seed: u64,
    deviation: f32,
    dtype: DType,
    device: &'a Device,
}

impl Tensors for Random<'_> {
    fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        Tensor::full(if name.ends_with(".bias") { 0.0 } else { 1.0 }, &[len], self.dtype, self.device)
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        let key = name.bytes().fold(Key::derive(&[self.seed]), |key, byte| key.child(u64::from(byte)));
        ops::normal(&shape, self.deviation, key, self.device)?.to_dtype(self.dtype).map(Weight::Dense)
    }
}
