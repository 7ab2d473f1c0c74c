//! config.json for a model that kinglet writes.

use kinglet_tensor::{Error, Result};
use serde_json::{Map, Value, json};

use super::{Architecture, Config};
use crate::rope::RopeKind;

impl Config {
    /// The object of a config.json for weights of `dtype` ("float32", "bfloat16" or "float16"),
    /// none of them quantised: the one that was read, changed where it must be, or for a model from
    /// GGUF a new one, in the spelling of Transformers 4, which version 5 reads too.
    ///
    /// # Errors
    /// When the model's rotation has no name there (see [`RopeKind::Divisors`]).
    pub fn to_json(&self, dtype: &str) -> Result<Map<String, Value>> {
        let mut json = match &self.json {
            Some(json) => json.clone(),
            None => self.new_json()?,
        };
        json.remove("quantization_config");
        json.remove("_name_or_path");
        // Version 5 calls it dtype; both read either.
        let key = if json.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        json.insert(key.into(), dtype.into());
        json.insert("tie_word_embeddings".into(), self.tied.into());
        Ok(json)
    }

    fn new_json(&self) -> Result<Map<String, Value>> {
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| json.insert(key.into(), value);
        put("architectures", json!([self.architecture.class()]));
        put("model_type", self.architecture.model_type().into());
        put("vocab_size", self.vocab.into());
        put("hidden_size", self.hidden.into());
        put("intermediate_size", self.intermediate.into());
        put("num_hidden_layers", self.layers.len().into());
        put("num_attention_heads", self.heads.into());
        put("num_key_value_heads", self.kv_heads.into());
        put("head_dim", self.head_dim.into());
        put("hidden_act", "silu".into());
        put("max_position_embeddings", self.max_positions.into());
        put("rms_norm_eps", self.eps.into());
        put("rope_theta", self.rope.theta.into());
        put("rope_scaling", rope_scaling(&self.rope.kind)?);
        put("bos_token_id", self.bos.into());
        put("eos_token_id", eos(&self.eos));
        put("pad_token_id", self.pad.into());
        match self.architecture {
            Architecture::Llama => {
                put("attention_bias", self.attention_bias()?.into());
                put("mlp_bias", self.mlp_bias.into());
            }
            Architecture::Mistral => {
                put("sliding_window", self.layers.iter().find_map(|layer| layer.window).into());
            }
            Architecture::Qwen2 => {
                put("use_sliding_window", false.into());
            }
            Architecture::Qwen3 => {
                put("attention_bias", self.attention_bias()?.into());
                put("use_sliding_window", false.into());
            }
            Architecture::SmolLm3 => {
                put("attention_bias", self.attention_bias()?.into());
                put("mlp_bias", self.mlp_bias.into());
                let flags: Vec<u8> = self.layers.iter().map(|layer| layer.rope.into()).collect();
                put("no_rope_layers", json!(flags));
            }
        }
        Ok(json)
    }

    /// Transformers has one key for the biases of q, k, v and o.
    fn attention_bias(&self) -> Result<bool> {
        if self.qkv_bias == self.o_bias {
            return Ok(self.o_bias);
        }
        let what = format!("config.json of {:?} cannot say that only q, k, v or only o have biases", self.architecture);
        Err(Error::unsupported(what))
    }
}

fn eos(tokens: &[u32]) -> Value {
    match tokens {
        [] => Value::Null,
        [one] => (*one).into(),
        many => json!(many),
    }
}

fn rope_scaling(kind: &RopeKind) -> Result<Value> {
    Ok(match kind {
        RopeKind::Default => Value::Null,
        RopeKind::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeKind::Dynamic { factor, .. } => json!({"rope_type": "dynamic", "factor": factor}),
        RopeKind::Llama3 { factor, low, high, original } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }),
        RopeKind::Yarn(yarn) => json!({
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original,
            "attention_factor": yarn.attention_factor,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "truncate": yarn.truncate,
        }),
        RopeKind::LongRope { short, long, attention_factor, original } => json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": attention_factor,
            "original_max_position_embeddings": original,
        }),
        RopeKind::Divisors(_) => {
            let what = "rope_freqs.weight holds divisors of no known rule: config.json has no name for them";
            return Err(Error::unsupported(what));
        }
    })
}
