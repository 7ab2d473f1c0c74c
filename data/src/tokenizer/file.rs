//! `tokenizer.json`: its fields, and the checks that make a hostile one an error.
//!
//! The tokenizers crate trusts this file: a merge whose result is not in the vocabulary, a
//! precompiled character map or a template that names a missing token make it panic. So the file is
//! read here, only the parts that byte-pair models use are let through, and every reference is
//! checked before the crate sees it.

use std::collections::{HashMap, HashSet};

use kinglet_tensor::{Error, Result};
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

/// The only known `type` of a model.
pub(super) const BPE: &str = "BPE";
/// The largest `tokenizer.json` that is read, in bytes (Llama 3's has 17 million).
pub(super) const MAX_FILE_BYTES: usize = 256 << 20;
/// Ids above this would make tables of token texts too large to trust.
const MAX_ID: u32 = 1 << 24;
/// Nested `Sequence`s beyond this depth are refused.
const MAX_DEPTH: usize = 8;

const NORMALIZERS: [&str; 9] =
    ["Sequence", "Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"];
const PRE_TOKENIZERS: [&str; 8] =
    ["Sequence", "ByteLevel", "Split", "Digits", "Metaspace", "Whitespace", "WhitespaceSplit", "Punctuation"];
const POST_PROCESSORS: [&str; 3] = ["Sequence", "ByteLevel", "TemplateProcessing"];
const DECODERS: [&str; 7] = ["Sequence", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TokenizerFile {
    pub(super) version: String,
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) post_processor: Value,
    #[serde(default)]
    pub(super) decoder: Value,
    pub(super) model: Bpe,
}

/// A token that is found in the text before the model sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) normalized: bool,
    #[serde(default)]
    pub(super) special: bool,
}

/// A byte-pair model.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Bpe {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) dropout: Option<f32>,
    #[serde(default)]
    pub(super) unk_token: Option<String>,
    #[serde(default)]
    pub(super) continuing_subword_prefix: Option<String>,
    #[serde(default)]
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    pub(super) vocab: Vocab,
    pub(super) merges: Vec<Merge>,
}

/// Token texts and ids, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Vocab(pub(super) Vec<(String, u32)>);

/// A merge, as a pair or in the older form `"left right"`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Merge {
    Pair(String, String),
    Line(String),
}

impl Merge {
    /// The two sides; `None` where a line does not hold exactly one space.
    pub(super) fn sides(&self) -> Option<(&str, &str)> {
        match self {
            Merge::Pair(left, right) => Some((left, right)),
            Merge::Line(line) => line.split_once(' ').filter(|(_, right)| !right.contains(' ')),
        }
    }
}

impl TokenizerFile {
    /// A file without truncation and padding around `model`.
    pub(super) fn new(model: Bpe) -> Self {
        TokenizerFile {
            version: "1.0".into(),
            truncation: Value::Null,
            padding: Value::Null,
            added_tokens: Vec::new(),
            normalizer: Value::Null,
            pre_tokenizer: Value::Null,
            post_processor: Value::Null,
            decoder: Value::Null,
            model,
        }
    }

    /// Reads and checks the file's bytes.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_FILE_BYTES {
            return Err(Error::invalid(format!("{} bytes are more than {MAX_FILE_BYTES}", bytes.len())));
        }
        let read: serde_json::Result<Self> = serde_json::from_slice(bytes);
        if !read.as_ref().is_ok_and(|file| file.model.kind == BPE) {
            refuse_other_models(bytes)?;
        }
        let file = read.map_err(Error::invalid)?;
        file.check()?;
        Ok(file)
    }

    /// Checks everything that the tokenizers crate takes on trust.
    pub(super) fn check(&self) -> Result<()> {
        check_component("normalizer", &self.normalizer, &NORMALIZERS, 0)?;
        check_component("pre_tokenizer", &self.pre_tokenizer, &PRE_TOKENIZERS, 0)?;
        check_component("post_processor", &self.post_processor, &POST_PROCESSORS, 0)?;
        check_component("decoder", &self.decoder, &DECODERS, 0)?;
        self.model.check()?;
        for token in &self.added_tokens {
            if token.content.is_empty() || token.id > MAX_ID {
                return Err(Error::invalid(format!(
                    "added token {} {:?} has no text or too large an id",
                    token.id, token.content
                )));
            }
        }
        Ok(())
    }

    /// The ids that the post-processor's template puts before and after a text, if it has one.
    pub(super) fn special_frame(&self) -> Result<Option<(Vec<u32>, Vec<u32>)>> {
        find_template(&self.post_processor).map(frame_of_template).transpose()
    }
}

impl Bpe {
    fn check(&self) -> Result<()> {
        if self.dropout.is_some_and(|p| p != 0.0) {
            return Err(Error::unsupported("model.dropout: tokenizing would be random"));
        }
        let affixes = [&self.continuing_subword_prefix, &self.end_of_word_suffix];
        if affixes.iter().any(|affix| affix.as_ref().is_some_and(|text| !text.is_empty())) {
            return Err(Error::unsupported("model.continuing_subword_prefix and end_of_word_suffix"));
        }
        let tokens = self.vocab.check()?;
        let known = |text: &str| tokens.contains(text);
        if let Some(unk) = self.unk_token.as_deref().filter(|unk| !known(unk)) {
            return Err(Error::invalid(format!("model.unk_token {unk:?} is not in the vocabulary")));
        }
        let mut joined = String::new();
        for (rank, merge) in self.merges.iter().enumerate() {
            let Some((left, right)) = merge.sides() else {
                return Err(Error::invalid(format!("model.merges[{rank}] is not two tokens")));
            };
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            if let Some(missing) = [left, right, &joined].into_iter().find(|text| !known(text)) {
                return Err(Error::invalid(format!("model.merges[{rank}]: {missing:?} is not in the vocabulary")));
            }
        }
        Ok(())
    }
}

impl Vocab {
    /// The set of texts, where texts and ids are unique and the ids are small.
    fn check(&self) -> Result<HashSet<&str>> {
        let mut texts = HashSet::with_capacity(self.0.len());
        let mut by_id: HashMap<u32, &str> = HashMap::with_capacity(self.0.len());
        for (text, id) in &self.0 {
            if *id > MAX_ID {
                return Err(Error::invalid(format!("model.vocab: {text:?} has id {id}, above {MAX_ID}")));
            }
            if !texts.insert(text.as_str()) {
                return Err(Error::invalid(format!("model.vocab: {text:?} appears twice")));
            }
            if let Some(other) = by_id.insert(*id, text) {
                return Err(Error::invalid(format!("model.vocab: {other:?} and {text:?} share id {id}")));
            }
        }
        Ok(texts)
    }
}

impl Serialize for Vocab {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (text, id) in &self.0 {
            map.serialize_entry(text, id)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vocab;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of token texts and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Vocab(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// By hand, because serde would keep each merge in a tree to try one form after the other.
impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Merge;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a merge: two texts, or one with a space between them")
            }

            fn visit_str<E>(self, line: &str) -> Result<Merge, E> {
                Ok(Merge::Line(line.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Merge, A::Error> {
                match (pair.next_element()?, pair.next_element()?, pair.next_element::<IgnoredAny>()?) {
                    (Some(left), Some(right), None) => Ok(Merge::Pair(left, right)),
                    _ => Err(A::Error::custom("a merge is not two texts")),
                }
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// Names the model's type where the file could not be read as one of byte pairs: the fields of another type do not fit.
fn refuse_other_models(bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct Peek {
        model: PeekModel,
    }
    #[derive(Deserialize)]
    struct PeekModel {
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let peek: Peek = serde_json::from_slice(bytes).map_err(Error::invalid)?;
    match peek.model.kind.as_deref() {
        Some(BPE) => Ok(()),
        Some(other) => Err(Error::unsupported(format!("tokenizer model type {other:?} (only {BPE:?} is known)"))),
        None => Err(Error::invalid("key `model.type` is missing")),
    }
}

/// Checks a normalizer, pre-tokenizer, post-processor or decoder and all within it against the known
/// types.
fn check_component(what: &str, value: &Value, known: &[&str], depth: usize) -> Result<()> {
    if value.is_null() {
        return Ok(());
    }
    let Some(kind) = value["type"].as_str() else {
        return Err(Error::invalid(format!("{what} has no `type`")));
    };
    if depth > MAX_DEPTH || !known.contains(&kind) {
        return Err(Error::unsupported(format!("{what} of type {kind:?} (known: {})", known.join(", "))));
    }
    if kind == "Strip" && value["stop"] != json!(0) {
        return Err(Error::unsupported(format!("{what} Strip with `stop` other than 0")));
    }
    if kind != "Sequence" {
        return Ok(());
    }
    let parts = sequence_parts(value).ok_or_else(|| Error::invalid(format!("{what} Sequence without a list")))?;
    parts.iter().try_for_each(|part| check_component(what, part, known, depth + 1))
}

/// The list of a `Sequence`, whose key differs between the kinds of component.
fn sequence_parts(value: &Value) -> Option<&Vec<Value>> {
    ["normalizers", "pretokenizers", "processors", "decoders"].iter().find_map(|key| value[*key].as_array())
}

fn find_template(post_processor: &Value) -> Option<&Value> {
    match post_processor["type"].as_str()? {
        "TemplateProcessing" => Some(post_processor),
        "Sequence" => sequence_parts(post_processor)?.iter().find_map(find_template),
        _ => None,
    }
}

/// What `single`, a list like `[{"SpecialToken": ..}, {"Sequence": ..}]`, puts around the text.
fn frame_of_template(template: &Value) -> Result<(Vec<u32>, Vec<u32>)> {
    let broken = || Error::invalid("post_processor TemplateProcessing: `single` is not tokens around one sequence");
    let pieces = template["single"].as_array().ok_or_else(broken)?;
    let text_at = pieces.iter().position(|piece| piece["Sequence"]["id"] == json!("A")).ok_or_else(broken)?;
    let ids_of = |pieces: &[Value]| -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for piece in pieces {
            let name = piece["SpecialToken"]["id"].as_str().ok_or_else(broken)?;
            let listed = template["special_tokens"][name]["ids"].as_array().ok_or_else(broken)?;
            for id in listed {
                ids.push(id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(broken)?);
            }
        }
        Ok(ids)
    };
    Ok((ids_of(&pieces[..text_at])?, ids_of(&pieces[text_at + 1..])?))
}
