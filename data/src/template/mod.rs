//! Chat templates: Jinja as transformers runs it (`utils/chat_template_utils.py`).

mod json;
mod strftime;
#[cfg(test)]
mod tests;

use std::path::Path;

use kinglet_tensor::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::read::read_at_most;

/// The largest template that is read, in bytes.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// The longest text that a template may make, in bytes.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Instructions that one rendering may run: about a second.
const FUEL: u64 = 10_000_000;
const RECURSION_LIMIT: usize = 100;

/// The names by which templates know the special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
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

/// What a template is given besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Ends the text where the assistant's next turn begins.
    pub add_generation_prompt: bool,
    /// JSON schemas of tools.
    pub tools: Option<Value>,
    /// More variables, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    origin: String,
    special_tokens: SpecialTokens,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// Compiles `source`. `origin` (a file or a metadata key) names it in errors.
    ///
    /// # Errors
    /// A template that does not parse or is larger than 1 MiB, with its origin and line.
    pub fn new(source: &str, origin: &str, special_tokens: &SpecialTokens) -> Result<Self> {
        Self::from_json(&Value::String(source.to_owned()), origin, special_tokens)
    }

    /// Reads and compiles a template file.
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
    pub(crate) fn from_json(value: &Value, origin: &str, special_tokens: &SpecialTokens) -> Result<Self> {
        let named = named_sources(value).map_err(|e| e.context(origin))?;
        let mut environment = environment();
        let mut template_source = None;
        for (name, source) in named {
            if source.len() > MAX_TEMPLATE_BYTES {
                return Err(Error::invalid(format!(
                    "{origin}: a chat template of {} bytes is too large",
                    source.len()
                )));
            }
            environment
                .add_template_owned(name.to_owned(), open_generation_blocks(source))
                .map_err(|e| template_error(origin, &e))?;
            if name == DEFAULT {
                template_source = Some(source.to_owned());
            }
        }
        let source = template_source
            .ok_or_else(|| Error::invalid(format!("{origin}: no chat template is named \"default\"")))?;
        Ok(ChatTemplate { environment, source, origin: origin.to_owned(), special_tokens: special_tokens.clone() })
    }

    /// Lets the template ask for the time: `unix_seconds` is what `strftime_now` will always show.
    /// Without it that function is undefined, and templates fall back to a date of their own: a chat
    /// is then rendered alike on every day.
    #[must_use]
    pub fn with_clock(mut self, unix_seconds: i64) -> Self {
        self.environment.add_function("strftime_now", move |format: String| {
            strftime::strftime(&format, unix_seconds).map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e))
        });
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
    /// and line.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let mut context = Context {
            messages,
            tools: options.tools.as_ref(),
            documents: None,
            add_generation_prompt: options.add_generation_prompt,
            special_tokens: &self.special_tokens,
            variables: &options.variables,
        };
        if options.tools.as_ref().is_some_and(Value::is_null) {
            context.tools = None;
        }
        let has_tool_use = context.tools.is_some() && self.environment.get_template(TOOL_USE).is_ok();
        let name = if has_tool_use { TOOL_USE } else { DEFAULT };
        let fail = |e| template_error(&self.origin, &e);
        let template = self.environment.get_template(name).map_err(fail)?;
        let mut output = Capped(Vec::new());
        template.render_captured_to(minijinja::Value::from(Serde(&context)), &mut output).map_err(fail)?;
        String::from_utf8(output.0).map_err(|e| Error::invalid(e).context(&self.origin))
    }
}

/// The variables of a template.
#[derive(Serialize)]
struct Context<'a> {
    messages: &'a [Message],
    tools: Option<&'a Value>,
    documents: Option<&'a Value>,
    add_generation_prompt: bool,
    #[serde(flatten)]
    special_tokens: &'a SpecialTokens,
    #[serde(flatten)]
    variables: &'a Map<String, Value>,
}

/// A writer that refuses to grow without end.
struct Capped(Vec<u8>);

impl std::io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(std::io::Error::other("the rendered chat is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.add_filter("tojson", json::tojson);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment
}

/// Python can iterate over anything but numbers and None; minijinja also over none.
fn is_iterable(value: &minijinja::Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Python's texts and dicts are sequences too: they have a length and items.
fn is_sequence(value: &minijinja::Value) -> bool {
    matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// The (name, source) pairs of a `chat_template` value.
fn named_sources(value: &Value) -> Result<Vec<(&str, &str)>> {
    let broken = || Error::invalid("`chat_template` is neither a text nor a list of {name, template}");
    match value {
        Value::String(source) => Ok(vec![(DEFAULT, source)]),
        Value::Array(list) => {
            list.iter().map(|entry| entry["name"].as_str().zip(entry["template"].as_str()).ok_or_else(broken)).collect()
        }
        _ => Err(broken()),
    }
}

/// Makes `{% generation %}` blocks, which mark the assistant's text for transformers, into blocks that
/// Jinja knows and that always run. kinglet finds the assistant's text by itself.
fn open_generation_blocks(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        output.push_str(before);
        let Some(end) = tag[2..].find("%}").map(|end| end + 4) else {
            rest = tag;
            break;
        };
        let body = tag[2..end - 2].trim_matches(['-', '+']).trim();
        let replacement = match body {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match replacement {
            Some(statement) => output.push_str(&tag[..end].replace(body, statement)),
            None => output.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    output.push_str(rest);
    output
}

fn template_error(origin: &str, error: &minijinja::Error) -> Error {
    let mut what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(source) = std::error::Error::source(error) {
        what = format!("{what}: {source}");
    }
    match error.line() {
        Some(line) => Error::invalid(format!("chat template {origin}, line {line}: {what}")),
        None => Error::invalid(format!("chat template {origin}: {what}")),
    }
}
