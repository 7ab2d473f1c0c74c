//! What a model looks like: the one description that the decoder needs, whatever file it came from.

mod from_gguf;
mod from_json;
mod to_json;

use kinglet_tensor::{Error, Result};
use serde_json::{Map, Value};

use crate::rope::{Rope, RopeKind};

/// The model families that the decoder knows. They differ in names and defaults; what the decoder
/// does follows from the fields of [`Config`] alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Architecture {
    /// Llama 2, 3, 3.1, 3.2, SmolLM2, TinyLlama.
    Llama,
    /// Mistral: every layer may have a sliding window.
    Mistral,
    /// Qwen2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: norms on the heads of q and k.
    Qwen3,
    /// SmolLM3: some layers without rotation.
    SmolLm3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::SmolLm3];

    /// The `model_type` of config.json.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::SmolLm3 => "smollm3",
        }
    }

    /// The class in `architectures` of config.json.
    #[must_use]
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
        }
    }
}

/// What is special about one layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerConfig {
    /// With `Some(n)`, position `p` sees only the positions `p - n + 1` to `p`.
    pub window: Option<usize>,
    /// Whether q and k are rotated.
    pub rope: bool,
}

/// The description of a decoder-only model.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The family, for names and for writing config.json.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements a head; even, and not always `hidden / heads`.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub eps: f64,
    /// The rotation of q and k.
    pub rope: Rope,
    /// One entry a layer.
    pub layers: Vec<LayerConfig>,
    /// Whether q_proj, k_proj and v_proj have biases.
    pub qkv_bias: bool,
    /// Whether o_proj has a bias.
    pub o_bias: bool,
    /// Whether gate_proj, up_proj and down_proj have biases.
    pub mlp_bias: bool,
    /// Whether each head of q and k goes through an RMSNorm of `head_dim` weights before rotation.
    pub qk_norm: bool,
    /// Whether the output projection is the embedding.
    pub tied: bool,
    /// The longest text that the model was made for.
    pub max_positions: usize,
    /// Starts a text.
    pub bos: Option<u32>,
    /// Each of them ends a text.
    pub eos: Vec<u32>,
    /// Fills batches.
    pub pad: Option<u32>,
    /// config.json as it was read; `None` for a model from GGUF.
    pub json: Option<Map<String, Value>>,
}

/// Upper limits, far above any model: they keep products of sizes from overflowing.
const MAX_LAYERS: usize = 1 << 12;
const MAX_WIDTH: usize = 1 << 22;
const MAX_VOCAB: usize = 1 << 26;
const MAX_HEAD_DIM: usize = 1 << 14;
const MAX_POSITIONS: usize = 1 << 31;

/// The keys by which a source calls the sizes of [`Config`], for error messages.
struct Keys {
    vocab: String,
    hidden: String,
    intermediate: String,
    layers: String,
    heads: String,
    kv_heads: String,
    head_dim: String,
    eps: String,
    theta: String,
    max_positions: String,
}

impl Config {
    /// Checks all sizes, so that the decoder may compute with them.
    fn validate(&self, keys: &Keys) -> Result<()> {
        for (key, size, most) in [
            (&keys.vocab, self.vocab, MAX_VOCAB),
            (&keys.hidden, self.hidden, MAX_WIDTH),
            (&keys.intermediate, self.intermediate, MAX_WIDTH),
            (&keys.heads, self.heads, MAX_WIDTH),
            (&keys.kv_heads, self.kv_heads, MAX_WIDTH),
            (&keys.head_dim, self.head_dim, MAX_HEAD_DIM),
            (&keys.layers, self.layers.len(), MAX_LAYERS),
            (&keys.max_positions, self.max_positions, MAX_POSITIONS),
        ] {
            check_size(key, size, most)?;
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let what = format!("{} {} is no multiple of {} {}", keys.heads, self.heads, keys.kv_heads, self.kv_heads);
            return Err(Error::invalid(what));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::invalid(format!("{} {} is odd: rotation needs pairs", keys.head_dim, self.head_dim)));
        }
        let width = self.heads.saturating_mul(self.head_dim);
        check_size(&format!("{} times {}", keys.heads, keys.head_dim), width, MAX_WIDTH)?;
        check_positive(&keys.eps, self.eps)?;
        check_positive(&keys.theta, self.rope.theta)?;
        self.check_divisors()?;
        match self.layers.iter().position(|layer| layer.window == Some(0)) {
            Some(i) => Err(Error::invalid(format!("the sliding window of layer {i} is 0"))),
            None => Ok(()),
        }
    }

    fn check_divisors(&self) -> Result<()> {
        let lists: &[&Vec<f32>] = match &self.rope.kind {
            RopeKind::LongRope { short, long, .. } => &[short, long],
            RopeKind::Divisors(divisors) => &[divisors],
            _ => &[],
        };
        for list in lists {
            if list.len() != self.head_dim / 2 {
                let what = format!("{} frequency divisors, {} are needed", list.len(), self.head_dim / 2);
                return Err(Error::invalid(what));
            }
            if !list.iter().all(|d| d.is_finite() && *d > 0.0) {
                return Err(Error::invalid("a frequency divisor is not a positive number"));
            }
        }
        Ok(())
    }
}

fn check_size(key: &str, size: usize, most: usize) -> Result<()> {
    match size {
        0 => Err(Error::invalid(format!("{key} is 0"))),
        n if n > most => Err(Error::invalid(format!("{key} is {n}, more than the {most} that are allowed"))),
        _ => Ok(()),
    }
}

fn check_positive(key: &str, value: f64) -> Result<()> {
    // As f32 too, in which it is used.
    if value > 0.0 && (value as f32).is_finite() && value as f32 > 0.0 {
        return Ok(());
    }
    Err(Error::invalid(format!("{key} is {value}: it must be a positive number")))
}

#[cfg(test)]
mod tests;
