//! A tokenizer from the metadata of a GGUF file (`tokenizer.ggml.*`).
//!
//! The metadata is turned into a `tokenizer.json`, so that one engine serves both sources and the
//! adapter's folder can be loaded by transformers. The pre-tokenizers are those of llama.cpp's
//! `llama-vocab.cpp`, in the original form of each model's `tokenizer.json` where that file quotes it.

use std::collections::HashMap;

use kinglet_tensor::{Error, Result};
use serde_json::{Value, json};

use super::file::{AddedToken, BPE, Bpe, Merge, TokenizerFile, Vocab};

/// The vocabulary of a GGUF file, field by field: `tokenizer.ggml.*` and `tokenizer.chat_template`.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `model`: "gpt2" (byte-level merges) or "llama" (SentencePiece scores).
    pub model: String,
    /// `pre`: the name of the pre-tokenizer; "gpt2" models must have it.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `scores`, by id; "llama" models must have them.
    pub scores: Option<Vec<f32>>,
    /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// `merges`: "left right", best first; "gpt2" models must have them.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`; only "llama" models look at it.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Control tokens that end a turn whatever the metadata's one `eos` is (llama.cpp's list).
const END_OF_TURN: [&str; 9] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
];

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl GgufVocab {
    /// The `tokenizer.json` that tokenizes as llama.cpp does with this vocabulary.
    ///
    /// # Errors
    /// An unknown model or pre-tokenizer, named; arrays of different lengths; a special id outside
    /// the vocabulary.
    pub(super) fn to_file(&self) -> Result<TokenizerFile> {
        self.check()?;
        match self.model.as_str() {
            "gpt2" => self.byte_level_file(),
            "llama" => self.sentence_piece_file(),
            other => Err(Error::unsupported(format!("tokenizer.ggml.model {other:?} (known: \"gpt2\", \"llama\")"))),
        }
    }

    /// Whether a text gets `bos` in front, by the key or by the model's default.
    pub(super) fn adds_bos(&self) -> bool {
        let default = self.model == "llama" || matches!(self.pre.as_deref(), Some(pre) if pre_adds_bos(pre));
        self.add_bos.unwrap_or(default)
    }

    /// The ids that end a turn.
    pub(super) fn end_ids(&self) -> Vec<u32> {
        let known = |(id, token): (usize, &String)| {
            let ends = self.kind(id) == CONTROL && END_OF_TURN.contains(&token.as_str());
            ends.then_some(id as u32)
        };
        self.eos.into_iter().chain(self.tokens.iter().enumerate().filter_map(known)).collect()
    }

    /// `tokenizer_config.json` for [`GgufVocab::to_file`].
    pub(super) fn to_config(&self) -> Value {
        let text = |id: Option<u32>| id.and_then(|id| self.tokens.get(id as usize));
        let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
        let named =
            [("bos_token", self.bos), ("eos_token", self.eos), ("unk_token", self.unk), ("pad_token", self.pad)];
        for (key, id) in named {
            if let Some(token) = text(id) {
                config[key] = json!(token);
            }
        }
        config
    }

    fn kind(&self, id: usize) -> i32 {
        self.token_types.as_ref().map_or(1, |types| types[id])
    }

    fn check(&self) -> Result<()> {
        let count = self.tokens.len();
        let lengths =
            [("scores", self.scores.as_ref().map(Vec::len)), ("token_type", self.token_types.as_ref().map(Vec::len))];
        for (key, length) in lengths {
            if let Some(length) = length.filter(|&n| n != count) {
                return Err(Error::invalid(format!("tokenizer.ggml.{key} has {length} entries for {count} tokens")));
            }
        }
        let ids = [("bos", self.bos), ("eos", self.eos), ("unknown", self.unk), ("padding", self.pad)];
        for (key, id) in ids {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return Err(Error::invalid(format!("tokenizer.ggml.{key}_token_id {id} is not below {count} tokens")));
            }
        }
        let needed = [("bos", self.adds_bos(), self.bos), ("eos", self.add_eos == Some(true), self.eos)];
        for (key, adds, id) in needed {
            if adds && id.is_none() {
                return Err(Error::invalid(format!(
                    "tokenizer.ggml.{key}_token_id is missing, but texts get it added"
                )));
            }
        }
        Ok(())
    }

    fn byte_level_file(&self) -> Result<TokenizerFile> {
        let pre = self.pre.as_deref().ok_or_else(|| Error::invalid("key `tokenizer.ggml.pre` is missing"))?;
        let split = pre_tokenizer(pre)?;
        let mut file = TokenizerFile::new(Bpe {
            kind: BPE.into(),
            ignore_merges: pre_ignores_merges(pre),
            vocab: self.vocab(),
            merges: self.merges.iter().map(|line| merge_of_line(line)).collect(),
            ..Bpe::default()
        });
        file.normalizer = if pre_normalizes(pre) { json!({ "type": "NFC" }) } else { Value::Null };
        file.pre_tokenizer = split;
        file.decoder = byte_level(true);
        self.finish(file)
    }

    /// SentencePiece's byte-pair search joins the pair whose joined piece scores best. Here that
    /// becomes a list of merges, best first, as transformers converts such models.
    fn sentence_piece_file(&self) -> Result<TokenizerFile> {
        let scores = self.scores.as_ref().ok_or_else(|| Error::invalid("key `tokenizer.ggml.scores` is missing"))?;
        let mut file = TokenizerFile::new(Bpe {
            kind: BPE.into(),
            unk_token: self.unk.map(|id| self.tokens[id as usize].clone()),
            fuse_unk: true,
            byte_fallback: true,
            vocab: self.vocab(),
            merges: self.merges_by_score(scores),
            ..Bpe::default()
        });
        let prefixed = self.add_space_prefix.unwrap_or(true);
        let escape = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        let unescape = json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " });
        let mut normalizers = vec![escape];
        let mut decoders = vec![unescape, json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
        if prefixed {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        file.normalizer = json!({ "type": "Sequence", "normalizers": normalizers });
        file.decoder = json!({ "type": "Sequence", "decoders": decoders });
        self.finish(file)
    }

    /// Adds what both kinds share, the special tokens, and checks the result.
    fn finish(&self, mut file: TokenizerFile) -> Result<TokenizerFile> {
        file.added_tokens = self.added_tokens();
        file.post_processor = self.post_processor();
        file.check()?;
        Ok(file)
    }

    fn vocab(&self) -> Vocab {
        Vocab(self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect())
    }

    /// Every split of every normal piece into two pieces, best score first. Where scores are equal, the
    /// lower id goes first, then the longer left side.
    fn merges_by_score(&self, scores: &[f32]) -> Vec<Merge> {
        let usable = |id: usize| ![UNKNOWN, CONTROL, UNUSED, BYTE].contains(&self.kind(id));
        let pieces: HashMap<&str, usize> =
            self.tokens.iter().enumerate().filter(|(id, _)| usable(*id)).map(|(id, t)| (t.as_str(), id)).collect();
        let mut best_first: Vec<usize> = pieces.values().copied().collect();
        best_first.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));

        let mut merges = Vec::new();
        for id in best_first {
            let piece = self.tokens[id].as_str();
            let cuts = piece.char_indices().rev().map(|(cut, _)| cut).filter(|&cut| cut > 0);
            for cut in cuts {
                let (left, right) = piece.split_at(cut);
                if pieces.contains_key(left) && pieces.contains_key(right) {
                    merges.push(Merge::Pair(left.into(), right.into()));
                }
            }
        }
        merges
    }

    fn added_tokens(&self) -> Vec<AddedToken> {
        let special = |id: usize| [UNKNOWN, CONTROL].contains(&self.kind(id));
        let added = |id: &usize| special(*id) || self.kind(*id) == USER_DEFINED;
        (0..self.tokens.len())
            .filter(added)
            .map(|id| AddedToken {
                id: id as u32,
                content: self.tokens[id].clone(),
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: false,
                special: special(id),
            })
            .collect()
    }

    fn post_processor(&self) -> Value {
        let bos = self.bos.filter(|_| self.adds_bos());
        let eos = self.eos.filter(|_| self.add_eos == Some(true));
        if bos.is_none() && eos.is_none() {
            return Value::Null;
        }
        let piece = |id: u32, of: u8| json!({ "SpecialToken": { "id": self.tokens[id as usize], "type_id": of } });
        let around = |sequence: &str, of: u8| {
            let text = json!({ "Sequence": { "id": sequence, "type_id": of } });
            bos.map(|id| piece(id, of)).into_iter().chain([text]).chain(eos.map(|id| piece(id, of))).collect()
        };
        let single: Vec<Value> = around("A", 0);
        let pair: Vec<Value> = around("A", 0).into_iter().chain(around("B", 1)).collect();
        let mut special_tokens = json!({});
        for id in [bos, eos].into_iter().flatten() {
            let token = &self.tokens[id as usize];
            special_tokens[token] = json!({ "id": token, "ids": [id], "tokens": [token] });
        }
        json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special_tokens })
    }
}

/// GGUF joins the sides with one space, which a side itself never holds; its first character may be
/// anything, so the search starts at the second, as in llama.cpp.
fn merge_of_line(line: &str) -> Merge {
    let second = line.chars().next().map_or(0, char::len_utf8);
    match line[second..].find(' ') {
        Some(at) => Merge::Pair(line[..second + at].into(), line[second + at + 1..].into()),
        None => Merge::Line(line.into()),
    }
}

/// The pre-tokenizer of this name.
fn pre_tokenizer(pre: &str) -> Result<Value> {
    let parts = match pre {
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            vec![json!({ "type": "Digits", "individual_digits": true }), byte_level(true)]
        }
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "exaone4" => vec![byte_level(true)],
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "lfm2" | "dbrx" | "smaug-bpe" => {
            vec![split(LLAMA3), byte_level(false)]
        }
        "qwen2" | "deepseek-r1-qwen" | "megrez" | "stablelm2" => vec![split(QWEN2), byte_level(false)],
        "tekken" => vec![split(TEKKEN), byte_level(false)],
        "default" => vec![
            split(r"[\p{P}\$\+<=>\^~\|]+"),
            split(GPT2),
            split(r"\p{N}+"),
            split("[0-9][0-9][0-9]"),
            byte_level(false),
        ],
        other => return Err(Error::unsupported(format!("tokenizer.ggml.pre {other:?}: unknown pre-tokenizer"))),
    };
    Ok(json!({ "type": "Sequence", "pretokenizers": parts }))
}

fn pre_ignores_merges(pre: &str) -> bool {
    matches!(pre, "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "lfm2" | "tekken")
}

fn pre_adds_bos(pre: &str) -> bool {
    pre_ignores_merges(pre)
}

/// Qwen2's `tokenizer.json` normalizes to NFC; the metadata cannot say so, the name does.
fn pre_normalizes(pre: &str) -> bool {
    matches!(pre, "qwen2" | "deepseek-r1-qwen")
}

fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}
