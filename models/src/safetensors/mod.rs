//! Hugging Face's safetensors: eight bytes of header length, a JSON header, the tensors' bytes.
//!
//! Reading trusts nothing: the `safetensors` crate checks that the tensors cover the file without
//! holes or overlaps, and this module checks what the crate lets through (names that appear twice,
//! overflow hidden behind a zero dimension, empty names). The format does not promise alignment:
//! see [`Entry::is_aligned`].

mod write;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use kinglet_tensor::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::json::{self, UniqueMap};
use crate::mmap::Mapped;
use crate::stored::StoredType;
use crate::weights::{self, Entry, MAX_TENSORS, WeightFiles};

pub use write::{TensorSpec, write_file, write_model};

/// The file name of a model in one file.
pub const SINGLE: &str = "model.safetensors";
/// The file name of the list of shards of a model in several files.
pub const INDEX: &str = "model.safetensors.index.json";

/// The most dimensions that a stored tensor may have.
const MAX_RANK: usize = 8;
/// The longest header in bytes, as the safetensors crate has it.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the header's length.
const LENGTH: usize = 8;

/// Opens the weights of a model folder: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` lists.
///
/// `map` opens one file: [`Mapped::open`] or [`Mapped::open_unmapped`].
///
/// # Errors
/// When neither is there, a file is malformed, a shard is missing or lies outside the folder, or a
/// shard lacks a tensor that the index puts there.
pub fn open_folder(folder: &Path, map: fn(&Path) -> Result<Mapped>) -> Result<WeightFiles> {
    let single = folder.join(SINGLE);
    if single.exists() {
        return open_file(&single, map);
    }
    let index = folder.join(INDEX);
    if index.exists() {
        return open_shards(folder, &index, map);
    }
    Err(Error::invalid(format!("{}: holds neither {SINGLE} nor {INDEX}", folder.display())))
}

/// Opens one safetensors file.
///
/// # Errors
/// When it cannot be opened or is malformed: the error names the file and the tensor.
pub fn open_file(path: &Path, map: fn(&Path) -> Result<Mapped>) -> Result<WeightFiles> {
    let file = map(path)?;
    let entries = read_entries(file.as_ref(), 0).map_err(|e| e.context(path.display()))?;
    let entries = entries.into_iter().map(|e| (e.name.clone(), e)).collect();
    Ok(WeightFiles::new(vec![Arc::new(file)], entries))
}

/// The part of `model.safetensors.index.json` that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

fn open_shards(folder: &Path, index: &Path, map: fn(&Path) -> Result<Mapped>) -> Result<WeightFiles> {
    let Index { weight_map: UniqueMap(weight_map) } = json::read(index)?;
    let fault = |what: String| Error::invalid(format!("{}: {what}", index.display()));
    if weight_map.is_empty() {
        return Err(fault("weight_map is empty".into()));
    }

    let mut shards: Vec<&str> = weight_map.iter().map(|(_, shard)| shard.as_str()).collect();
    shards.sort_unstable();
    shards.dedup();
    let mut weights = WeightFiles::default();
    let mut stored: Vec<BTreeMap<String, Entry>> = Vec::new();
    for (i, &shard) in shards.iter().enumerate() {
        if !is_shard_name(shard) {
            return Err(fault(format!("shard {shard:?} is not the name of a .safetensors file in this folder")));
        }
        let path = folder.join(shard);
        if !path.exists() {
            return Err(fault(format!("shard {shard:?} is missing: download it again")));
        }
        let file = map(&path)?;
        let entries = read_entries(file.as_ref(), i).map_err(|e| e.context(path.display()))?;
        stored.push(entries.into_iter().map(|e| (e.name.clone(), e)).collect());
        weights.files.push(Arc::new(file));
    }

    for (name, shard) in &weight_map {
        let i = shards.binary_search(&shard.as_str()).expect("every shard of the map is in the list made from it");
        let entry = stored[i].remove(name).ok_or_else(|| fault(format!("tensor {name:?} is not in {shard:?}")))?;
        weights.entries.insert(name.clone(), entry);
    }
    Ok(weights)
}

/// A plain file name ending in `.safetensors`: nothing that could lead out of the folder.
fn is_shard_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains(['/', '\\', ':', '\0']) && name.len() <= 255
}

/// Reads and checks the header of a whole safetensors file, given as `bytes`; `file` is stored in
/// each entry.
///
/// # Errors
/// When anything in the header is not as the format has it.
pub fn read_entries(bytes: &[u8], file: usize) -> Result<Vec<Entry>> {
    let header = header_text(bytes)?;
    let Header(tensors) = serde_json::from_str(header).map_err(|e| Error::invalid(format!("header: {e}")))?;
    if tensors.len() > MAX_TENSORS {
        return Err(Error::invalid(format!("{} tensors, at most {MAX_TENSORS} are allowed", tensors.len())));
    }
    let data_start = LENGTH + header.len();
    let data_len = bytes.len() - data_start;
    let entries = tensors
        .into_iter()
        .map(|(name, info)| entry(name, &info, data_start, data_len, file))
        .collect::<Result<_>>()?;
    // The crate's own reading adds: no holes, no overlaps, no bytes left over.
    safetensors::SafeTensors::read_metadata(bytes).map_err(|e| Error::invalid(format!("header: {e}")))?;
    Ok(entries)
}

fn header_text(bytes: &[u8]) -> Result<&str> {
    let too_short =
        || Error::invalid(format!("{} bytes are too few for its header: the file is cut short", bytes.len()));
    let (length, rest) = bytes.split_first_chunk::<LENGTH>().ok_or_else(too_short)?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        let what = format!("a header of {length} bytes, at most {MAX_HEADER} are allowed: not a safetensors file");
        return Err(Error::invalid(what));
    }
    let header = rest.get(..length as usize).ok_or_else(too_short)?;
    std::str::from_utf8(header).map_err(|_| Error::invalid("the header is not UTF-8: not a safetensors file"))
}

/// Checks one tensor of the header and places it in the file.
fn entry(name: String, info: &Info, data_start: usize, data_len: usize, file: usize) -> Result<Entry> {
    weights::check_name(&name)?;
    let fault = |what: String| Error::invalid(format!("tensor {name:?}: {what}"));
    let dtype = StoredType::from_safetensors(&info.dtype)
        .ok_or_else(|| Error::unsupported(format!("tensor {name:?}: dtype {:?} is not supported", info.dtype)))?;
    if info.shape.len() > MAX_RANK {
        return Err(fault(format!("{} dimensions, at most {MAX_RANK} are allowed", info.shape.len())));
    }
    let need = dtype.bytes(&info.shape).ok_or_else(|| fault(format!("shape {:?} overflows", info.shape)))?;
    let (start, end) = info.data_offsets;
    if start > end || end > data_len {
        return Err(fault(format!("bytes {start}..{end} are outside the file's {data_len}: is it cut short?")));
    }
    if end - start != need {
        return Err(fault(format!("{dtype} {:?} takes {need} bytes, the header gives it {}", info.shape, end - start)));
    }
    let range = data_start + start..data_start + end;
    Ok(Entry { name, dtype, shape: info.shape.clone(), file, range })
}

/// The header's tensors in the order of its text; every name appears once.
struct Header(Vec<(String, Info)>);

/// What the header says of one tensor.
#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        use serde::de::Error as _;
        let (mut tensors, mut seen) = (Vec::new(), HashSet::new());
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("the name {key:?} appears twice")));
            }
            if key == "__metadata__" {
                map.next_value::<UniqueMap<String>>()?;
            } else {
                let info = map.next_value().map_err(|e| A::Error::custom(format!("tensor {key:?}: {e}")))?;
                tensors.push((key, info));
            }
        }
        Ok(Header(tensors))
    }
}

#[cfg(test)]
mod tests;
