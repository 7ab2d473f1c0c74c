//! Chat templates: Jinja as transformers runs it (`utils/chat_template_utils.py`).

mod apart;
mod json;
mod render;
mod serve;
mod strftime;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::Path;

use kinglet_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::read::read_at_most;
use apart::Apart;
pub use apart::Renderer;
use render::{DEFAULT, MAX_TEMPLATE_BYTES, Program, named_sources};
pub(crate) use serve::Chat;
pub use serve::{MEMORY_LIMIT, serve};
pub use strftime::civil_from_days;

/// The names by which templates know the special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// Begins a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_token: Option<String>,
    /// Ends a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
    /// Stands for what the vocabulary lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unk_token: Option<String>,
    /// Fills up rows; kinglet never pads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad_token: Option<String>,
}

/// One message of a chat: an object with a `role`, mostly a `content`, and whatever else the template
/// understands (`tool_calls`, `name`, ..).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
pub struct Message(Map<String, Value>);

impl Message {
    /// A message of `role` with the text `content`.
    #[must_use]
    pub fn new(role: &str, content: &str) -> Self {
        let mut keys = Map::new();
        keys.insert("role".into(), role.into());
        keys.insert("content".into(), content.into());
        Message(keys)
    }

    /// Checks that `value` is a message: an object whose `role` is a text and whose `content` is a text,
    /// or null or absent where there are `tool_calls`.
    ///
    /// # Errors
    /// The key at fault.
    pub fn from_json(value: Value) -> Result<Self> {
        let Value::Object(keys) = value else { return Err(Error::invalid("a message is not an object")) };
        if !keys.get("role").is_some_and(Value::is_string) {
            return Err(Error::invalid("key `role` of a message is missing or not a text"));
        }
        match keys.get("content") {
            Some(Value::String(_)) => Ok(Message(keys)),
            None | Some(Value::Null) if keys.get("tool_calls").is_some_and(Value::is_array) => Ok(Message(keys)),
            _ => Err(Error::invalid("key `content` of a message is missing or not a text")),
        }
    }

    /// Who speaks: "system", "user", "assistant" or "tool".
    #[must_use]
    pub fn role(&self) -> &str {
        self.0["role"].as_str().unwrap_or_default()
    }

    /// The text, where there is one.
    #[must_use]
    pub fn content(&self) -> Option<&str> {
        self.0.get("content").and_then(Value::as_str)
    }

    /// The same message with another text.
    #[must_use]
    pub fn with_content(&self, content: &str) -> Self {
        let mut keys = self.0.clone();
        keys.insert("content".into(), content.into());
        Message(keys)
    }

    pub(crate) fn has_tool_calls(&self) -> bool {
        self.0.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
    }
}

impl TryFrom<Value> for Message {
    type Error = Error;

    fn try_from(value: Value) -> Result<Self> {
        Message::from_json(value)
    }
}

/// What a template is given besides the messages.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RenderOptions {
    /// Ends the text where the assistant's next turn begins.
    pub add_generation_prompt: bool,
    /// JSON schemas of tools.
    pub tools: Option<Value>,
    /// More variables, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

/// A compiled chat template.
///
/// It is a program of whoever made the model. How many steps it runs and how much it writes are bounded; how large a
/// value it builds is not, so in this process a hostile one can take all memory, for a time without end, or abort.
/// [`ChatTemplate::apart`] compiles and runs it in a process of its own, where all of that is an error.
pub struct ChatTemplate {
    source: String,
    origin: String,
    place: Place,
}

/// Where a template runs.
enum Place {
    Here(Program),
    Apart(Apart),
}

impl ChatTemplate {
    /// Compiles `source` in this process. `origin` (a file or a metadata key) names it in errors.
    ///
    /// # Errors
    /// A template that does not parse or is larger than 1 MiB, with its origin and line.
    pub fn new(source: &str, origin: &str, special_tokens: &SpecialTokens) -> Result<Self> {
        Self::from_json(&source.into(), origin, special_tokens, None)
    }

    /// Compiles `source` in a process of its own, which renders it too and ends with the template.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`]; a template that takes too much memory or time; a process that cannot be started.
    pub fn apart(source: &str, origin: &str, special_tokens: &SpecialTokens, renderer: &Renderer) -> Result<Self> {
        Self::from_json(&source.into(), origin, special_tokens, Some(renderer))
    }

    /// Reads and compiles a template file in this process.
    ///
    /// # Errors
    /// A file that cannot be read or does not parse.
    pub fn from_file(path: &Path, special_tokens: &SpecialTokens) -> Result<Self> {
        let origin = path.display().to_string();
        let bytes = read_at_most(path, MAX_TEMPLATE_BYTES)?;
        let source = std::str::from_utf8(&bytes).map_err(|e| Error::invalid(e).context(&origin))?;
        Self::new(source, &origin, special_tokens)
    }

    /// Compiles the value of `chat_template` in `tokenizer_config.json`: a text, or a list of
    /// `{name, template}` of which "default" is taken, and "tool_use" for chats with tools.
    pub(crate) fn from_json(
        templates: &Value,
        origin: &str,
        special_tokens: &SpecialTokens,
        renderer: Option<&Renderer>,
    ) -> Result<Self> {
        let named = named_sources(templates).map_err(|e| e.context(origin))?;
        // Of two with one name the last counts, as it does when they are compiled.
        let default = named.iter().rev().find(|(name, _)| *name == DEFAULT);
        let Some((_, source)) = default else {
            return Err(Error::invalid(format!("{origin}: no chat template is named \"default\"")));
        };
        let place = match renderer {
            None => Place::Here(Program::compile(templates, origin, special_tokens)?),
            Some(renderer) => Place::Apart(Apart::compile(templates, origin, special_tokens, renderer)?),
        };
        Ok(ChatTemplate { source: (*source).to_owned(), origin: origin.to_owned(), place })
    }

    /// Lets the template ask for the time: `unix_seconds` is what `strftime_now` will always show.
    /// Without it that function is undefined, and templates fall back to a date of their own: a chat
    /// is then rendered alike on every day.
    #[must_use]
    pub fn with_clock(mut self, unix_seconds: i64) -> Self {
        match &mut self.place {
            Place::Here(program) => program.set_clock(unix_seconds),
            Place::Apart(apart) => apart.set_clock(unix_seconds),
        }
        self
    }

    /// The template's text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where the template came from.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Renders a chat.
    ///
    /// # Errors
    /// The template raises an exception, fails, runs for too long or writes too much; with its origin
    /// and line. In a process of its own also: it takes too much memory or nests values too deeply.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let chat = Chat { messages: Cow::Borrowed(messages), options: Cow::Borrowed(options) };
        self.render_all(&[chat])?.remove(0)
    }

    /// Renders several chats, in less time than one after the other where they go to another process. An error for all
    /// of them says why that process ended.
    pub(crate) fn render_all(&self, chats: &[Chat<'_>]) -> Result<Vec<Result<String>>> {
        match &self.place {
            Place::Here(program) => {
                Ok(chats.iter().map(|chat| program.render(&chat.messages, &chat.options)).collect())
            }
            Place::Apart(apart) => apart.render_all(chats),
        }
    }
}
