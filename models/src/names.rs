//! The names of tensors: Hugging Face's, which kinglet uses throughout, and GGUF's.

use crate::config::Architecture;
use kinglet_quant::RowOrder;

/// Parts of a layer: Hugging Face's name, GGUF's name.
const LAYER_PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// What stands outside the layers.
const OUTER_PARTS: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// GGUF's name of the tensor that Hugging Face calls `name`; `None` for one that no model has.
#[must_use]
pub fn to_gguf(name: &str) -> Option<String> {
    let (path, kind) = split_kind(name)?;
    if let Some((_, gguf)) = OUTER_PARTS.iter().find(|(hf, _)| *hf == path) {
        return Some(format!("{gguf}.{kind}"));
    }
    let (layer, part) = split_layer(path.strip_prefix("model.layers.")?)?;
    let (_, gguf) = LAYER_PARTS.iter().find(|(hf, _)| *hf == part)?;
    Some(format!("blk.{layer}.{gguf}.{kind}"))
}

/// Hugging Face's name of the tensor that GGUF calls `name`; `None` for one that it has not, such
/// as `rope_freqs.weight`.
#[must_use]
pub fn from_gguf(name: &str) -> Option<String> {
    let (path, kind) = split_kind(name)?;
    if let Some((hf, _)) = OUTER_PARTS.iter().find(|(_, gguf)| *gguf == path) {
        return Some(format!("{hf}.{kind}"));
    }
    let (layer, part) = split_layer(path.strip_prefix("blk.")?)?;
    let (hf, _) = LAYER_PARTS.iter().find(|(_, gguf)| *gguf == part)?;
    Some(format!("model.layers.{layer}.{hf}.{kind}"))
}

fn split_kind(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))
}

fn split_layer(path: &str) -> Option<(usize, &str)> {
    let (number, part) = path.split_once('.')?;
    Some((number.parse().ok()?, part))
}

/// In which order a GGUF file holds the rows of the tensor that Hugging Face calls `name`; biases count as rows.
///
/// Rotation turns pairs of elements of a head. Hugging Face pairs `j` with `j + d/2`; Meta's models, and llama.cpp for
/// the architectures that stem from them, pair `2j` with `2j + 1`. So that the same rotation comes out, llama.cpp's
/// converter moves the rows of q_proj and k_proj: it views a head's `d` rows as `[2, d/2]` and transposes that.
#[must_use]
pub fn row_order(architecture: Architecture, head_dim: usize, name: &str) -> RowOrder {
    let from_meta = matches!(architecture, Architecture::Llama | Architecture::Mistral | Architecture::SmolLm3);
    let rotated = split_kind(name).is_some_and(|(p, _)| p.ends_with(".q_proj") || p.ends_with(".k_proj"));
    if from_meta && rotated { RowOrder::Interleaved { head_dim } } else { RowOrder::Plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_goes_there_and_back() {
        let parts = LAYER_PARTS.iter().map(|(hf, _)| format!("model.layers.17.{hf}"));
        let outer = OUTER_PARTS.iter().map(|(hf, _)| (*hf).to_string());
        for path in parts.chain(outer) {
            for kind in ["weight", "bias"] {
                let name = format!("{path}.{kind}");
                let gguf = to_gguf(&name).unwrap();
                assert_eq!(from_gguf(&gguf).as_ref(), Some(&name));
            }
        }
        assert_eq!(to_gguf("model.layers.3.mlp.down_proj.weight").unwrap(), "blk.3.ffn_down.weight");
        assert_eq!(from_gguf("blk.29.attn_output.weight").unwrap(), "model.layers.29.self_attn.o_proj.weight");
        assert_eq!(from_gguf("output.weight").unwrap(), "lm_head.weight");
        for name in ["rope_freqs.weight", "blk.x.attn_q.weight", "blk.1.attn_q", "token_embd", "", "blk.1.weight"] {
            assert_eq!(from_gguf(name), None, "{name}");
        }
    }

    /// llama.cpp's permutation, written as the reshape and transpose that it is.
    fn permuted(rows: &[usize], heads: usize) -> Vec<usize> {
        let d = rows.len() / heads;
        let mut stored = Vec::new();
        for head in rows.chunks(d) {
            for j in 0..d / 2 {
                stored.extend([head[j], head[d / 2 + j]]);
            }
        }
        stored
    }

    #[test]
    fn rows_undo_the_converters_permutation() {
        for (heads, head_dim) in [(1, 2), (3, 8), (9, 64)] {
            let original: Vec<usize> = (0..heads * head_dim).collect();
            let stored = permuted(&original, heads);
            let rows = RowOrder::Interleaved { head_dim };
            assert!(original.iter().all(|&row| stored[rows.stored(row)] == row), "{heads} heads of {head_dim}");
        }
        assert_eq!(RowOrder::Plain.stored(5), 5);
    }

    #[test]
    fn only_q_and_k_of_rotating_families_are_moved() {
        let rows = |architecture, name| row_order(architecture, 64, name);
        let q = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(rows(Architecture::Llama, q), RowOrder::Interleaved { head_dim: 64 });
        assert_eq!(rows(Architecture::SmolLm3, "x.k_proj.bias"), RowOrder::Interleaved { head_dim: 64 });
        assert_eq!(rows(Architecture::Qwen2, q), RowOrder::Plain);
        assert_eq!(rows(Architecture::Qwen3, q), RowOrder::Plain);
        assert_eq!(rows(Architecture::Llama, "model.layers.0.self_attn.v_proj.weight"), RowOrder::Plain);
    }
}
