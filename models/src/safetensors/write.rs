//! Writing safetensors as a stream: the header first, then each tensor's bytes as they are made, so
//! that a model larger than memory can be written.

use std::io::Write;

use kinglet_tensor::{Error, Result};
use serde_json::{Map, Value, json};

use super::{INDEX, SINGLE};
use crate::fs::Folder;
use crate::stored::StoredType;
use crate::weights;

/// The data section starts at a multiple of this many bytes.
const PADDING: usize = 64;

/// What the header says of a tensor that is to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// A plain type.
    pub dtype: StoredType,
    /// Its shape, slowest dimension first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes that the tensor takes.
    ///
    /// # Errors
    /// When the type is not one of safetensors, or the size overflows.
    fn bytes(&self) -> Result<usize> {
        let TensorSpec { name, dtype, shape } = self;
        if dtype.is_block() {
            return Err(Error::dtype("safetensors", format_args!("tensor {name:?}: {dtype} is not one of its types")));
        }
        dtype
            .bytes(shape)
            .ok_or_else(|| Error::shape("safetensors", format_args!("tensor {name:?}: {shape:?} overflows")))
    }
}

/// Writes one safetensors file of `tensors` to `out`.
///
/// `produce` is called once a tensor and writes its little-endian bytes, row-major. Tensors are
/// written in the order given, but for wider types coming first: the format allows no gaps, and so
/// each tensor is aligned for its type.
///
/// # Errors
/// When a name is empty or appears twice, a type is not one of safetensors, `produce` fails or
/// writes more or fewer bytes than its tensor has, or `out` fails.
pub fn write_file<W: Write>(
    out: &mut W,
    tensors: &[TensorSpec],
    mut produce: impl FnMut(&TensorSpec, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    write_ordered(out, &by_alignment(tensors)?, &mut produce)
}

/// Writes a model into `folder`: `model.safetensors`, or, where it is larger than `max_shard_bytes`,
/// shards of at most that size (a larger tensor has a shard of its own) and their index.
///
/// # Errors
/// As [`write_file`].
pub fn write_model(
    folder: &mut Folder<'_>,
    tensors: &[TensorSpec],
    max_shard_bytes: usize,
    mut produce: impl FnMut(&TensorSpec, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let shards = shards(by_alignment(tensors)?, max_shard_bytes)?;
    if let [single] = &shards[..] {
        return folder.write(SINGLE, |out| write_ordered(out, single, &mut produce));
    }
    let mut weight_map = std::collections::BTreeMap::new();
    let (mut total_size, mut total_parameters) = (0, 0);
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        folder.write(&file, |out| write_ordered(out, shard, &mut produce))?;
        for spec in shard {
            total_size += spec.bytes()?;
            total_parameters += spec.shape.iter().product::<usize>();
            weight_map.insert(spec.name.as_str(), file.clone());
        }
    }
    let metadata = json!({"total_parameters": total_parameters, "total_size": total_size});
    folder.write_json(INDEX, &json!({"metadata": metadata, "weight_map": weight_map}))
}

/// Cuts the list greedily into runs of at most `max_bytes`; there is always at least one.
fn shards(tensors: Vec<&TensorSpec>, max_bytes: usize) -> Result<Vec<Vec<&TensorSpec>>> {
    let (mut shards, mut room) = (vec![Vec::new()], max_bytes);
    for spec in tensors {
        let bytes = spec.bytes()?;
        let last = shards.last_mut().expect("the list starts with one shard");
        if bytes > room && !last.is_empty() {
            shards.push(vec![spec]);
            room = max_bytes.saturating_sub(bytes);
        } else {
            last.push(spec);
            room = room.saturating_sub(bytes);
        }
    }
    Ok(shards)
}

fn by_alignment(tensors: &[TensorSpec]) -> Result<Vec<&TensorSpec>> {
    let mut seen = std::collections::HashSet::new();
    for spec in tensors {
        weights::check_name(&spec.name)?;
        if spec.name == "__metadata__" || !seen.insert(&spec.name) {
            return Err(Error::invalid(format!("safetensors: the name {:?} is taken", spec.name)));
        }
    }
    let mut ordered: Vec<&TensorSpec> = tensors.iter().collect();
    ordered.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.alignment()));
    Ok(ordered)
}

fn write_ordered<W: Write>(
    out: &mut W,
    tensors: &[&TensorSpec],
    produce: &mut impl FnMut(&TensorSpec, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let header = header(tensors)?;
    out.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| out.write_all(header.as_bytes()))
        .map_err(|e| Error::io("writing the header", e))?;
    for spec in tensors {
        let mut counted = Counted { out: &mut *out, left: spec.bytes()? };
        produce(spec, &mut counted).map_err(|e| e.context(format_args!("tensor {:?}", spec.name)))?;
        if counted.left != 0 {
            return Err(Error::invalid(format!("tensor {:?}: {} bytes were not written", spec.name, counted.left)));
        }
    }
    Ok(())
}

/// The JSON header, padded with blanks so that the data starts at a multiple of [`PADDING`].
fn header(tensors: &[&TensorSpec]) -> Result<String> {
    let mut object = Map::new();
    object.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut start = 0usize;
    for spec in tensors {
        let overflow = || Error::shape("safetensors", "the tensors together overflow");
        let end = start.checked_add(spec.bytes()?).ok_or_else(overflow)?;
        let info = json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [start, end]});
        object.insert(spec.name.clone(), info);
        start = end;
    }
    let mut text = Value::Object(object).to_string();
    let padded = (8 + text.len()).next_multiple_of(PADDING) - 8;
    text.extend(std::iter::repeat_n(' ', padded - text.len()));
    Ok(text)
}

/// Passes at most `left` bytes through: more is the producer's fault.
struct Counted<W> {
    out: W,
    left: usize,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.left {
            let what = format!("{} bytes too many for the tensor's shape", bytes.len() - self.left);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
        }
        let written = self.out.write(bytes)?;
        self.left -= written;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
