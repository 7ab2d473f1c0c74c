//! GGUF, the file format of llama.cpp: metadata and tensors of a model in one file.
//!
//! Versions 2 and 3, little-endian. Every number of the file is checked before it is used: counts
//! against the bytes that are left, sizes with checked arithmetic, extents against the file and
//! against each other. So no file can make the reader panic or reserve more than a few times the
//! file's own size.

mod metadata;
mod reader;
mod write;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kinglet_tensor::{Error, Result};

use crate::mmap::Mapped;
use crate::stored::StoredType;
use crate::weights::{self, Entry, MAX_TENSORS, WeightFiles};

pub use metadata::{Array, Metadata, Value};
use reader::Reader;
pub use write::Writer;

/// The alignment of tensor data where the file does not say.
const DEFAULT_ALIGNMENT: u32 = 32;
/// The largest alignment that is accepted.
const MAX_ALIGNMENT: u32 = 1 << 20;
/// GGML's limit of dimensions.
const MAX_DIMS: u32 = 4;
/// Bytes that one tensor takes in the list at least: name, dimensions, type, offset.
const MIN_TENSOR: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// An opened GGUF file.
#[derive(Debug)]
pub struct Gguf {
    /// Everything but the tensors.
    pub metadata: Metadata,
    /// The tensors, under GGUF's own names. Shapes have the slowest dimension first, as everywhere
    /// in kinglet; the file has the reverse.
    pub weights: WeightFiles,
}

impl Gguf {
    /// Opens `path`; `map` is [`Mapped::open`] or [`Mapped::open_unmapped`].
    ///
    /// # Errors
    /// When the file cannot be opened or is malformed, big-endian, of version 1, one part of
    /// several, or holds a tensor of a type that is not supported: the error names file, key and
    /// tensor.
    pub fn open(path: &Path, map: fn(&Path) -> Result<Mapped>) -> Result<Self> {
        let file = map(path)?;
        let (metadata, entries) = parse(file.as_ref()).map_err(|e| e.context(path.display()))?;
        Ok(Gguf { metadata, weights: WeightFiles::new(vec![Arc::new(file)], entries) })
    }
}

/// Reads and checks the header of a whole GGUF file, given as `bytes`.
///
/// # Errors
/// As [`Gguf::open`].
pub fn parse(bytes: &[u8]) -> Result<(Metadata, BTreeMap<String, Entry>)> {
    let mut reader = Reader::new(bytes);
    check_magic(&mut reader)?;
    let tensor_count = reader.count("tensors", MIN_TENSOR)?;
    if tensor_count > MAX_TENSORS {
        return Err(Error::invalid(format!("{tensor_count} tensors, at most {MAX_TENSORS} are allowed")));
    }
    let metadata = Metadata::read(&mut reader)?;
    check_single_file(&metadata)?;
    let alignment = alignment(&metadata)?;

    let infos = (0..tensor_count).map(|_| TensorInfo::read(&mut reader)).collect::<Result<Vec<_>>>()?;
    // A file without tensors may end right behind its header.
    let data_start = reader.position().next_multiple_of(alignment).min(bytes.len());
    let mut entries = BTreeMap::new();
    for info in infos {
        let entry = info.place(data_start, bytes.len(), alignment)?;
        if let Some(twice) = entries.insert(entry.name.clone(), entry) {
            return Err(Error::invalid(format!("tensor {:?} appears twice", twice.name)));
        }
    }
    check_disjoint(&entries)?;
    Ok((metadata, entries))
}

fn check_magic(reader: &mut Reader<'_>) -> Result<()> {
    if reader.take(4, "the magic")? != b"GGUF" {
        return Err(Error::invalid("does not start with \"GGUF\": not a GGUF file"));
    }
    let version = reader.u32("the version")?;
    match version {
        2 | 3 => Ok(()),
        1 => Err(Error::unsupported("GGUF version 1 is not supported: convert the model again with a newer llama.cpp")),
        // A big-endian file has the version in its upper bytes.
        v if v & 0xFFFF == 0 && v != 0 => Err(Error::unsupported("big-endian GGUF is not supported")),
        v => Err(Error::unsupported(format!("GGUF version {v} is not supported"))),
    }
}

/// Refuses one part of a model that was split into several files.
fn check_single_file(metadata: &Metadata) -> Result<()> {
    match metadata.get_usize("split.count")? {
        Some(parts) if parts > 1 => Err(Error::unsupported(format!(
            "is one of {parts} parts of a split GGUF: join them first with `llama-gguf-split --merge`"
        ))),
        _ => Ok(()),
    }
}

fn alignment(metadata: &Metadata) -> Result<usize> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.get_u32(KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        let what = format!("{KEY} is {alignment}: it must be a power of two, at most {MAX_ALIGNMENT}");
        return Err(Error::invalid(what));
    }
    Ok(alignment as usize)
}

/// One tensor as the file's list has it.
struct TensorInfo {
    name: String,
    dtype: StoredType,
    shape: Vec<usize>,
    bytes: usize,
    offset: u64,
}

impl TensorInfo {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let name = reader.string("a tensor's name")?;
        weights::check_name(&name)?;
        let in_tensor = |e: Error| e.context(format!("tensor {name:?}"));
        let rank = reader.u32("its number of dimensions").map_err(in_tensor)?;
        if !(1..=MAX_DIMS).contains(&rank) {
            return Err(Error::invalid(format!("tensor {name:?}: {rank} dimensions, 1 to {MAX_DIMS} are allowed")));
        }
        let mut shape = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            let size = reader.u64("a dimension").map_err(in_tensor)?;
            let size = usize::try_from(size).ok().filter(|&n| n > 0);
            shape.push(size.ok_or_else(|| Error::invalid(format!("tensor {name:?}: a dimension is 0 or too large")))?);
        }
        // GGUF has the fastest dimension first.
        shape.reverse();
        let dtype = dtype(&name, reader.u32("its type").map_err(in_tensor)?)?;
        let bytes = dtype.bytes(&shape).ok_or_else(|| {
            let what = format!("{dtype} {shape:?} overflows, or its rows are no whole blocks of");
            Error::invalid(format!("tensor {name:?}: {what} {}", dtype.block_elements()))
        })?;
        let offset = reader.u64("its offset").map_err(in_tensor)?;
        Ok(TensorInfo { name, dtype, shape, bytes, offset })
    }

    fn place(self, data_start: usize, file_len: usize, alignment: usize) -> Result<Entry> {
        let TensorInfo { name, dtype, shape, bytes, offset } = self;
        let fault = |what: String| Error::invalid(format!("tensor {name:?}: {what}"));
        if !offset.is_multiple_of(alignment as u64) {
            return Err(fault(format!("its offset {offset} is no multiple of {alignment}")));
        }
        let start = usize::try_from(offset).ok().and_then(|offset| data_start.checked_add(offset));
        let range = start.and_then(|start| Some(start..start.checked_add(bytes)?));
        match range {
            Some(range) if range.end <= file_len => Ok(Entry { name, dtype, shape, file: 0, range }),
            _ => Err(fault(format!(
                "{bytes} bytes at offset {offset} of the data end behind the file's {file_len}: is it cut short?"
            ))),
        }
    }
}

fn check_disjoint(entries: &BTreeMap<String, Entry>) -> Result<()> {
    let mut by_place: Vec<&Entry> = entries.values().collect();
    by_place.sort_by_key(|entry| entry.range.start);
    match by_place.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        Some(pair) => Err(Error::invalid(format!("tensors {:?} and {:?} overlap", pair[0].name, pair[1].name))),
        None => Ok(()),
    }
}

fn dtype(tensor: &str, id: u32) -> Result<StoredType> {
    StoredType::from_ggml(id).ok_or_else(|| {
        let known = match id {
            9 => "Q8_1",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            _ => "unknown",
        };
        Error::unsupported(format!("tensor {tensor:?}: GGML type {known} (number {id}) is not supported"))
    })
}

#[cfg(test)]
mod tests;
