//! The tensors of one or more weight files, by name, where they lie.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

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
    /// What of them is in use, by the name of the tensor.
    in_use: Mutex<BTreeMap<String, Weak<Part>>>,
}

/// The bytes of one tensor in use.
#[derive(Debug)]
enum Part {
    /// Where they lie. Their pages are given back to the system with the last use.
    InFile { file: Arc<Mapped>, range: Range<usize> },
    /// An aligned copy.
    Copy(AlignedBytes),
}

impl Part {
    fn range(&self) -> Range<usize> {
        match self {
            Part::InFile { range, .. } => range.clone(),
            Part::Copy(bytes) => 0..bytes.as_ref().len(),
        }
    }
}

/// The copy; or all of the file, whose start is aligned.
impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        match self {
            Part::InFile { file, .. } => (**file).as_ref(),
            Part::Copy(bytes) => bytes.as_ref(),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Part::InFile { file, range } = self {
            file.release(range.clone());
        }
    }
}

/// Bytes of one tensor, aligned for its type, and what keeps them alive.
#[derive(Clone)]
pub struct Bytes {
    /// The file, as long as its part is used, or an aligned copy of that part.
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

/// Whether a tensor is used where it lies in its file.
fn is_used_in_place(entry: &Entry) -> bool {
    entry.is_aligned() && entry.range.len() > SMALL
}

impl WeightFiles {
    pub(crate) fn new(files: Vec<Arc<Mapped>>, entries: BTreeMap<String, Entry>) -> Self {
        WeightFiles { files, entries, in_use: Mutex::default() }
    }

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

    /// The bytes of `entry`, faulted in. They are the file's own, whose pages are given back to the system when the last one lets go of
    /// them; only a tensor that the file holds unaligned, and a small one, are copied.
    ///
    /// # Errors
    /// When the file no longer has these bytes, or the copy does not fit in memory.
    ///
    /// # Panics
    /// When `entry` is not one of these files'.
    pub fn bytes(&self, entry: &Entry) -> Result<Bytes> {
        self.fault_in(entry)?;
        self.shared(entry)
    }

    /// As [`WeightFiles::bytes`], for a device that reads no values: pages are faulted in for a copy alone.
    ///
    /// # Errors
    /// As [`WeightFiles::bytes`].
    pub(crate) fn bytes_unread(&self, entry: &Entry) -> Result<Bytes> {
        if !is_used_in_place(entry) {
            self.fault_in(entry)?;
        }
        self.shared(entry)
    }

    /// The bytes of `entry`, which are in memory if they are to be copied.
    fn shared(&self, entry: &Entry) -> Result<Bytes> {
        let file = &self.files[entry.file];
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let part = match in_use.get(&entry.name).and_then(Weak::upgrade) {
            Some(part) => part,
            None if is_used_in_place(entry) => {
                Arc::new(Part::InFile { file: file.clone(), range: entry.range.clone() })
            }
            None => {
                let mut copy = AlignedBytes::zeroed(entry.range.len(), format_args!("tensor {:?}", entry.name))?;
                copy.as_mut().copy_from_slice(&(**file).as_ref()[entry.range.clone()]);
                Arc::new(Part::Copy(copy))
            }
        };
        in_use.insert(entry.name.clone(), Arc::downgrade(&part));
        Ok(Bytes { range: part.range(), owner: part })
    }

    fn fault_in(&self, entry: &Entry) -> Result<()> {
        let pages = self.files[entry.file].populate(entry.range.clone());
        pages.map_err(|e| e.context(format!("tensor {:?}", entry.name)))
    }

    /// Bytes of tensors that somebody uses, where they lie or copied; and all of files that were read into memory.
    #[must_use]
    pub fn bytes_in_use(&self) -> usize {
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = in_use.values().filter_map(Weak::upgrade).map(|part| match &*part {
            Part::InFile { file, .. } if !file.is_mapped() => 0,
            part => part.range().len(),
        });
        let read = self.files.iter().filter(|file| !file.is_mapped());
        parts.sum::<usize>() + read.map(|file| (**file).as_ref().len()).sum::<usize>()
    }

    /// Gives the pages of all that nobody uses back to the system: who read a tensor may have brought back pages of its neighbours.
    pub(crate) fn release_unused(&self) {
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let is_used = |entry: &Entry| in_use.get(&entry.name).is_some_and(|part| part.strong_count() > 0);
        for entry in self.entries.values().filter(|entry| !is_used(entry)) {
            self.files[entry.file].release(entry.range.clone());
        }
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
