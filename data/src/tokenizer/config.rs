//! The small JSON files beside `tokenizer.json`.

use kinglet_tensor::{Error, Result};
use serde_json::Value;

/// What kinglet reads from `tokenizer_config.json` (or the older `special_tokens_map.json`).
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    pub(super) bos_token: Option<String>,
    pub(super) eos_token: Option<String>,
    pub(super) unk_token: Option<String>,
    pub(super) pad_token: Option<String>,
    pub(super) add_bos_token: bool,
    pub(super) add_eos_token: bool,
    pub(super) chat_template: Option<Value>,
}

impl TokenizerConfig {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let json: Value = serde_json::from_slice(bytes).map_err(Error::invalid)?;
        if !json.is_object() {
            return Err(Error::invalid("not a JSON object"));
        }
        Ok(TokenizerConfig {
            bos_token: token_text(&json, "bos_token")?,
            eos_token: token_text(&json, "eos_token")?,
            unk_token: token_text(&json, "unk_token")?,
            pad_token: token_text(&json, "pad_token")?,
            add_bos_token: flag(&json, "add_bos_token")?,
            add_eos_token: flag(&json, "add_eos_token")?,
            chat_template: Some(&json["chat_template"]).filter(|t| !t.is_null()).cloned(),
        })
    }

    /// Takes from `other` what this one lacks.
    pub(super) fn or(self, other: TokenizerConfig) -> Self {
        TokenizerConfig {
            bos_token: self.bos_token.or(other.bos_token),
            eos_token: self.eos_token.or(other.eos_token),
            unk_token: self.unk_token.or(other.unk_token),
            pad_token: self.pad_token.or(other.pad_token),
            chat_template: self.chat_template.or(other.chat_template),
            ..self
        }
    }
}

/// `eos_token_id` of `generation_config.json` or `config.json`: a number, a list, null or absent.
pub(super) fn eos_ids(bytes: &[u8]) -> Result<Vec<u32>> {
    let json: Value = serde_json::from_slice(bytes).map_err(Error::invalid)?;
    let broken = || Error::invalid("key `eos_token_id` is neither an id nor a list of ids");
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(broken);
    match &json["eos_token_id"] {
        Value::Null => Ok(Vec::new()),
        Value::Array(ids) => ids.iter().map(id).collect(),
        value => Ok(vec![id(value)?]),
    }
}

/// A token given as its text or as an object with `content`.
fn token_text(json: &Value, key: &str) -> Result<Option<String>> {
    match &json[key] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        value => match value["content"].as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(Error::invalid(format!("key `{key}` is neither a text nor an object with `content`"))),
        },
    }
}

fn flag(json: &Value, key: &str) -> Result<bool> {
    match &json[key] {
        Value::Null => Ok(false),
        Value::Bool(value) => Ok(*value),
        _ => Err(Error::invalid(format!("key `{key}` is not true or false"))),
    }
}
