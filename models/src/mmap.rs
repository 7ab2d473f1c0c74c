//! Weight files in memory: mapped, or read whole (`--no-mmap`).
//!
//! What is protected, and what is not:
//! - A file that is too short for its own header is refused before anything is mapped from it: the
//!   map covers exactly the bytes that `fstat` reported, and readers check each extent against it.
//! - [`Mapped::populate`] faults pages in through `MADV_POPULATE_READ` (Linux 5.14), so a file that
//!   was cut short after opening is an error there, not a `SIGBUS`.
//! - A file that was *replaced* (written elsewhere, then renamed over the name) does no harm: the
//!   map keeps the old pages. [`Mapped::check_unchanged`] reports it, since a run could not resume.
//! - A file that is *rewritten in place* shows through the map; `check_unchanged` reports it when
//!   the size or the modification time moved, which a write within one clock tick does not do.
//! - Cutting a file short between two checks, and input errors of a network file system, can still
//!   end the process with `SIGBUS`. Where that can happen, open with [`Mapped::open_unmapped`].
//!
//! So: replace model files by rename, never write into them while they are in use.
//!
//! Pages that were read and are not needed any more, such as those of a weight that was quantised, are given back by
//! [`Mapped::release`].

use std::fs::{File, Metadata};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kinglet_tensor::{Error, Result};
use memmap2::{Mmap, MmapOptions};

/// The alignment in bytes of buffers that this module allocates: one cache line, one AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// A file whose bytes are in memory and stay the same as long as nobody writes into the file.
pub struct Mapped {
    path: PathBuf,
    identity: Identity,
    backing: Backing,
}

enum Backing {
    Map(Mmap),
    Memory(AlignedBytes),
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let (device, inode) = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino())
        };
        #[cfg(not(unix))]
        let (device, inode) = (0, 0);
        Identity { device, inode, size: metadata.len(), modified: metadata.modified().ok() }
    }
}

impl Mapped {
    /// Maps `path` read-only.
    ///
    /// # Errors
    /// When the path is no regular file, or cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, path, identity, len) = open_regular(path)?;
        // SAFETY: a map is sound as long as its bytes neither vanish nor change while a slice of
        // them lives. `len` is the file's size from fstat on this very handle, so every byte is
        // there now; nothing in this process writes to a file that it mapped (`fs` writes only to
        // files that it created, and replaces by rename). Other processes are beyond any program's
        // reach: the module's text says what is checked against them and what is not.
        let map = unsafe { MmapOptions::new().len(len).map(&file) }
            .map_err(|e| Error::io(format!("{}: cannot map it (try --no-mmap)", path.display()), e))?;
        Ok(Mapped { path, identity, backing: Backing::Map(map) })
    }

    /// Reads `path` into memory, aligned to [`ALIGNMENT`]: nothing that happens to the file later
    /// can touch these bytes.
    ///
    /// # Errors
    /// When the path is no regular file, cannot be read to the size it had when it was opened, or
    /// does not fit in memory.
    pub fn open_unmapped(path: &Path) -> Result<Self> {
        let (mut file, path, identity, len) = open_regular(path)?;
        let mut bytes = AlignedBytes::zeroed(len, path.display())?;
        file.read_exact(bytes.as_mut()).map_err(|e| Error::io(format!("{}: cannot read it", path.display()), e))?;
        Ok(Mapped { path, identity, backing: Backing::Memory(bytes) })
    }

    /// The file's absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is mapped, not read into memory.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        matches!(self.backing, Backing::Map(_))
    }

    /// Brings the pages of `range` into memory.
    ///
    /// # Errors
    /// When the range lies outside the map, or the file no longer has these bytes.
    pub fn populate(&self, range: Range<usize>) -> Result<()> {
        let len = self.as_ref().len();
        if range.start > range.end || range.end > len {
            return Err(Error::invalid(format!("{}: {range:?} is outside its {len} bytes", self.path.display())));
        }
        match &self.backing {
            Backing::Map(map) if !range.is_empty() => self.populate_map(map, range),
            _ => Ok(()),
        }
    }

    #[cfg(target_os = "linux")]
    fn populate_map(&self, map: &Mmap, range: Range<usize>) -> Result<()> {
        match map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len()) {
            Ok(()) => Ok(()),
            // A kernel before 5.14 does not know the advice: the size is all that can be checked.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => self.check_unchanged(),
            Err(e) => {
                let what = format!(
                    "{}: bytes {range:?} cannot be read (was the file cut short? restore it, or run with --no-mmap)",
                    self.path.display()
                );
                Err(Error::io(what, e))
            }
        }
    }

    /// Gives the pages of `range` back to the system, for bytes that are not read again soon. Whoever reads them after all
    /// finds the same: they come from the file once more. A hint: where it cannot be followed, the pages stay.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Backing::Map(map) = &self.backing
            && range.start < range.end
            && range.end <= map.len()
        {
            // SAFETY: the map is shared and read-only, so that dropped pages are those of the file and come back from there
            // with the same bytes, as long as nobody writes into it: what `Mapped::open` asks for already.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }

    #[cfg(not(target_os = "linux"))]
    fn populate_map(&self, _: &Mmap, _: Range<usize>) -> Result<()> {
        self.check_unchanged()
    }

    /// Checks that the path still names the file that was opened, with the same size and
    /// modification time.
    ///
    /// # Errors
    /// When it does not: the error names the file, what changed and what to do.
    pub fn check_unchanged(&self) -> Result<()> {
        let path = self.path.display();
        let metadata =
            std::fs::metadata(&self.path).map_err(|e| Error::io(format!("{path}: gone while it was in use"), e))?;
        let (then, now) = (&self.identity, Identity::of(&metadata));
        let change = if (now.device, now.inode) != (then.device, then.inode) {
            "another file took its name".to_string()
        } else if now.size != then.size {
            format!("its size went from {} to {} bytes", then.size, now.size)
        } else if now.modified != then.modified {
            "it was written to".to_string()
        } else {
            return Ok(());
        };
        Err(Error::invalid(format!("{path}: changed while it was in use: {change}; restore the file and start again")))
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        match &self.backing {
            Backing::Map(map) => map,
            Backing::Memory(bytes) => bytes.as_ref(),
        }
    }
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if matches!(self.backing, Backing::Map(_)) { "mapped" } else { "in memory" };
        write!(f, "{} ({} bytes, {how})", self.path.display(), self.as_ref().len())
    }
}

/// Opens a regular file; a pipe or a device would block, or has no size to check against.
fn open_regular(path: &Path) -> Result<(File, PathBuf, Identity, usize)> {
    let shown = path.display();
    let cannot = |e| Error::io(format!("{shown}: cannot open it"), e);
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(Error::invalid(format!("{shown}: not a regular file")));
    }
    let file = File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    let len = usize::try_from(metadata.len()).ok().filter(|&n| isize::try_from(n).is_ok());
    let len = len.ok_or_else(|| Error::invalid(format!("{shown}: {} bytes do not fit in memory", metadata.len())))?;
    let absolute = std::path::absolute(path).map_err(cannot)?;
    Ok((file, absolute, Identity::of(&metadata), len))
}

/// Bytes that start at a multiple of [`ALIGNMENT`].
#[derive(Debug)]
pub struct AlignedBytes {
    // Longer than needed by less than ALIGNMENT, and never resized, so that `start` stays right.
    buffer: Vec<u8>,
    start: usize,
}

impl AlignedBytes {
    /// `len` zero bytes for `what`.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn zeroed(len: usize, what: impl std::fmt::Display) -> Result<Self> {
        let mut buffer = Vec::new();
        let total = len.saturating_add(ALIGNMENT);
        buffer.try_reserve_exact(total).map_err(|_| Error::out_of_memory(len, what))?;
        buffer.resize(total, 0);
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        buffer.truncate(start + len);
        Ok(AlignedBytes { buffer, start })
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

impl AsMut<[u8]> for AlignedBytes {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("kinglet-mmap-{name}-{}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn both_ways_give_the_same_aligned_bytes() {
        for len in [0, 1, 63, 64, 10_000] {
            let content: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let path = file("same", &content);
            for open in [Mapped::open, Mapped::open_unmapped] {
                let mapped = open(&path).unwrap();
                assert_eq!(mapped.as_ref(), content);
                assert_eq!(mapped.as_ref().as_ptr().align_offset(ALIGNMENT), 0);
                mapped.populate(0..len).unwrap();
                assert!(mapped.populate(0..len + 1).is_err());
                mapped.release(0..len + 1);
                mapped.release(0..len);
                mapped.release(len / 2..len);
                assert_eq!(mapped.as_ref(), content, "released bytes are there when they are read");
                mapped.check_unchanged().unwrap();
            }
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_cut_short_is_an_error_not_a_signal() {
        let path = file("cut", &[1; 100_000]);
        let mapped = Mapped::open(&path).unwrap();
        let whole = Mapped::open_unmapped(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let error = mapped.populate(0..100_000).unwrap_err().to_string();
        assert!(error.contains("cut short") && error.contains("cut-"), "{error}");
        mapped.populate(0..4096).unwrap();
        assert!(mapped.check_unchanged().unwrap_err().to_string().contains("100000 to 4096 bytes"));
        assert_eq!(whole.as_ref(), [1; 100_000]);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn every_change_of_the_file_is_named() {
        let path = file("change", &[1; 100]);
        let mapped = Mapped::open(&path).unwrap();
        let error = || mapped.check_unchanged().unwrap_err().to_string();

        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(error().contains("it was written to"), "{}", error());

        let other = path.with_extension("new");
        std::fs::write(&other, [1; 100]).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(error().contains("another file took its name"), "{}", error());
        assert_eq!(mapped.as_ref(), [1; 100], "the old pages stay");

        std::fs::remove_file(&path).unwrap();
        assert!(error().contains("gone"), "{}", error());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let error = Mapped::open(&std::env::temp_dir()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        assert!(Mapped::open(Path::new("/nowhere/at/all")).unwrap_err().is_io());
    }
}
