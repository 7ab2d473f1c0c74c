//! Shapes of known models, for random weights.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

/// A model's shape, without its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RandomShape {
    /// SmolLM2-135M
    #[value(name = "135m")]
    Smollm2_135m,
    /// Qwen2.5-0.5B
    #[value(name = "0.5b")]
    Qwen2_0_5b,
    /// The same with an output projection of its own: 0.63B
    #[value(name = "qwen2-0.6b")]
    Qwen2_0_6b,
    /// Qwen2.5-1.5B
    #[value(name = "1.5b")]
    Qwen2_1_5b,
    /// Qwen2.5-7B
    #[value(name = "7b")]
    Qwen2_7b,
}

/// The sizes in which the models differ.
struct Sizes {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    tied: bool,
}

impl RandomShape {
    /// The name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }

    /// The model's config.json.
    pub(crate) fn config(self) -> Map<String, Value> {
        let qwen2 = |hidden, intermediate, layers, heads, kv_heads| Sizes {
            hidden,
            intermediate,
            layers,
            heads,
            kv_heads,
            vocabulary: 151_936,
            tied: true,
        };
        let s = match self {
            Self::Smollm2_135m => Sizes { vocabulary: 49_152, ..qwen2(576, 1536, 30, 9, 3) },
            Self::Qwen2_0_5b => qwen2(896, 4864, 24, 14, 2),
            Self::Qwen2_0_6b => Sizes { tied: false, ..qwen2(896, 4864, 24, 14, 2) },
            Self::Qwen2_1_5b => qwen2(1536, 8960, 28, 12, 2),
            Self::Qwen2_7b => Sizes { vocabulary: 152_064, tied: false, ..qwen2(3584, 18_944, 28, 28, 4) },
        };
        let llama = self == Self::Smollm2_135m;
        let config = json!({
            "model_type": if llama { "llama" } else { "qwen2" },
            "architectures": [if llama { "LlamaForCausalLM" } else { "Qwen2ForCausalLM" }],
            "hidden_size": s.hidden,
            "intermediate_size": s.intermediate,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "vocab_size": s.vocabulary,
            "tie_word_embeddings": s.tied,
            "max_position_embeddings": 32_768,
            "rope_theta": if llama { 100_000.0 } else { 1_000_000.0 },
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "initializer_range": 0.02,
        });
        match config {
            Value::Object(config) => config,
            _ => Map::new(), // the literal above is an object
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinglet_models::Config;

    /// Parameters of the model that a configuration describes.
    fn parameters(c: &Config) -> usize {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let biases = if c.qkv_bias { q + 2 * kv } else { 0 };
        let layer = c.hidden * (2 * q + 2 * kv + 3 * c.intermediate + 2) + biases;
        c.layers.len() * layer + c.hidden + c.vocab * c.hidden * if c.tied { 1 } else { 2 }
    }

    #[test]
    fn shapes_have_the_parameters_that_their_names_say() {
        for (shape, expected) in [
            (RandomShape::Smollm2_135m, 134_515_008),
            (RandomShape::Qwen2_0_5b, 494_032_768),
            (RandomShape::Qwen2_0_6b, 630_167_424),
            (RandomShape::Qwen2_1_5b, 1_543_714_304),
            (RandomShape::Qwen2_7b, 7_615_616_512),
        ] {
            let config = Config::from_json(shape.config()).unwrap();
            assert_eq!(parameters(&config), expected, "{shape:?}");
        }
    }
}
