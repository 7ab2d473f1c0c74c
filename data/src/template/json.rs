//! `tojson` as Python's `json.dumps` writes it; Jinja's own escapes HTML.

use std::fmt::Write;

use minijinja::value::{Kwargs, Serde};
use minijinja::{Error, ErrorKind, Value as JinjaValue};
use serde_json::Value;

/// The options of `json.dumps` that templates use.
struct Style {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
}

/// The filter, with the keyword arguments `ensure_ascii`, `indent`, `separators` and `sort_keys`.
pub(super) fn tojson(value: &JinjaValue, options: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is undefined"));
    }
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Serde<(String, String)>> = options.get("separators")?;
    let default_item = if indent.is_some() { "," } else { ", " };
    let (item_separator, key_separator) =
        separators.map_or_else(|| (default_item.into(), ": ".into()), |Serde(pair)| pair);
    let style = Style {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item_separator,
        key_separator,
    };
    options.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "tojson: the value is no JSON").with_source(e))?;
    let mut output = String::new();
    style.write(&json, 0, &mut output);
    Ok(output)
}

impl Style {
    fn write(&self, value: &Value, depth: usize, output: &mut String) {
        match value {
            Value::Null => output.push_str("null"),
            Value::Bool(value) => output.push_str(if *value { "true" } else { "false" }),
            Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => output.push_str(&python_float(float)),
                None => output.push_str(&number.to_string()),
            },
            Value::String(text) => self.write_text(text, output),
            Value::Array(items) => {
                self.write_all(['[', ']'], items.iter(), depth, output, |item, output| {
                    self.write(item, depth + 1, output);
                });
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|entry| entry.0);
                }
                self.write_all(['{', '}'], entries.into_iter(), depth, output, |(key, value), output| {
                    self.write_text(key, output);
                    output.push_str(&self.key_separator);
                    self.write(value, depth + 1, output);
                });
            }
        }
    }

    fn write_all<T>(
        &self,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        output: &mut String,
        mut write: impl FnMut(T, &mut String),
    ) {
        let empty = items.len() == 0;
        output.push(open);
        for (i, item) in items.enumerate() {
            if i > 0 {
                output.push_str(&self.item_separator);
            }
            self.new_line(depth + 1, output);
            write(item, output);
        }
        if !empty {
            self.new_line(depth, output);
        }
        output.push(close);
    }

    fn new_line(&self, depth: usize, output: &mut String) {
        if let Some(indent) = self.indent {
            output.push('\n');
            output.extend(std::iter::repeat_n(' ', indent.min(64) * depth));
        }
    }

    fn write_text(&self, text: &str, output: &mut String) {
        output.push('"');
        for c in text.chars() {
            match c {
                '"' => output.push_str("\\\""),
                '\\' => output.push_str("\\\\"),
                '\n' => output.push_str("\\n"),
                '\r' => output.push_str("\\r"),
                '\t' => output.push_str("\\t"),
                '\u{8}' => output.push_str("\\b"),
                '\u{c}' => output.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(output, "\\u{unit:04x}").expect("a String takes every write");
                    }
                }
                c => output.push(c),
            }
        }
        output.push('"');
    }
}

/// `repr(float)`: the shortest digits, with an exponent below 1e-4 and from 1e16.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values printed by Python's `repr`.
    #[test]
    fn floats_as_python_prints_them() {
        let cases = [
            (1.0, "1.0"),
            (0.0, "0.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
        ];
        for (value, expected) in cases {
            assert_eq!(python_float(value), expected);
        }
    }
}
