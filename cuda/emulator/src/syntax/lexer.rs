//! PTX text as tokens.

use crate::error::{Error, Result};

/// What kind of token it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name with everything that hangs on it: `%r1`, `ld.global.L1::no_allocate.f32`, `$L__BB0_1`, `_`.
    Word,
    /// A directive or a modifier that stands alone: `.reg`, `.b32`.
    Dot,
    /// A number, not yet looked into.
    Number,
    /// What stands between double quotes, without them.
    String,
    /// An operator or a bracket, of one or two characters.
    Punct,
    /// The end of the text.
    End,
}

/// A token and where it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    pub(super) line: u32,
}

impl Token<'_> {
    /// Whether it is the operator `text`.
    pub(super) fn is(&self, text: &str) -> bool {
        self.kind == Kind::Punct && self.text == text
    }

    /// Whether it is the directive `text`, the dot included.
    pub(super) fn is_dot(&self, text: &str) -> bool {
        self.kind == Kind::Dot && self.text == text
    }
}

/// Reads tokens one after another.
#[derive(Clone)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl<'a> Lexer<'a> {
    /// NVRTC ends its text with a NUL byte, which is no part of it.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text: text.trim_end_matches('\0'), at: 0, line: 1 }
    }

    /// The next token; at the end of the text, [`Kind::End`] again and again.
    pub(super) fn next(&mut self) -> Result<Token<'a>> {
        self.skip_blanks()?;
        let Some(first) = self.byte(0) else {
            return Ok(Token { kind: Kind::End, text: "the end of the text", line: self.line });
        };
        match first {
            b'"' => self.string(),
            b'0'..=b'9' => Ok(self.token(Kind::Number, self.number_length())),
            b'.' if self.byte(1).is_some_and(is_name) => Ok(self.token(Kind::Dot, 1 + self.name_length(1, false))),
            b'%' if self.byte(1).is_some_and(is_name) => Ok(self.token(Kind::Word, 1 + self.name_length(1, true))),
            byte if is_name(byte) => Ok(self.token(Kind::Word, self.name_length(0, true))),
            byte if byte.is_ascii_punctuation() => Ok(self.token(Kind::Punct, self.punct_length())),
            _ => {
                let character = self.text[self.at..].chars().next().unwrap_or('?');
                Err(Error::parse(self.line, format!("unexpected character {character:?}")))
            }
        }
    }

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.at + ahead).copied()
    }

    fn token(&mut self, kind: Kind, length: usize) -> Token<'a> {
        let text = &self.text[self.at..self.at + length];
        self.at += length;
        Token { kind, text, line: self.line }
    }

    fn skip_blanks(&mut self) -> Result<()> {
        while let Some(byte) = self.byte(0) {
            match byte {
                b'\n' => {
                    self.line += 1;
                    self.at += 1;
                }
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'/' if self.byte(1) == Some(b'/') => {
                    self.at += self.text[self.at..].find('\n').unwrap_or(self.text.len() - self.at);
                }
                b'/' if self.byte(1) == Some(b'*') => self.skip_comment()?,
                _ => break,
            }
        }
        Ok(())
    }

    fn skip_comment(&mut self) -> Result<()> {
        let rest = &self.text[self.at + 2..];
        let Some(length) = rest.find("*/") else {
            return Err(Error::parse(self.line, "a comment that does not end"));
        };
        self.line += newlines(&rest[..length]);
        self.at += length + 4;
        Ok(())
    }

    fn string(&mut self) -> Result<Token<'a>> {
        let rest = &self.text[self.at + 1..];
        let mut escaped = false;
        let end = rest.bytes().position(|byte| {
            let end = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            end
        });
        let Some(length) = end else {
            return Err(Error::parse(self.line, "a string that does not end"));
        };
        let token = Token { kind: Kind::String, text: &rest[..length], line: self.line };
        self.line += newlines(token.text);
        self.at += length + 2;
        Ok(token)
    }

    /// The length of the name at `start`; with `dots`, also of the parts that follow behind dots. `::` belongs to a name.
    fn name_length(&self, start: usize, dots: bool) -> usize {
        let mut length = 0;
        while let Some(byte) = self.byte(start + length) {
            let next = self.byte(start + length + 1);
            match byte {
                _ if is_name(byte) => length += 1,
                b'.' if dots && next.is_some_and(is_name) => length += 2,
                b':' if next == Some(b':') && self.byte(start + length + 2).is_some_and(is_name) => length += 3,
                _ => break,
            }
        }
        length
    }

    /// Digits, letters (`0x1F`, `0f3F800000`, `12U`), one point, and the sign of a decimal exponent.
    fn number_length(&self) -> usize {
        let prefixed = self.byte(0) == Some(b'0') && self.byte(1).is_some_and(|byte| byte.is_ascii_alphabetic());
        let mut length = 0;
        let mut exponent = false;
        while let Some(byte) = self.byte(length) {
            match byte {
                b'.' if !prefixed && !exponent => {}
                b'+' | b'-' if !prefixed && matches!(self.byte(length - 1), Some(b'e' | b'E')) => {}
                _ if byte.is_ascii_alphanumeric() => exponent |= matches!(byte, b'e' | b'E'),
                _ => break,
            }
            length += 1;
        }
        length
    }

    fn punct_length(&self) -> usize {
        let Some(pair) = self.text.as_bytes().get(self.at..self.at + 2) else { return 1 };
        match pair {
            b"<<" | b">>" | b"==" | b"!=" | b"<=" | b">=" | b"&&" | b"||" => 2,
            _ => 1,
        }
    }
}

/// Letters and digits of names.
fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

fn newlines(text: &str) -> u32 {
    text.bytes().filter(|&byte| byte == b'\n').count() as u32
}
