//! The list of a folder's files with their sizes and checksums, written last.

use std::io::{Read, Write};
use std::path::Path;

use kinglet_tensor::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Crc32, Fs, cannot, is_plain_name};

/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";

/// The largest manifest that is read.
const MAX_MANIFEST: u64 = 1 << 24;

/// What a folder must hold.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Every file but the manifest, in the order in which they were written.
    pub files: Vec<ManifestFile>,
}

/// One file of a [`Manifest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name in the folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its CRC-32, as zlib computes it.
    pub crc32: u32,
}

impl Manifest {
    pub(super) fn write(&self, out: &mut impl Write) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::invalid(format!("{MANIFEST}: {e}")))?;
        writeln!(out, "{text}").map_err(|e| Error::io("cannot write", e))
    }
}

/// Checks that every file of `folder` is whole, and returns the list. Files that the manifest does
/// not name are no concern of it.
///
/// # Errors
/// When the folder has no manifest (it is not whole, or not kinglet's), or a file is missing, or
/// has another size or checksum than it was written with: the error names it.
pub fn verify_manifest(fs: &dyn Fs, folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let mut text = String::new();
    fs.open(&path)
        .and_then(|file| file.take(MAX_MANIFEST).read_to_string(&mut text))
        .map_err(|e| cannot("read", &path, e))?;
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|e| Error::invalid(format!("{}: {e}", path.display())))?;
    manifest.files.iter().try_for_each(|file| verify_file(fs, folder, file))?;
    Ok(manifest)
}

fn verify_file(fs: &dyn Fs, folder: &Path, file: &ManifestFile) -> Result<()> {
    let path = folder.join(&file.name);
    let damaged = |what: String| Error::invalid(format!("{}: damaged: {what}", path.display()));
    if !is_plain_name(&file.name) {
        return Err(damaged(format!("{MANIFEST} names it, and it lies outside the folder")));
    }
    let mut source = fs.open(&path).map_err(|e| cannot("read", &path, e))?;
    let (mut buffer, mut size, mut crc) = (vec![0; 1 << 16], 0u64, Crc32::default());
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(cannot("read", &path, e)),
        };
        size += read as u64;
        crc.update(&buffer[..read]);
    }
    if size != file.size {
        return Err(damaged(format!("{size} bytes, it was written with {}", file.size)));
    }
    if crc.value() != file.crc32 {
        return Err(damaged(format!("CRC-32 {:08x}, it was written with {:08x}", crc.value(), file.crc32)));
    }
    Ok(())
}
