//! Literals and constant expressions, with the rules of PTX: integers have 64 bits and are signed unless said.

use super::lexer::{Kind, Token};
use super::parser::Parser;
use super::tree::Number;
use crate::error::{Error, Result};

/// How deep parentheses and signs of an expression may nest.
const MAX_DEPTH: u32 = 64;

/// What `WARP_SZ` stands for.
const WARP_SIZE: u64 = 32;

impl Number {
    /// A signed integer.
    pub(crate) fn int(value: i64) -> Self {
        Number::Int { bits: value as u64, unsigned: false }
    }

    fn truth(value: bool) -> Self {
        Number::int(value.into())
    }

    fn as_f64(self) -> Option<f64> {
        match self {
            Number::F64(value) => Some(value),
            _ => None,
        }
    }
}

/// The value of a number's text.
pub(super) fn literal(token: Token<'_>) -> Result<Number> {
    parse_literal(token.text).ok_or_else(|| Error::parse(token.line, format!("{} is no number", token.text)))
}

fn parse_literal(text: &str) -> Option<Number> {
    let bits = |radix: u32, digits: &str| u64::from_str_radix(digits, radix).ok();
    match text.as_bytes() {
        [b'0', b'f' | b'F', digits @ ..] if digits.len() == 8 => {
            return bits(16, &text[2..]).map(|bits| Number::F32(bits as u32));
        }
        [b'0', b'd' | b'D', digits @ ..] if digits.len() == 16 => {
            return bits(16, &text[2..]).map(|bits| Number::F64(f64::from_bits(bits)));
        }
        _ => {}
    }
    let (digits, suffix) = match text.strip_suffix(['U', 'u']) {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    let value = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => bits(16, &digits[2..])?,
        [b'0', b'b' | b'B', ..] => bits(2, &digits[2..])?,
        [b'0', _, ..] if digits.bytes().all(|byte| byte.is_ascii_digit()) => bits(8, &digits[1..])?,
        _ if digits.bytes().all(|byte| byte.is_ascii_digit()) => bits(10, digits)?,
        // A decimal point or exponent; nothing else that Rust would read (`inf`, `1_000`).
        _ if !suffix && digits.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte)) => {
            return digits.parse().ok().map(Number::F64);
        }
        _ => return None,
    };
    Some(Number::Int { bits: value, unsigned: suffix || i64::try_from(value).is_err() })
}

/// How strongly a binary operator binds; `?:` binds less than all.
fn precedence(operator: &str) -> Option<u32> {
    Some(match operator {
        "||" => 1,
        "&&" => 2,
        "|" => 3,
        "^" => 4,
        "&" => 5,
        "==" | "!=" => 6,
        "<" | "<=" | ">" | ">=" => 7,
        "<<" | ">>" => 8,
        "+" | "-" => 9,
        "*" | "/" | "%" => 10,
        _ => return None,
    })
}

impl<'a> Parser<'a> {
    /// A constant expression.
    pub(super) fn expression(&mut self) -> Result<Number> {
        self.conditional(0)
    }

    /// An integer constant, as a signed number.
    pub(super) fn integer(&mut self) -> Result<i64> {
        let line = self.line();
        match self.expression()? {
            Number::Int { bits, .. } => Ok(bits as i64),
            _ => Err(Error::parse(line, "an integer is expected here")),
        }
    }

    fn conditional(&mut self, depth: u32) -> Result<Number> {
        let line = self.line();
        let condition = self.binary(1, depth)?;
        if !self.accept("?")? {
            return Ok(condition);
        }
        let yes = self.conditional(depth + 1)?;
        self.expect(":")?;
        let no = self.conditional(depth + 1)?;
        match condition {
            Number::Int { bits, .. } => Ok(if bits == 0 { no } else { yes }),
            _ => Err(Error::parse(line, "the condition of ?: is no integer")),
        }
    }

    fn binary(&mut self, least: u32, depth: u32) -> Result<Number> {
        let mut left = self.unary(depth)?;
        while self.peek().kind == Kind::Punct {
            let operator = *self.peek();
            let Some(strength) = precedence(operator.text).filter(|&strength| strength >= least) else { break };
            self.advance()?;
            let right = self.binary(strength + 1, depth + 1)?;
            left = apply(operator.text, left, right).ok_or_else(|| {
                Error::parse(operator.line, format!("the constant expression has no value ({})", operator.text))
            })?;
        }
        Ok(left)
    }

    fn unary(&mut self, depth: u32) -> Result<Number> {
        let token = *self.peek();
        if depth > MAX_DEPTH {
            return Err(Error::parse(token.line, "the constant expression nests too deep"));
        }
        self.advance()?;
        match (token.kind, token.text) {
            (Kind::Number, _) => literal(token),
            (Kind::Word, "WARP_SZ") => Ok(Number::Int { bits: WARP_SIZE, unsigned: true }),
            (Kind::Punct, "(") => self.parenthesis(depth),
            (Kind::Punct, "+" | "-" | "!" | "~") => {
                let value = self.unary(depth + 1)?;
                negate(token.text, value)
                    .ok_or_else(|| Error::parse(token.line, format!("{} does not take a float", token.text)))
            }
            _ => Err(Error::parse(token.line, format!("a constant is expected, not {}", token.text))),
        }
    }

    /// `(expression)` or the casts `(.s64)` and `(.u64)`.
    fn parenthesis(&mut self, depth: u32) -> Result<Number> {
        let cast = *self.peek();
        if cast.kind != Kind::Dot {
            let value = self.conditional(depth + 1)?;
            self.expect(")")?;
            return Ok(value);
        }
        self.advance()?;
        self.expect(")")?;
        match (cast.text, self.unary(depth + 1)?) {
            (".s64", Number::Int { bits, .. }) => Ok(Number::Int { bits, unsigned: false }),
            (".u64", Number::Int { bits, .. }) => Ok(Number::Int { bits, unsigned: true }),
            _ => Err(Error::parse(cast.line, "only integers are cast, to .s64 and .u64")),
        }
    }
}

fn negate(operator: &str, value: Number) -> Option<Number> {
    Some(match (operator, value) {
        ("+", value) => value,
        ("-", Number::F64(value)) => Number::F64(-value),
        ("-", Number::F32(bits)) => Number::F32(bits ^ (1 << 31)),
        ("-", Number::Int { bits, unsigned }) => Number::Int { bits: bits.wrapping_neg(), unsigned },
        ("!", Number::Int { bits, .. }) => Number::truth(bits == 0),
        ("~", Number::Int { bits, unsigned }) => Number::Int { bits: !bits, unsigned },
        _ => return None,
    })
}

fn apply(operator: &str, left: Number, right: Number) -> Option<Number> {
    if let (Number::Int { bits: a, unsigned: x }, Number::Int { bits: b, unsigned: y }) = (left, right) {
        return integers(operator, a, b, x, x || y);
    }
    let (a, b) = (left.as_f64()?, right.as_f64()?);
    Some(match operator {
        "+" => Number::F64(a + b),
        "-" => Number::F64(a - b),
        "*" => Number::F64(a * b),
        "/" => Number::F64(a / b),
        "==" => Number::truth(a == b),
        "!=" => Number::truth(a != b),
        "<" => Number::truth(a < b),
        "<=" => Number::truth(a <= b),
        ">" => Number::truth(a > b),
        ">=" => Number::truth(a >= b),
        _ => return None,
    })
}

/// Wraps at 64 bits; `None` for a division by zero. `left_unsigned` alone says how `>>` shifts.
fn integers(operator: &str, a: u64, b: u64, left_unsigned: bool, unsigned: bool) -> Option<Number> {
    let (sa, sb) = (a as i64, b as i64);
    let less = if unsigned { a < b } else { sa < sb };
    let shift = b.min(64) as u32;
    let bits = match operator {
        "+" => a.wrapping_add(b),
        "-" => a.wrapping_sub(b),
        "*" => a.wrapping_mul(b),
        "/" if b == 0 => return None,
        "/" => {
            if unsigned {
                a / b
            } else {
                sa.wrapping_div(sb) as u64
            }
        }
        "%" if b == 0 => return None,
        "%" => {
            if unsigned {
                a % b
            } else {
                sa.wrapping_rem(sb) as u64
            }
        }
        "&" => a & b,
        "|" => a | b,
        "^" => a ^ b,
        "<<" => a.checked_shl(shift).unwrap_or(0),
        ">>" if left_unsigned => a.checked_shr(shift).unwrap_or(0),
        ">>" => (sa >> shift.min(63)) as u64,
        "==" => return Some(Number::truth(a == b)),
        "!=" => return Some(Number::truth(a != b)),
        "<" => return Some(Number::truth(less)),
        ">=" => return Some(Number::truth(!less)),
        ">" => return Some(Number::truth(!less && a != b)),
        "<=" => return Some(Number::truth(less || a == b)),
        "&&" => return Some(Number::truth(a != 0 && b != 0)),
        "||" => return Some(Number::truth(a != 0 || b != 0)),
        _ => return None,
    };
    let unsigned = if matches!(operator, "<<" | ">>") { left_unsigned } else { unsigned };
    Some(Number::Int { bits, unsigned })
}
