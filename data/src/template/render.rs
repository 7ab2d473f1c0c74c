//! A template that is compiled and run in this process. Its steps, recursion and output are bounded; the size and depth of
//! a value that it builds are not, as operators cannot be bounded from outside.

use super::{Message, RenderOptions, SpecialTokens, json, strftime};
use kinglet_tensor::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde::Serialize;
use serde_json::{Map, Value};

/// The largest template that is compiled, in bytes.
pub(super) const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// The longest text that a template may make, in bytes.
pub(super) const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// The longest message of a template that is shown, in characters.
const MAX_ERROR_CHARS: usize = 1000;
/// Instructions that one rendering may run: about a second.
const FUEL: u64 = 10_000_000;
const RECURSION_LIMIT: usize = 100;

pub(super) const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A compiled template, or a "default" one and others that go with it.
pub(super) struct Program {
    environment: Environment<'static>,
    origin: String,
    special_tokens: SpecialTokens,
}

impl Program {
    /// Compiles the value of `chat_template` in `tokenizer_config.json`. `origin` names it in errors.
    pub(super) fn compile(templates: &Value, origin: &str, special_tokens: &SpecialTokens) -> Result<Self> {
        let mut environment = environment();
        for (name, source) in named_sources(templates).map_err(|e| e.context(origin))? {
            if source.len() > MAX_TEMPLATE_BYTES {
                let bytes = source.len();
                return Err(Error::invalid(format!("{origin}: a chat template of {bytes} bytes is too large")));
            }
            environment
                .add_template_owned(name.to_owned(), open_generation_blocks(source))
                .map_err(|e| template_error(origin, &e))?;
        }
        Ok(Program { environment, origin: origin.to_owned(), special_tokens: special_tokens.clone() })
    }

    /// Defines `strftime_now`, which always shows `unix_seconds`.
    pub(super) fn set_clock(&mut self, unix_seconds: i64) {
        self.environment.add_function("strftime_now", move |format: String| {
            strftime::strftime(&format, unix_seconds).map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e))
        });
    }

    pub(super) fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let tools = options.tools.as_ref().filter(|tools| !tools.is_null());
        let context = Context {
            messages,
            tools,
            documents: None,
            add_generation_prompt: options.add_generation_prompt,
            special_tokens: &self.special_tokens,
            variables: &options.variables,
        };
        let has_tool_use = tools.is_some() && self.environment.get_template(TOOL_USE).is_ok();
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
pub(super) fn named_sources(value: &Value) -> Result<Vec<(&str, &str)>> {
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
pub(super) fn open_generation_blocks(source: &str) -> String {
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
    if let Some((end, _)) = what.char_indices().nth(MAX_ERROR_CHARS) {
        what.truncate(end);
        what.push_str(" ..");
    }
    match error.line() {
        Some(line) => Error::invalid(format!("chat template {origin}, line {line}: {what}")),
        None => Error::invalid(format!("chat template {origin}: {what}")),
    }
}
