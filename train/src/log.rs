//! `log.jsonl`: one JSON object an optimiser step, and one an evaluation.

use crate::report::{EvalRow, StepRow};
use kinglet_models::fs::{Disk, write_file_atomic};
use kinglet_tensor::{Error, Result};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The log's name in OUTPUT.
pub(crate) const LOG: &str = "log.jsonl";

/// The log, open at its end.
pub(crate) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens the log in `output`, which it makes when it is not there, and drops rows of steps after `done`: they will
    /// be made again. So does a last row that was cut off in the middle.
    pub(crate) fn open(output: &Path, done: u64) -> Result<Self> {
        let path = output.join(LOG);
        let failed = |e| Error::io(path.display(), e);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(failed(e)),
        };
        let kept = kept_rows(&text, done);
        if kept != text {
            write_file_atomic(&Disk, &path, |out| {
                out.write_all(kept.as_bytes()).map_err(|e| Error::io("cannot write", e))
            })?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(failed)?;
        Ok(Log { file, path })
    }

    pub(crate) fn step(&mut self, row: &StepRow) -> Result<()> {
        self.write(row)
    }

    pub(crate) fn eval(&mut self, row: &EvalRow) -> Result<()> {
        self.write(row)
    }

    /// Whether there is a row of the evaluation after `step`.
    pub(crate) fn has_evaluation(&self, step: u64) -> Result<bool> {
        let text = std::fs::read_to_string(&self.path).map_err(|e| Error::io(self.path.display(), e))?;
        let rows = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(rows.into_iter().any(|row| row["step"] == step && row.get("eval_loss").is_some()))
    }

    /// Makes every row so far durable: a checkpoint must not outlive the rows before it.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(self.path.display(), e))
    }

    fn write(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(row).map_err(|e| Error::invalid(format!("log row: {e}")))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(self.path.display(), e))
    }
}

/// The whole rows of steps up to `done`.
fn kept_rows(text: &str, done: u64) -> String {
    let is_kept = |line: &&str| {
        let row: Option<serde_json::Value> = serde_json::from_str(line).ok();
        line.ends_with('\n') && row.and_then(|row| row["step"].as_u64()).is_some_and(|step| step <= done)
    };
    text.split_inclusive('\n').filter(is_kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_after_the_checkpoint_and_torn_rows_go() {
        let text = "{\"step\":1}\n{\"step\":2}\n{\"step\":2,\"eval_loss\":1}\n{\"step\":3}\n{\"st";
        assert_eq!(kept_rows(text, 2), "{\"step\":1}\n{\"step\":2}\n{\"step\":2,\"eval_loss\":1}\n");
        assert_eq!(kept_rows("{\"step\":1}", 5), "");
        assert_eq!(kept_rows(text, 0), "");
    }
}
