//! Rows of training data from JSONL and JSON files.
//!
//! The format is found from the keys of the first row, in the order of [`Format`]'s list; every other
//! row must be of the same format.

use std::path::Path;

use kinglet_tensor::{Error, Result};
use serde_json::{Map, Value};

use crate::formats;
use crate::template::Message;

/// How a row says what is asked and what is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `messages`: [{`role`, `content`}, ..], and perhaps `tools`.
    Messages,
    /// ShareGPT: `conversations`: [{`from`: human | gpt | system, `value`}, ..], perhaps `system`, `tools`.
    ShareGpt,
    /// Alpaca: `instruction`, `output`, and perhaps `input`, `system`, `history`: [[user, reply], ..].
    Alpaca,
    /// `prompt` and `completion`: two texts, or two lists of messages.
    PromptCompletion,
    /// `text`: all of it is learnt.
    Text,
}

/// All formats with the key that tells each one, in the order of the search.
const BY_KEY: [(&str, Format); 5] = [
    ("messages", Format::Messages),
    ("conversations", Format::ShareGpt),
    ("instruction", Format::Alpaca),
    ("prompt", Format::PromptCompletion),
    ("text", Format::Text),
];

/// One row and the line on which it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Counted from 1.
    pub line: usize,
    /// What the row holds.
    pub content: RowContent,
}

/// The content of a row, whatever its format was.
#[derive(Clone, Debug, PartialEq)]
pub enum RowContent {
    /// One question and its answer, as texts (Alpaca, or string prompt and completion).
    Pair {
        /// Turns before the question: a system message, a history.
        before: Vec<Message>,
        /// The user's text.
        prompt: String,
        /// The assistant's text.
        completion: String,
    },
    /// A whole chat.
    Chat {
        /// The messages in order.
        messages: Vec<Message>,
        /// JSON schemas of tools.
        tools: Option<Value>,
        /// Assistant messages from this index on are learnt; those before are part of a prompt.
        first_target: usize,
    },
    /// Plain text.
    Text(String),
}

/// The rows of a file.
#[derive(Clone, Debug)]
pub struct Dataset {
    name: String,
    format: Format,
    rows: Vec<Row>,
}

impl Dataset {
    /// Reads a JSONL file (one object a line) or a JSON file (an array of objects).
    ///
    /// # Errors
    /// A file that cannot be read, is empty or is no UTF-8; a row that is no JSON, lacks a key, has a
    /// wrong type or no answer: with file, line and key.
    pub fn from_file(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| Error::io(format!("{name}: cannot read the rows"), e))?;
        Self::from_bytes(&bytes, &name)
    }

    /// Like [`Dataset::from_file`]; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Dataset::from_file`].
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Self> {
        let text = utf8(bytes).map_err(|e| e.context(name))?;
        let objects = read_objects(text).map_err(|(line, e)| at(name, line, e))?;
        let Some((line, first)) = objects.first() else {
            return Err(Error::invalid(format!("{name}: the file has no rows")));
        };
        let (first_line, format) = (*line, detect(first).map_err(|e| at(name, *line, e))?);
        let row = |(line, object)| {
            check_same_format(&object, format, first_line).map_err(|e| at(name, line, e))?;
            let content = formats::read_row(format, object).map_err(|e| at(name, line, e))?;
            Ok(Row { line, content })
        };
        let rows = objects.into_iter().map(row).collect::<Result<_>>()?;
        Ok(Dataset { name: name.to_owned(), format, rows })
    }

    /// The file's name, as errors show it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The format that was found.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The rows, in the order of the file; never empty.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// An error at a line of a file.
pub(crate) fn at(name: &str, line: usize, error: Error) -> Error {
    error.context(format!("{name}:{line}"))
}

type Object = Map<String, Value>;
type AtLine<T> = Result<T, (usize, Error)>;

/// What a file that is no text may be, by its first bytes, and what to do.
const FOREIGN: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"PAR1", "a Parquet file: write its rows as JSONL"),
    (b"\xff\xfe", "UTF-16: write it as UTF-8"),
];

fn utf8(bytes: &[u8]) -> Result<&str> {
    if let Some((_, what)) = FOREIGN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Err(Error::invalid(format!("the file is {what}")));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + count_lines(&bytes[..e.valid_up_to()]);
        Error::invalid(format!("line {line} is not UTF-8"))
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&b| b == b'\n').count()
}

/// A file that starts with `[` is one JSON array; any other is JSONL.
fn read_objects(text: &str) -> AtLine<Vec<(usize, Object)>> {
    match text.trim_start().starts_with('[') {
        true => read_array(text),
        false => read_lines(text),
    }
}

fn read_lines(text: &str) -> AtLine<Vec<(usize, Object)>> {
    let numbered = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    let rows = numbered.filter(|(_, line)| !line.trim().is_empty());
    rows.map(|(line, json)| match serde_json::from_str(json) {
        Ok(value) => object(value).map(|object| (line, object)).map_err(|e| (line, e)),
        Err(e) if e.is_eof() => {
            Err((line, Error::invalid(format!("{}: a row must be whole on its line", bad_json(&e)))))
        }
        Err(e) => Err((line, Error::invalid(format!("{}: each line must be one JSON object", bad_json(&e))))),
    })
    .collect()
}

/// Reads an array element by element, to know the line of each.
fn read_array(text: &str) -> AtLine<Vec<(usize, Object)>> {
    let mut rows = Vec::new();
    let mut rest = text.trim_start()[1..].trim_start();
    let line_of = |rest: &str| 1 + count_lines(&text.as_bytes()[..text.len() - rest.len()]);
    let expected =
        |what: &str, rest: &str| (line_of(rest), Error::invalid(format!("expected {what} in the JSON array")));
    // Lines are counted from the last row on, so that a long array is not counted again and again.
    let (mut line, mut counted) = (1, 0);
    loop {
        if rows.is_empty() && rest.starts_with(']') {
            break;
        }
        let start = text.len() - rest.len();
        line += count_lines(&text.as_bytes()[counted..start]);
        counted = start;
        let mut elements = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let value = match elements.next() {
            Some(Ok(value)) => value,
            Some(Err(e)) => return Err((line + e.line() - 1, bad_json(&e))),
            None => return Err(expected("a row or `]`", rest)),
        };
        rows.push((line, object(value).map_err(|e| (line, e))?));
        rest = rest[elements.byte_offset()..].trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start(),
            None if rest.starts_with(']') => break,
            None => return Err(expected("`,` or `]`", rest)),
        }
    }
    match rest[1..].trim().is_empty() {
        true => Ok(rows),
        false => Err((line_of(rest), Error::invalid("there is text after the JSON array"))),
    }
}

fn object(value: Value) -> Result<Object> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(Error::invalid("a row must be a JSON object")),
    }
}

/// The parser's message without its line, which counts from the row.
fn bad_json(error: &serde_json::Error) -> Error {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    Error::invalid(format!("not valid JSON: {message} (column {})", error.column()))
}

/// Refuses a row that lacks the key of the file's format and has that of another.
fn check_same_format(row: &Object, format: Format, first_line: usize) -> Result<()> {
    let key = |format| BY_KEY.iter().find(|(_, known)| *known == format).map_or("", |(key, _)| key);
    match detect(row) {
        Ok(other) if !row.contains_key(key(format)) => Err(Error::invalid(format!(
            "the format changes here: this row has `{}`, line {first_line} has `{}`; give rows of one format a file",
            key(other),
            key(format)
        ))),
        _ => Ok(()),
    }
}

fn detect(first: &Object) -> Result<Format> {
    let found = BY_KEY.iter().find(|(key, _)| first.contains_key(*key));
    found.map(|(_, format)| *format).ok_or_else(|| {
        let known: Vec<_> = BY_KEY.iter().map(|(key, _)| format!("`{key}`")).collect();
        let has: Vec<_> = first.keys().map(|key| format!("`{key}`")).collect();
        Error::invalid(format!(
            "no key tells the format: one of {} is needed, found {}",
            known.join(", "),
            if has.is_empty() { "none".into() } else { has.join(", ") }
        ))
    })
}
