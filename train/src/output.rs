//! The folder that a run writes: whose it is, its checkpoints, its result.

use crate::log::LOG;
use crate::settings::Settings;
use kinglet_models::fs::{Disk, MANIFEST, is_temporary, recover_inside, verify_manifest, write_file_atomic};
use kinglet_tensor::{Error, Result};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What is in the folder before a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Contents {
    /// Nothing, or no folder.
    Nothing,
    /// A run, finished or not.
    Run,
    /// Something else, such as this.
    Foreign(String),
}

/// The output folder.
pub(crate) struct Output {
    pub(crate) path: PathBuf,
}

/// Files of a run in OUTPUT, besides `checkpoint-N/` and the model's shards.
const OURS: [&str; 11] = [
    Settings::FILE,
    LOG,
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
];

const CHECKPOINT: &str = "checkpoint-";

impl Output {
    pub(crate) fn new(path: &Path) -> Self {
        Output { path: path.into() }
    }

    /// Takes the folder for this process until what is returned is dropped, or the process ends in whatever way. `None`
    /// where there is no folder yet, or its file system has no locks.
    ///
    /// # Errors
    /// When a living run has it.
    pub(crate) fn lock(&self) -> Result<Option<File>> {
        let Ok(folder) = File::open(&self.path) else { return Ok(None) };
        match folder.try_lock() {
            Ok(()) => Ok(Some(folder)),
            Err(TryLockError::WouldBlock) => Err(Error::invalid(format!(
                "{}: another run is writing it: wait for its end, stop it, or choose another folder for --output",
                self.path.display()
            ))),
            Err(TryLockError::Error(_)) => Ok(None),
        }
    }

    /// What is there. A symbolic link to a folder is that folder; a file in its place is an error.
    pub(crate) fn contents(&self) -> Result<Contents> {
        if self.path.join(Settings::FILE).exists() {
            return Ok(Contents::Run);
        }
        let names = self.names()?;
        // A process that was killed before it wrote its settings leaves a temporary file at most.
        let foreign = names.into_iter().find(|name| !is_temporary(name));
        Ok(foreign.map_or(Contents::Nothing, Contents::Foreign))
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(format!("{}: cannot be the output", self.path.display()), e)),
        };
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|e| Error::io(self.path.display(), e))?;
        names.sort_unstable();
        Ok(names)
    }

    /// Deletes the run in the folder, and nothing else.
    pub(crate) fn clear(&self) -> Result<()> {
        recover_inside(&Disk, &self.path)?;
        // The settings go last: as long as they are there, the folder is known to be a run's.
        let mut names = self.names()?;
        names.sort_by_key(|name| name == Settings::FILE);
        for name in names.iter().filter(|name| is_ours(name)) {
            let path = self.path.join(name);
            let gone = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            gone.map_err(|e| Error::io(format!("{}: cannot delete it", path.display()), e))?;
        }
        Ok(())
    }

    /// Makes the folder a run's.
    pub(crate) fn begin(&self, settings: &Settings) -> Result<()> {
        recover_inside(&Disk, &self.path)?;
        let mut text = serde_json::to_string_pretty(settings).map_err(|e| Error::invalid(format!("settings: {e}")))?;
        text.push('\n');
        self.write(Settings::FILE, text.as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_file_atomic(&Disk, &self.path.join(name), |out| {
            out.write_all(bytes).map_err(|e| Error::io("cannot write", e))
        })
    }

    /// The folder of the checkpoint after `step` steps.
    pub(crate) fn checkpoint(&self, step: u64) -> PathBuf {
        self.path.join(format!("{CHECKPOINT}{step}"))
    }

    /// Steps of all checkpoint folders, newest first.
    pub(crate) fn checkpoints(&self) -> Result<Vec<u64>> {
        let names = self.names()?;
        let mut steps: Vec<u64> = names.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    /// Finishes or undoes what a killed process left half done.
    pub(crate) fn recover(&self) -> Result<()> {
        recover_inside(&Disk, &self.path).map(drop)
    }

    /// The newest checkpoint whose files are whole. `damaged` hears of those that are not.
    pub(crate) fn newest(&self, mut damaged: impl FnMut(&Error)) -> Result<Option<u64>> {
        for step in self.checkpoints()? {
            match verify_manifest(&Disk, &self.checkpoint(step)) {
                Ok(_) => return Ok(Some(step)),
                Err(e) => damaged(&e),
            }
        }
        Ok(None)
    }

    /// Deletes all but the `limit` newest checkpoints.
    pub(crate) fn rotate(&self, limit: usize) -> Result<()> {
        for step in self.checkpoints()?.into_iter().skip(limit) {
            let path = self.checkpoint(step);
            // Without its manifest the folder is no checkpoint, however far the deletion gets; a process that was killed
            // may have got so far before.
            let gone = match std::fs::remove_file(path.join(MANIFEST)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => std::fs::remove_dir_all(&path),
            };
            gone.map_err(|e| Error::io(format!("{}: cannot delete it", path.display()), e))?;
        }
        Ok(())
    }

    /// Copies the result out of the last checkpoint. The configuration comes last: it says that the result is whole.
    pub(crate) fn publish(&self, step: u64) -> Result<()> {
        let from = self.checkpoint(step);
        let mut files = verify_manifest(&Disk, &from)?.files;
        files.retain(|file| !file.name.starts_with(crate::checkpoint::STATE));
        files.sort_by_key(|file| is_configuration(&file.name));
        for file in files {
            let source = from.join(&file.name);
            let mut reader = std::fs::File::open(&source).map_err(|e| Error::io(source.display(), e))?;
            write_file_atomic(&Disk, &self.path.join(&file.name), |out| {
                std::io::copy(&mut reader, out).map(drop).map_err(|e| Error::io(source.display(), e))
            })?;
        }
        Ok(())
    }

    /// Whether the result is there and every file of it has the size that it has in its checkpoint, as long as that is
    /// there too.
    pub(crate) fn is_whole(&self) -> Result<bool> {
        if !["adapter_config.json", "config.json"].iter().any(|name| self.path.join(name).exists()) {
            return Ok(false);
        }
        let Some(&last) = self.checkpoints()?.first() else { return Ok(true) };
        let Ok(manifest) = verify_manifest(&Disk, &self.checkpoint(last)) else { return Ok(true) };
        let mut result = manifest.files.iter().filter(|file| !file.name.starts_with(crate::checkpoint::STATE));
        Ok(result.all(|file| std::fs::metadata(self.path.join(&file.name)).is_ok_and(|found| found.len() == file.size)))
    }
}

fn is_ours(name: &str) -> bool {
    let is_shard =
        name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"));
    OURS.contains(&name) || is_shard || step_of(name).is_some()
}

/// N of `checkpoint-N`.
fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix(CHECKPOINT)?.parse().ok()
}

fn is_configuration(name: &str) -> bool {
    name == "adapter_config.json" || name == "config.json"
}
