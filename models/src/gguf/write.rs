//! Writing GGUF: for fixtures and tests, so that every part of the reader can be fed.

use super::metadata::{Array, Value};
use crate::stored::StoredType;

/// A GGUF file of version 3 in the making: keys, then tensors, then [`Writer::finish`].
///
/// Nothing is checked, on purpose: tests also make malformed files with it.
#[derive(Default)]
pub struct Writer {
    keys: Vec<u8>,
    key_count: u64,
    infos: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

/// The alignment of tensor data.
const ALIGNMENT: usize = 32;

impl Writer {
    /// Adds a key.
    pub fn key(&mut self, key: &str, value: &Value) -> &mut Self {
        put_string(&mut self.keys, key);
        put_value(&mut self.keys, value);
        self.key_count += 1;
        self
    }

    /// Adds a tensor of `shape` (slowest dimension first) with its encoded `bytes`.
    ///
    /// # Panics
    /// When GGML has no number for `dtype`.
    pub fn tensor(&mut self, name: &str, dtype: StoredType, shape: &[usize], bytes: &[u8]) -> &mut Self {
        let id = dtype.ggml_id().expect("a type that GGUF has");
        put_string(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        for &size in shape.iter().rev() {
            self.infos.extend((size as u64).to_le_bytes());
        }
        self.infos.extend(id.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.tensor_count += 1;
        self
    }

    /// The bytes of the file.
    #[must_use]
    pub fn finish(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.key_count.to_le_bytes());
        file.extend(&self.keys);
        file.extend(&self.infos);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(&self.data);
        file
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |id: u32, bytes: &[u8]| {
        out.extend(id.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => put(0, &v.to_le_bytes()),
        Value::I8(v) => put(1, &v.to_le_bytes()),
        Value::U16(v) => put(2, &v.to_le_bytes()),
        Value::I16(v) => put(3, &v.to_le_bytes()),
        Value::U32(v) => put(4, &v.to_le_bytes()),
        Value::I32(v) => put(5, &v.to_le_bytes()),
        Value::F32(v) => put(6, &v.to_le_bytes()),
        Value::Bool(v) => put(7, &[u8::from(*v)]),
        Value::U64(v) => put(10, &v.to_le_bytes()),
        Value::I64(v) => put(11, &v.to_le_bytes()),
        Value::F64(v) => put(12, &v.to_le_bytes()),
        Value::String(v) => {
            put(8, &[]);
            put_string(out, v);
        }
        Value::Array(v) => {
            put(9, &[]);
            put_array(out, v);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    match array {
        Array::U8(v) => put_list(out, 0, v, |out, v| out.extend(v.to_le_bytes())),
        Array::I8(v) => put_list(out, 1, v, |out, v| out.extend(v.to_le_bytes())),
        Array::U16(v) => put_list(out, 2, v, |out, v| out.extend(v.to_le_bytes())),
        Array::I16(v) => put_list(out, 3, v, |out, v| out.extend(v.to_le_bytes())),
        Array::U32(v) => put_list(out, 4, v, |out, v| out.extend(v.to_le_bytes())),
        Array::I32(v) => put_list(out, 5, v, |out, v| out.extend(v.to_le_bytes())),
        Array::F32(v) => put_list(out, 6, v, |out, v| out.extend(v.to_le_bytes())),
        Array::Bool(v) => put_list(out, 7, v, |out, &v| out.push(u8::from(v))),
        Array::String(v) => put_list(out, 8, v, |out, v| put_string(out, v)),
        Array::Array(v) => put_list(out, 9, v, put_array),
        Array::U64(v) => put_list(out, 10, v, |out, v| out.extend(v.to_le_bytes())),
        Array::I64(v) => put_list(out, 11, v, |out, v| out.extend(v.to_le_bytes())),
        Array::F64(v) => put_list(out, 12, v, |out, v| out.extend(v.to_le_bytes())),
    }
}

fn put_list<T>(out: &mut Vec<u8>, id: u32, list: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(id.to_le_bytes());
    out.extend((list.len() as u64).to_le_bytes());
    list.iter().for_each(|v| put(out, v));
}
