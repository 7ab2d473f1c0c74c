//! The folder that merge and quantize write: a new one, or one that they wrote before.

use crate::signals::{Caught, UntilAsked};
use kinglet_models::fs::{Disk, Folder, MANIFEST, recover, verify_manifest, write_folder_atomic};
use kinglet_tensor::{Error, Result};
use std::path::Path;

/// A model folder to be written.
pub(crate) struct Target<'a> {
    path: &'a Path,
    replace: bool,
}

impl<'a> Target<'a> {
    /// Checks that `path` may be written, before any work is done. It may not be, or hold, one of `inputs`.
    ///
    /// # Errors
    /// When something is there that must stay.
    pub(crate) fn new(path: &'a Path, overwrite: bool, inputs: &[&Path]) -> Result<Self> {
        let shown = path.display();
        let here = std::fs::canonicalize(path).ok();
        if here.is_some() && inputs.iter().any(|input| std::fs::canonicalize(input).ok() == here) {
            return Err(Error::invalid(format!("{shown}: is what is read: choose another folder for --output")));
        }
        recover(&Disk, path)?;
        let names = match std::fs::read_dir(path) {
            Ok(entries) => entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<Vec<_>>>()
                .map_err(|e| Error::io(&shown, e))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Target { path, replace: false }),
            Err(e) => return Err(Error::io(format!("{shown}: cannot be the output"), e)),
        };
        if let Some(name) = foreign(path, &names) {
            let what = format!("{shown}: holds {name:?}, which is no part of a model that kinglet wrote");
            return Err(Error::invalid(format!("{what}: choose another folder for --output")));
        }
        if !names.is_empty() && !overwrite {
            return Err(Error::invalid(format!("{shown}: holds a model already: replace it by --overwrite")));
        }
        Ok(Target { path, replace: true })
    }

    /// Writes the folder, wholly or not at all. Ctrl-C and SIGTERM end the process once what was begun is taken away.
    ///
    /// # Errors
    /// When `fill` or the file system fails.
    pub(crate) fn write(&self, fill: impl FnOnce(&mut Folder<'_>) -> Result<()>) -> Result<()> {
        let caught = Caught::new()?;
        let written = write_folder_atomic(&UntilAsked(&caught), self.path, self.replace, fill);
        caught.end_if_asked()?;
        written
    }
}

/// A name in the folder that is not of a whole model with its manifest.
fn foreign<'a>(path: &Path, names: &'a [String]) -> Option<&'a String> {
    let files = verify_manifest(&Disk, path).map(|manifest| manifest.files).unwrap_or_default();
    let is_model =
        files.iter().any(|f| f.name == "config.json") && !files.iter().any(|f| f.name.starts_with("kinglet_"));
    names.iter().find(|name| !is_model || !(*name == MANIFEST || files.iter().any(|file| file.name == **name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(path: &Path, overwrite: bool) -> String {
        Target::new(path, overwrite, &[]).err().unwrap().to_string()
    }

    #[test]
    fn only_what_it_wrote_is_replaced() {
        let root = std::env::temp_dir().join(format!("kinglet-target-{}", std::process::id()));
        let path = root.join("model");
        let write = |overwrite, text: &str| {
            Target::new(&path, overwrite, &[])
                .unwrap()
                .write(|f| f.write_bytes("config.json", text.as_bytes()))
                .unwrap();
        };
        write(false, "1");
        assert!(error(&path, false).contains("--overwrite"));
        write(true, "2");
        assert_eq!(std::fs::read(path.join("config.json")).unwrap(), b"2");
        assert!(Target::new(&path, true, &[&path]).err().unwrap().to_string().contains("what is read"));
        std::fs::write(path.join("notes.txt"), "mine").unwrap();
        assert!(error(&path, true).contains("notes.txt"));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
