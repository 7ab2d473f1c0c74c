//! The metadata of a GGUF file, as llama.cpp's `convert_hf_to_gguf.py` writes it.

use kinglet_tensor::{Error, Result};

use super::{Architecture, Config, Keys, LayerConfig, MAX_LAYERS, check_positive, check_size};
use crate::gguf::{Gguf, Metadata, Value};
use crate::rope::{Rope, RopeKind, Yarn};
use crate::stored::StoredType;

/// llama.cpp has no key for SmolLM3's layers without rotation: every fourth is one.
const SMOLLM3_ROPE_INTERVAL: usize = 4;

const EPS: &str = "attention.layer_norm_rms_epsilon";

/// The values of one architecture: `ARCH.` stands before their names.
struct Scoped<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Scoped<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn usize(&self, name: &str) -> Result<Option<usize>> {
        self.metadata.get_usize(&self.key(name))
    }

    fn required<T>(&self, name: &str, value: Result<Option<T>>) -> Result<T> {
        self.metadata.require(&self.key(name), value)
    }

    fn f64(&self, name: &str) -> Result<Option<f64>> {
        self.metadata.get_f64(&self.key(name))
    }

    /// A number for all layers, or a list that has the same number for each.
    fn uniform(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        let Some(Value::Array(_)) = self.metadata.get(&key) else { return self.usize(name) };
        let list = self.metadata.get_i64s(&key)?.unwrap_or_default();
        match list.split_first() {
            Some((first, rest)) if rest.iter().all(|v| v == first) => {
                usize::try_from(*first).map(Some).map_err(|_| Error::invalid(format!("key {key:?} is negative")))
            }
            _ => Err(Error::unsupported(format!("key {key:?} differs from layer to layer, which is not supported"))),
        }
    }

    /// Refuses a setting that changes the model in a way that kinglet does not know.
    fn must_be(&self, name: &str, harmless: f64) -> Result<()> {
        let key = self.key(name);
        match self.metadata.get(&key) {
            None => Ok(()),
            Some(Value::F32(v)) if f64::from(*v) == harmless => Ok(()),
            Some(_) if self.metadata.get_usize(&key).is_ok_and(|v| v.map(|v| v as f64) == Some(harmless)) => Ok(()),
            Some(other) => Err(Error::unsupported(format!("key {key:?} is {other:?}, which is not supported"))),
        }
    }
}

impl Config {
    /// Understands the metadata of a GGUF model, of architecture llama (which is also Mistral's),
    /// qwen2, qwen3 or smollm3.
    ///
    /// # Errors
    /// When the file holds something else, or a key is missing, of the wrong type or out of range:
    /// the error names file and key.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let place = gguf.weights.files[0].path().display();
        from_gguf(gguf).map_err(|e| e.context(place))
    }
}

fn from_gguf(gguf: &Gguf) -> Result<Config> {
    let metadata = &gguf.metadata;
    if let Some(kind) = metadata.get_str("general.type")?.filter(|&kind| kind != "model") {
        return Err(Error::unsupported(format!("general.type is {kind:?}: not a model")));
    }
    let name = metadata.require("general.architecture", metadata.get_str("general.architecture"))?;
    let scoped = Scoped { metadata, architecture: name };
    let window = scoped.uniform("attention.sliding_window")?.filter(|&window| window > 0);
    let architecture = match (name, window) {
        ("llama", None) => Architecture::Llama,
        // llama.cpp has Mistral under "llama"; in Transformers, windows make the difference.
        ("llama", Some(_)) => Architecture::Mistral,
        ("qwen2", None) => Architecture::Qwen2,
        ("qwen3", None) => Architecture::Qwen3,
        ("smollm3", None) => Architecture::SmolLm3,
        ("qwen2" | "qwen3" | "smollm3", Some(_)) => {
            let key = scoped.key("attention.sliding_window");
            return Err(Error::unsupported(format!(
                "key {key:?} is not supported: the file does not say for which layers"
            )));
        }
        _ => {
            let what = format!("general.architecture {name:?} is not supported (only llama, qwen2, qwen3, smollm3)");
            return Err(Error::unsupported(what));
        }
    };
    for (name, harmless) in [("expert_count", 0.0), ("logit_scale", 1.0), ("residual_scale", 1.0)] {
        scoped.must_be(name, harmless)?;
    }
    describe(gguf, &scoped, architecture, window)
}

fn describe(gguf: &Gguf, scoped: &Scoped<'_>, architecture: Architecture, window: Option<usize>) -> Result<Config> {
    let hidden = scoped.required("embedding_length", scoped.usize("embedding_length"))?;
    let heads = scoped.required("attention.head_count", scoped.uniform("attention.head_count"))?;
    check_size(&scoped.key("attention.head_count"), heads, usize::MAX)?;
    let head_dim = match scoped.usize("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let what = format!("{hidden} is no multiple of the {heads} heads");
            return Err(Error::invalid(format!("key {:?}: {what}", scoped.key("embedding_length"))));
        }
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = scoped.usize(name)?.filter(|&other| other != head_dim) {
            let what = format!("key {:?} is {other} where heads have {head_dim} elements", scoped.key(name));
            return Err(Error::unsupported(format!("{what}, which is not supported")));
        }
    }
    let layer_count = scoped.required("block_count", scoped.usize("block_count"))?;
    check_size(&scoped.key("block_count"), layer_count, MAX_LAYERS)?;
    let rotates = |i: usize| architecture != Architecture::SmolLm3 || !(i + 1).is_multiple_of(SMOLLM3_ROPE_INTERVAL);
    let has = |tensor: &str| gguf.weights.entries.contains_key(tensor);
    let token = |key: &str| gguf.metadata.get_u32(&format!("tokenizer.ggml.{key}_token_id"));
    let config = Config {
        architecture,
        vocab: vocab(gguf)?,
        hidden,
        intermediate: scoped.required("feed_forward_length", scoped.uniform("feed_forward_length"))?,
        heads,
        kv_heads: scoped.uniform("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        eps: scoped.required(EPS, scoped.f64(EPS))?,
        rope: rope(gguf, scoped, head_dim)?,
        layers: (0..layer_count).map(|i| LayerConfig { window, rope: rotates(i) }).collect(),
        qkv_bias: has("blk.0.attn_q.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        qk_norm: architecture == Architecture::Qwen3,
        tied: !has("output.weight"),
        max_positions: scoped.required("context_length", scoped.usize("context_length"))?,
        bos: token("bos")?,
        eos: end_tokens(gguf)?,
        pad: token("padding")?,
        json: None,
    };
    config.validate(&keys(scoped))?;
    Ok(config)
}

/// The token that ends a text, and those that llama.cpp also stops at.
fn end_tokens(gguf: &Gguf) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    for name in ["eos", "eot", "eom"] {
        let token = gguf.metadata.get_u32(&format!("tokenizer.ggml.{name}_token_id"))?;
        tokens.extend(token.filter(|t| !tokens.contains(t)));
    }
    Ok(tokens)
}

fn vocab(gguf: &Gguf) -> Result<usize> {
    const NAME: &str = "token_embd.weight";
    match gguf.weights.get(NAME)?.shape[..] {
        [vocab, _] => Ok(vocab),
        _ => Err(Error::shape(NAME, "the embedding has not two dimensions")),
    }
}

fn keys(scoped: &Scoped<'_>) -> Keys {
    Keys {
        vocab: "the number of rows of token_embd.weight".into(),
        hidden: scoped.key("embedding_length"),
        intermediate: scoped.key("feed_forward_length"),
        layers: scoped.key("block_count"),
        heads: scoped.key("attention.head_count"),
        kv_heads: scoped.key("attention.head_count_kv"),
        head_dim: scoped.key("attention.key_length"),
        eps: scoped.key(EPS),
        theta: scoped.key("rope.freq_base"),
        max_positions: scoped.key("context_length"),
    }
}

fn rope(gguf: &Gguf, scoped: &Scoped<'_>, head_dim: usize) -> Result<Rope> {
    let theta = scoped.f64("rope.freq_base")?.unwrap_or(10000.0);
    if let Some(divisors) = divisors(gguf)? {
        return Ok(Rope { theta, kind: recognise_llama3(theta, head_dim, divisors) });
    }
    let key = scoped.key("rope.scaling.type");
    let factor = || {
        const NAME: &str = "rope.scaling.factor";
        let factor = scoped.required(NAME, scoped.f64(NAME))?;
        check_positive(&scoped.key(NAME), factor).map(|()| factor)
    };
    let kind = match (scoped.metadata.get_str(&key)?, scoped.f64("rope.scale_linear")?) {
        // The older name of the linear factor.
        (None, Some(factor)) if factor != 1.0 => RopeKind::Linear { factor },
        (None | Some("none"), _) => RopeKind::Default,
        (Some("linear"), _) => RopeKind::Linear { factor: factor()? },
        (Some("yarn"), _) => yarn(scoped, factor()?)?,
        (Some(other), _) => {
            return Err(Error::unsupported(format!("key {key:?} is {other:?}, which is not supported")));
        }
    };
    Ok(Rope { theta, kind })
}

fn yarn(scoped: &Scoped<'_>, factor: f64) -> Result<RopeKind> {
    // llama.cpp multiplies these in where Transformers replaces: anything but "none" is ambiguous.
    for (name, harmless) in [("attn_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_ext_factor", 1.0)] {
        scoped.must_be(&format!("rope.scaling.{name}"), harmless)?;
    }
    scoped.must_be("rope.scaling.yarn_log_multiplier", 0.0)?;
    let original = scoped.usize("rope.scaling.original_context_length")?;
    let original = original.map_or_else(|| scoped.required("context_length", scoped.usize("context_length")), Ok)?;
    check_size(&scoped.key("rope.scaling.original_context_length"), original, super::MAX_POSITIONS)?;
    let beta = |name: &str, default: f64| {
        let beta = scoped.f64(name)?.unwrap_or(default);
        check_positive(&scoped.key(name), beta).map(|()| beta)
    };
    Ok(RopeKind::Yarn(Yarn {
        factor,
        original,
        attention_factor: Yarn::attention_factor(factor, None, None),
        beta_fast: beta("rope.scaling.yarn_beta_fast", 32.0)?,
        beta_slow: beta("rope.scaling.yarn_beta_slow", 1.0)?,
        truncate: true,
    }))
}

/// The tensor in which Llama 3.1 and later keep a divisor for each frequency.
fn divisors(gguf: &Gguf) -> Result<Option<Vec<f32>>> {
    const NAME: &str = "rope_freqs.weight";
    let Some(entry) = gguf.weights.entries.get(NAME) else { return Ok(None) };
    if entry.dtype != StoredType::F32 || entry.shape.len() != 1 {
        return Err(Error::dtype(NAME, format_args!("{} {:?}: a list of F32 is needed", entry.dtype, entry.shape)));
    }
    let bytes = gguf.weights.bytes(entry)?;
    Ok(Some(bytes.as_ref().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
}

/// llama.cpp's converter computes the divisors from Llama 3.1's rule with the low factor 1, the high
/// factor 4 and the context 8192. Where they are these, the rule itself is used: frequencies are
/// then those of the Hugging Face original, and config.json can name it.
fn recognise_llama3(theta: f64, head_dim: usize, divisors: Vec<f32>) -> RopeKind {
    let plain = Rope { theta, kind: RopeKind::Default }.frequencies(head_dim, 1).inv_freq;
    let factor = divisors.iter().copied().fold(1.0, f32::max);
    let kind = RopeKind::Llama3 { factor: f64::from(factor), low: 1.0, high: 4.0, original: 8192 };
    let rule = Rope { theta, kind }.frequencies(head_dim, 1).inv_freq;
    let close = |((f, d), r): ((&f32, &f32), &f32)| (f / d - r).abs() <= 1e-5 * r;
    if factor > 1.0 && divisors.len() == plain.len() && plain.iter().zip(&divisors).zip(&rule).all(close) {
        return RopeKind::Llama3 { factor: f64::from(factor), low: 1.0, high: 4.0, original: 8192 };
    }
    RopeKind::Divisors(divisors)
}
