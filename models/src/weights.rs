//! The tensors of one or more weight files, by name, where they lie.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use kinglet_tensor::{Error, Result};

use crate::StoredType;
use crate::mmap::{AlignedBytes, Mapped};

/// The most tensors that a model may have: ten times the largest known one.
pub(crate) const MAX_TENSORS: usize = 1 << 20;
/// The longest tensor name in bytes.
pub(crate) const MAX_NAME: usize = 1024;

/// One stored tensor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name, as the file has it.
    pub name: String,
    /// How its elements are encoded.
    pub dtype: StoredType,
    /// Its shape, slowest dimension first (GGUF stores the reverse).
    pub shape: Vec<usize>,
    /// The index of its file in [`WeightFiles::files`].
    pub file: usize,
    /// Where its bytes are in that file, row-major and without gaps.
    pub range: Range<usize>,
}

impl Entry {
    /// Whether the bytes lie where a slice of their type may start. Not every writer of safetensors
    /// takes care of that.
    #[must_use]
    pub fn is_aligned(&self) -> bool {
        self.range.start.is_multiple_of(self.dtype.alignment())
    }
}

/// The tensors of a model in the files that hold them.
#[derive(Debug, Default)]
pub struct WeightFiles {
    /// The files, in the order of their names.
    pub files: Vec<Arc<Mapped>>,
    /// Every tensor by its name.
    pub entries: BTreeMap<String, Entry>,
}

/// Bytes of one tensor, aligned for its type, and what keeps them alive.
#[derive(Clone)]
pub struct Bytes {
    /// The mapped file, or the aligned copy of a tensor that the file holds unaligned.
    pub owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// Where the tensor is in `owner`.
    pub range: Range<usize>,
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

/// Bytes up to which a tensor is copied. A page of the map that is touched may bring all of its folio of the page cache with it, up to
/// 2 MiB: a norm that is read at each step would keep weights resident that have been quantised and are not needed any more.
const SMALL: usize = 64 << 10;

impl WeightFiles {
    /// The tensor `name`.
    ///
    /// # Errors
    /// When there is none: the error names it and the file that should hold it.
    pub fn get(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| {
            let place = self.files.first().map_or_else(String::new, |f| format!("{}: ", f.path().display()));
            Error::invalid(format!("{place}tensor {name:?} is missing"))
        })
    }

    /// The bytes of `entry`, faulted in. They are the file's own; only a tensor that the file holds unaligned, and a small one, are
    /// copied, once per call.
    ///
    /// # Errors
    /// When the file no longer has these bytes, or the copy does not fit in memory.
    ///
    /// # Panics
    /// When `entry` is not one of these files'.
    pub fn bytes(&self, entry: &Entry) -> Result<Bytes> {
        let file = &self.files[entry.file];
        file.populate(entry.range.clone()).map_err(|e| e.context(format!("tensor {:?}", entry.name)))?;
        if entry.is_aligned() && entry.range.len() > SMALL {
            return Ok(Bytes { owner: file.clone(), range: entry.range.clone() });
        }
        let mut copy = AlignedBytes::zeroed(entry.range.len(), format_args!("tensor {:?}", entry.name))?;
        copy.as_mut().copy_from_slice(&(**file).as_ref()[entry.range.clone()]);
        Ok(Bytes { owner: Arc::new(copy), range: 0..entry.range.len() })
    }

    /// Gives the memory of `entry`'s bytes back to the system: they are not needed any more, and come from the file again
    /// for whoever reads them after all.
    ///
    /// # Panics
    /// When `entry` is not one of these files'.
    pub fn release(&self, entry: &Entry) {
        self.files[entry.file].release(entry.range.clone());
    }

    /// Checks that no file changed since it was opened: to be called at the end of loading, at each
    /// epoch and before saving.
    ///
    /// # Errors
    /// As [`Mapped::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check_unchanged())
    }
}

/// Refuses names that are empty or absurdly long.
pub(crate) fn check_name(name: &str) -> Result<()> {
    match name.len() {
        0 => Err(Error::invalid("a tensor has an empty name")),
        n if n > MAX_NAME => {
            let start: String = name.chars().take(40).collect();
            Err(Error::invalid(format!("tensor name {start:?}... is {n} bytes long, at most {MAX_NAME} are allowed")))
        }
        _ => Ok(()),
    }
}
