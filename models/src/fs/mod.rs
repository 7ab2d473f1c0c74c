//! Files and folders that are either wholly there or not there at all.
//!
//! A file is written under a temporary name beside its place, flushed, fsynced, renamed into place,
//! and the folder fsynced. A folder of files is written the same way as a whole, with
//! [`MANIFEST`] as its last file. Whatever fails, and whenever the machine stops, the name holds
//! what it held before or the new content, never a part of it.
//!
//! Leftovers of a killed process are `.NAME.kinglet-tmp-*` (incomplete: deleted by [`recover`]) and
//! `.NAME.kinglet-old` (what NAME held before it was being replaced: put back when NAME is missing).

mod crc32;
pub mod faulty;
mod manifest;

use std::collections::HashSet;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use kinglet_tensor::{Error, Result};
use serde::Serialize;

pub use crc32::Crc32;
pub use manifest::{MANIFEST, Manifest, ManifestFile, verify_manifest};

/// What is done to files, so that tests can fail any of it ([`faulty::FaultyFs`]).
pub trait Fs: Send + Sync {
    /// Creates a file that must not exist yet.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile + '_>>;
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>>;
    /// Creates a folder that must not exist yet, in one that does.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or folder; a file replaces a file.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Deletes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Deletes a folder with all that is in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes the folder's list of names durable (fsync).
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// What the path names, symbolic links followed.
    fn kind(&self, path: &Path) -> io::Result<Kind>;
}

/// A file open for writing.
pub trait WriteFile: Write {
    /// Makes its content durable (fsync).
    fn sync(&mut self) -> io::Result<()>;
}

/// What a path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing.
    Missing,
    /// A folder.
    Folder,
    /// A file, or anything else.
    File,
}

/// The machine's own file system.
#[derive(Clone, Copy, Default, Debug)]
pub struct Disk;

impl WriteFile for std::fs::File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Fs for Disk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile + '_>> {
        Ok(Box::new(std::fs::File::create_new(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(std::fs::File::open(path)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    #[cfg(unix)]
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::File::open(path)?.sync_all()
    }

    // Elsewhere a folder cannot be opened as a file, and a rename is durable by itself.
    #[cfg(not(unix))]
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        // Names that are not UTF-8 are not ours.
        let mut names: Vec<String> = std::fs::read_dir(path)?
            .filter_map(|entry| entry.map(|e| e.file_name().into_string().ok()).transpose())
            .collect::<io::Result<_>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        match std::fs::metadata(path) {
            Ok(metadata) => Ok(if metadata.is_dir() { Kind::Folder } else { Kind::File }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Kind::Missing),
            Err(e) => Err(e),
        }
    }
}

/// A new file that counts and checksums what is written to it.
pub struct FileWriter<'a> {
    out: BufWriter<Box<dyn WriteFile + 'a>>,
    size: u64,
    crc: Crc32,
}

impl<'a> FileWriter<'a> {
    fn create(fs: &'a dyn Fs, path: &Path) -> Result<Self> {
        let file = fs.create_new(path).map_err(|e| cannot("create", path, e))?;
        Ok(FileWriter { out: BufWriter::with_capacity(1 << 18, file), size: 0, crc: Crc32::default() })
    }

    /// Makes all bytes durable and returns their number and checksum.
    fn finish(mut self) -> io::Result<(u64, u32)> {
        self.out.flush()?;
        self.out.get_mut().sync()?;
        Ok((self.size, self.crc.value()))
    }
}

impl Write for FileWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.size += written as u64;
        self.crc.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a file, replacing the one that may be there, wholly or not at all.
///
/// # Errors
/// When `write` fails or the file system does; the path then holds what it held before, unless only
/// the last fsync of its folder failed.
pub fn write_file_atomic(
    fs: &dyn Fs,
    path: &Path,
    write: impl FnOnce(&mut FileWriter<'_>) -> Result<()>,
) -> Result<()> {
    let (parent, name) = split(path)?;
    create_folders(fs, &parent)?;
    let temporary = free_temporary(fs, &parent, name)?;
    let written = write_synced(fs, &temporary, write)
        .and_then(|_| fs.rename(&temporary, path).map_err(|e| cannot("write", path, e)));
    if written.is_err() {
        // What failed is what the caller must hear of; a leftover is found again by `recover`.
        let _ = fs.remove_file(&temporary);
    }
    written?;
    sync_dir(fs, &parent)
}

/// Writes one new file and makes its content durable.
fn write_synced(fs: &dyn Fs, path: &Path, write: impl FnOnce(&mut FileWriter<'_>) -> Result<()>) -> Result<(u64, u32)> {
    let mut out = FileWriter::create(fs, path)?;
    write(&mut out).map_err(|e| e.context(path.display()))?;
    out.finish().map_err(|e| cannot("write", path, e))
}

/// A folder in the making: see [`write_folder_atomic`].
pub struct Folder<'a> {
    fs: &'a dyn Fs,
    path: PathBuf,
    files: Vec<ManifestFile>,
    names: HashSet<String>,
}

impl Folder<'_> {
    /// Adds the file `name`; its content is what `write` writes.
    ///
    /// # Errors
    /// When the name is no plain file name or is taken, or `write` or the file system fails.
    pub fn write(&mut self, name: &str, write: impl FnOnce(&mut FileWriter<'_>) -> Result<()>) -> Result<()> {
        if name == MANIFEST || !is_plain_name(name) || !self.names.insert(name.into()) {
            return Err(Error::invalid(format!(
                "{name:?} cannot be the name of a new file in {}",
                self.path.display()
            )));
        }
        let (size, crc32) = write_synced(self.fs, &self.path.join(name), write)?;
        self.files.push(ManifestFile { name: name.into(), size, crc32 });
        Ok(())
    }

    /// Adds the file `name` with these bytes.
    ///
    /// # Errors
    /// As [`Folder::write`].
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write(name, |out| out.write_all(bytes).map_err(|e| Error::io("cannot write", e)))
    }

    /// Adds `value` as JSON, indented by two and ended by a newline, as Hugging Face writes it.
    ///
    /// # Errors
    /// As [`Folder::write`].
    pub fn write_json(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::invalid(format!("{name}: {e}")))?;
        text.push('\n');
        self.write_bytes(name, text.as_bytes())
    }

    /// Adds a copy of the file `from` of the machine's file system.
    ///
    /// # Errors
    /// As [`Folder::write`], and when `from` cannot be read.
    pub fn copy(&mut self, name: &str, from: &Path) -> Result<()> {
        let mut source = std::fs::File::open(from).map_err(|e| cannot("read", from, e))?;
        self.write(name, |out| io::copy(&mut source, out).map(drop).map_err(|e| cannot("copy", from, e)))
    }
}

/// Writes the folder `path` with the files that `fill` adds, wholly or not at all.
///
/// An existing folder is replaced when `replace` is set, and kept whole until the new one is in its
/// place; otherwise an existing path is an error.
///
/// # Errors
/// When the path is taken, or `fill` or the file system fails; the path then holds what it held
/// before, unless only the last fsync of its parent failed.
pub fn write_folder_atomic(
    fs: &dyn Fs,
    path: &Path,
    replace: bool,
    fill: impl FnOnce(&mut Folder<'_>) -> Result<()>,
) -> Result<()> {
    let (parent, name) = split(path)?;
    create_folders(fs, &parent)?;
    recover_replaced(fs, path)?;
    check_target(fs, path, replace)?;
    let temporary = free_temporary(fs, &parent, name)?;
    let written = fill_folder(fs, &temporary, fill).and_then(|()| put_in_place(fs, &temporary, path));
    if written.is_err() {
        // As above: the first failure is the one to report.
        let _ = fs.remove_dir_all(&temporary);
    }
    written
}

fn check_target(fs: &dyn Fs, path: &Path, replace: bool) -> Result<()> {
    match kind(fs, path)? {
        Kind::Missing => Ok(()),
        Kind::Folder if replace => Ok(()),
        Kind::Folder => Err(Error::invalid(format!("{}: already there", path.display()))),
        Kind::File => Err(Error::invalid(format!("{}: a file is in the way of the folder", path.display()))),
    }
}

/// Creates the temporary folder, its files and last its manifest, all durable.
fn fill_folder(fs: &dyn Fs, temporary: &Path, fill: impl FnOnce(&mut Folder<'_>) -> Result<()>) -> Result<()> {
    fs.create_dir(temporary).map_err(|e| cannot("create", temporary, e))?;
    let mut folder = Folder { fs, path: temporary.into(), files: Vec::new(), names: HashSet::new() };
    fill(&mut folder)?;
    let manifest = Manifest { files: folder.files };
    write_synced(fs, &temporary.join(MANIFEST), |out| manifest.write(out))?;
    sync_dir(fs, temporary)
}

/// Renames a complete folder to `path`. A folder cannot be renamed over another in one step, so the
/// other is set aside first, under a name from which [`recover`] puts it back.
fn put_in_place(fs: &dyn Fs, temporary: &Path, path: &Path) -> Result<()> {
    let (parent, name) = split(path)?;
    let old = parent.join(old_name(name));
    let replacing = kind(fs, path)? == Kind::Folder;
    if replacing {
        rename(fs, path, &old)?;
    }
    let moved = rename(fs, temporary, path);
    if moved.is_err() && replacing {
        // The first failure is the one to report; should this one fail too, `recover` does it.
        let _ = fs.rename(&old, path);
    }
    moved?;
    sync_dir(fs, &parent)?;
    if replacing { discard_old(fs, path) } else { Ok(()) }
}

/// Deletes what a replaced folder held. It first loses the name that [`recover`] would put back.
fn discard_old(fs: &dyn Fs, path: &Path) -> Result<()> {
    let (parent, name) = split(path)?;
    let temporary = free_temporary(fs, &parent, name)?;
    rename(fs, &parent.join(old_name(name)), &temporary)?;
    fs.remove_dir_all(&temporary).map_err(|e| cannot("delete", &temporary, e))
}

/// Brings `path` back into a whole state after a killed process: a replacement that was not
/// finished is undone or completed, and stale temporaries are deleted. Nobody else may be writing
/// to `path` meanwhile. Returns the names of what was deleted.
///
/// # Errors
/// When the file system fails.
pub fn recover(fs: &dyn Fs, path: &Path) -> Result<Vec<String>> {
    let (parent, name) = split(path)?;
    if kind(fs, &parent)? != Kind::Folder {
        return Ok(Vec::new());
    }
    recover_replaced(fs, path)?;
    remove_temporaries(fs, &parent, |target| target == name)
}

/// As [`recover`], for every file and folder directly inside `folder`.
///
/// # Errors
/// When the file system fails.
pub fn recover_inside(fs: &dyn Fs, folder: &Path) -> Result<Vec<String>> {
    if kind(fs, folder)? != Kind::Folder {
        return Ok(Vec::new());
    }
    for name in list(fs, folder)? {
        if let Some(target) = name.strip_prefix('.').and_then(|n| n.strip_suffix(OLD)) {
            recover_replaced(fs, &folder.join(target))?;
        }
    }
    remove_temporaries(fs, folder, |_| true)
}

fn recover_replaced(fs: &dyn Fs, path: &Path) -> Result<()> {
    let (parent, name) = split(path)?;
    let old = parent.join(old_name(name));
    if kind(fs, &old)? == Kind::Missing {
        return Ok(());
    }
    if kind(fs, path)? != Kind::Missing {
        return discard_old(fs, path);
    }
    rename(fs, &old, path)?;
    sync_dir(fs, &parent)
}

fn remove_temporaries(fs: &dyn Fs, parent: &Path, of: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in list(fs, parent)? {
        if !temporary_target(&name).is_some_and(&of) {
            continue;
        }
        let path = parent.join(&name);
        let done = match kind(fs, &path)? {
            Kind::Folder => fs.remove_dir_all(&path),
            _ => fs.remove_file(&path),
        };
        done.map_err(|e| cannot("delete", &path, e))?;
        removed.push(name);
    }
    Ok(removed)
}

/// The text of the file at `path`, which is `what` to the user ("the chat template").
///
/// # Errors
/// When it cannot be read or is not UTF-8: the error names both.
pub fn read_text(path: &Path, what: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(format!("{}: cannot read {what}", path.display()), e))
}

/// Whether `name` is one that a killed process may have left behind.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.contains(".kinglet-")
}

const TEMPORARY: &str = ".kinglet-tmp-";
const OLD: &str = ".kinglet-old";

fn old_name(name: &str) -> String {
    format!(".{name}{OLD}")
}

/// The name whose temporary `name` is.
fn temporary_target(name: &str) -> Option<&str> {
    let (target, number) = name.strip_prefix('.')?.rsplit_once(TEMPORARY)?;
    let ours = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    ours.then_some(target)
}

/// A temporary path beside `name` that nothing has yet. Process ids repeat across containers, so
/// the number behind it goes up until a name is free; creating it fails if another was faster.
fn free_temporary(fs: &dyn Fs, parent: &Path, name: &str) -> Result<PathBuf> {
    for n in 0.. {
        let path = parent.join(format!(".{name}{TEMPORARY}{}-{n}", std::process::id()));
        if kind(fs, &path)? == Kind::Missing {
            return Ok(path);
        }
    }
    unreachable!("some number is free")
}

/// Creates `path` and the folders above it that are missing, durably.
fn create_folders(fs: &dyn Fs, path: &Path) -> Result<()> {
    match kind(fs, path)? {
        Kind::Folder => return Ok(()),
        Kind::File => return Err(Error::invalid(format!("{}: a file is in the way of the folder", path.display()))),
        Kind::Missing => {}
    }
    let (parent, _) = split(path)?;
    create_folders(fs, &parent)?;
    match fs.create_dir(path) {
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && kind(fs, path)? == Kind::Folder => {}
        created => created.map_err(|e| cannot("create", path, e))?,
    }
    sync_dir(fs, &parent)
}

/// The folder that holds `path`, and its name there.
fn split(path: &Path) -> Result<(PathBuf, &str)> {
    let refuse = |why: &str| Error::invalid(format!("{}: {why}", path.display()));
    let name = path.file_name().ok_or_else(|| refuse("not a path that can be written: give a new folder in it"))?;
    let name = name.to_str().ok_or_else(|| refuse("the name is not UTF-8: choose another"))?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent.into(), name))
}

/// A name that stays in its folder.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

fn kind(fs: &dyn Fs, path: &Path) -> Result<Kind> {
    fs.kind(path).map_err(|e| cannot("look at", path, e))
}

fn list(fs: &dyn Fs, path: &Path) -> Result<Vec<String>> {
    fs.list(path).map_err(|e| cannot("list", path, e))
}

fn rename(fs: &dyn Fs, from: &Path, to: &Path) -> Result<()> {
    fs.rename(from, to).map_err(|e| cannot("rename", from, e))
}

fn sync_dir(fs: &dyn Fs, path: &Path) -> Result<()> {
    fs.sync_dir(path).map_err(|e| cannot("sync", path, e))
}

fn cannot(verb: &str, path: &Path, e: io::Error) -> Error {
    Error::io(format!("{}: cannot {verb} it", path.display()), e)
}

#[cfg(test)]
mod tests;
