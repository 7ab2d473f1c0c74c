//! The key-value part of a GGUF file.

use std::collections::BTreeMap;

use kinglet_tensor::{Error, Result};

use super::reader::Reader;

/// How deep arrays may lie in arrays.
const MAX_DEPTH: usize = 4;
/// Bytes that a key with its value takes at least: length, one letter, type, one byte.
const MIN_PAIR: usize = 8 + 1 + 4 + 1;

/// One value.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // the variants are GGUF's value types, under Rust's names
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// A list of values of one type.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // as above
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
}

impl Value {
    fn read(reader: &mut Reader<'_>, key: &str) -> Result<Self> {
        Ok(match reader.u32(key)? {
            0 => Value::U8(u8::from_le_bytes(reader.array(key)?)),
            1 => Value::I8(i8::from_le_bytes(reader.array(key)?)),
            2 => Value::U16(u16::from_le_bytes(reader.array(key)?)),
            3 => Value::I16(i16::from_le_bytes(reader.array(key)?)),
            4 => Value::U32(u32::from_le_bytes(reader.array(key)?)),
            5 => Value::I32(i32::from_le_bytes(reader.array(key)?)),
            6 => Value::F32(f32::from_le_bytes(reader.array(key)?)),
            7 => Value::Bool(boolean(reader, key)?),
            8 => Value::String(reader.string(key)?),
            9 => Value::Array(Array::read(reader, key, 1)?),
            10 => Value::U64(u64::from_le_bytes(reader.array(key)?)),
            11 => Value::I64(i64::from_le_bytes(reader.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(reader.array(key)?)),
            other => return Err(Error::invalid(format!("key {key:?}: unknown value type {other}"))),
        })
    }

    /// Any integer as an `i128`, so that the file's choice of width does not matter.
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

impl Array {
    /// Reads an array that lies `depth` deep.
    fn read(reader: &mut Reader<'_>, key: &str, depth: usize) -> Result<Self> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid(format!("key {key:?}: arrays more than {MAX_DEPTH} deep")));
        }
        Ok(match reader.u32(key)? {
            0 => Array::U8(list(reader, key, 1, |r| r.array(key).map(u8::from_le_bytes))?),
            1 => Array::I8(list(reader, key, 1, |r| r.array(key).map(i8::from_le_bytes))?),
            2 => Array::U16(list(reader, key, 2, |r| r.array(key).map(u16::from_le_bytes))?),
            3 => Array::I16(list(reader, key, 2, |r| r.array(key).map(i16::from_le_bytes))?),
            4 => Array::U32(list(reader, key, 4, |r| r.array(key).map(u32::from_le_bytes))?),
            5 => Array::I32(list(reader, key, 4, |r| r.array(key).map(i32::from_le_bytes))?),
            6 => Array::F32(list(reader, key, 4, |r| r.array(key).map(f32::from_le_bytes))?),
            7 => Array::Bool(list(reader, key, 1, |r| boolean(r, key))?),
            8 => Array::String(list(reader, key, 8, |r| r.string(key))?),
            9 => Array::Array(list(reader, key, 12, |r| Array::read(r, key, depth + 1))?),
            10 => Array::U64(list(reader, key, 8, |r| r.array(key).map(u64::from_le_bytes))?),
            11 => Array::I64(list(reader, key, 8, |r| r.array(key).map(i64::from_le_bytes))?),
            12 => Array::F64(list(reader, key, 8, |r| r.array(key).map(f64::from_le_bytes))?),
            other => return Err(Error::invalid(format!("key {key:?}: unknown value type {other}"))),
        })
    }

    /// Any integers as `i128`.
    fn integers(&self) -> Option<Vec<i128>> {
        fn widen<T: Copy + Into<i128>>(values: &[T]) -> Option<Vec<i128>> {
            Some(values.iter().map(|&v| v.into()).collect())
        }
        match self {
            Array::U8(v) => widen(v),
            Array::I8(v) => widen(v),
            Array::U16(v) => widen(v),
            Array::I16(v) => widen(v),
            Array::U32(v) => widen(v),
            Array::I32(v) => widen(v),
            Array::U64(v) => widen(v),
            Array::I64(v) => widen(v),
            _ => None,
        }
    }
}

fn boolean(reader: &mut Reader<'_>, key: &str) -> Result<bool> {
    match reader.array(key)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(Error::invalid(format!("key {key:?}: {other} is neither false nor true"))),
    }
}

/// A count, then that many elements of at least `min_bytes` each.
fn list<'a, T>(
    reader: &mut Reader<'a>,
    key: &str,
    min_bytes: usize,
    mut element: impl FnMut(&mut Reader<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    let count = reader.count(&format!("values of {key:?}"), min_bytes)?;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(element(reader)?);
    }
    Ok(values)
}

/// All keys with their values. The getters return `None` for a key that is not there, and an error
/// that names the key when its value is of another type or range.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let count = reader.count("metadata keys", MIN_PAIR)?;
        let mut pairs = BTreeMap::new();
        for _ in 0..count {
            let key = reader.string("a metadata key")?;
            if key.is_empty() || key.len() > usize::from(u16::MAX) {
                return Err(Error::invalid(format!("a metadata key is {} bytes long", key.len())));
            }
            let value = Value::read(reader, &key)?;
            if pairs.contains_key(&key) {
                return Err(Error::invalid(format!("key {key:?} appears twice")));
            }
            pairs.insert(key, value);
        }
        Ok(Metadata(pairs))
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All keys with their values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A string.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A truth value.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a truth value", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An integer of any width that fits in `u32`.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer from 0 to 2^32-1", |value| value.integer()?.try_into().ok())
    }

    /// An integer of any width that fits in `usize`.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn get_usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "an integer from 0", |value| value.integer()?.try_into().ok())
    }

    /// A number of either float type. An `f32` is given as the `f64` of the same shortest decimal
    /// form (1e-5, not 9.999999747378752e-6), which rounds to the same `f32`.
    ///
    /// # Errors
    /// When the value is something else, or not finite.
    pub fn get_f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |value| {
            match *value {
                Value::F32(v) => v.to_string().parse().ok(),
                Value::F64(v) => Some(v),
                _ => None,
            }
            .filter(|v: &f64| v.is_finite())
        })
    }

    /// A list of strings.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn get_strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "a list of strings", |value| match value {
            Value::Array(Array::String(list)) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// A list of `f32`.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn get_f32s(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "a list of f32", |value| match value {
            Value::Array(Array::F32(list)) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// A list of integers of any width that fit in `i64`.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn get_i64s(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "a list of integers", |value| match value {
            Value::Array(array) => array.integers()?.into_iter().map(|v| v.try_into().ok()).collect(),
            _ => None,
        })
    }

    /// Makes a missing key an error: `metadata.require(KEY, metadata.get_str(KEY))?`.
    ///
    /// # Errors
    /// When the key is missing, or `value` is an error already.
    pub fn require<T>(&self, key: &str, value: Result<Option<T>>) -> Result<T> {
        value?.ok_or_else(|| Error::invalid(format!("key {key:?} is missing")))
    }

    fn typed<'a, T>(&'a self, key: &str, what: &str, cast: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key)
            .map(|value| cast(value).ok_or_else(|| Error::invalid(format!("key {key:?} is not {what}"))))
            .transpose()
    }
}
