//! PyTorch as a peer: finding it, and starting its worker.

use crate::bench::args::Common;
use crate::bench::process::{Answer, Process, check};
use crate::bench::report;
use crate::console::note;
use kinglet_tensor::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

/// Where scripts/setup-pytorch makes the environment.
const PYTHON: &str = ".venv/bin/python";
const WORKER: &str = "worker.py";

/// An installed PyTorch.
pub(crate) struct Pytorch {
    python: PathBuf,
    worker: PathBuf,
    threads: usize,
    /// Versions of what it has, by name.
    pub(crate) versions: Value,
    /// What the tuned setting computes in, for the notes.
    pub(crate) tuned: String,
    /// The name of its column.
    pub(crate) tuned_column: &'static str,
}

impl Pytorch {
    /// The PyTorch that the options name; `None`, with a note why, where there is none.
    ///
    /// # Errors
    /// When what was asked for is not there, or does not work.
    pub(crate) fn find(
        options: &Common,
        threads: usize,
        notes: &mut Vec<String>,
        stop: &AtomicBool,
    ) -> Result<Option<Self>> {
        if options.no_peers {
            return Ok(None);
        }
        let worker = options.scripts.join(WORKER);
        let python = options.python.clone().unwrap_or_else(|| PYTHON.into());
        let missing = if !python.exists() {
            format!("{}: is not there: scripts/setup-pytorch makes it, or give --python", python.display())
        } else if !worker.exists() {
            format!("{}: is not there: run kinglet in its repository, or give --scripts", worker.display())
        } else {
            let (versions, tuned) = (Value::Null, String::new());
            let mut found = Pytorch { python, worker, threads, versions, tuned, tuned_column: "" };
            return match found.ask_about(stop)? {
                None => Ok(Some(found)),
                Some(module) => skip(options, format!("{}: has no module {module}", found.python.display()), notes),
            };
        };
        skip(options, missing, notes)
    }

    /// Learns versions and settings; the module that is missing, if one is.
    fn ask_about(&mut self, stop: &AtomicBool) -> Result<Option<String>> {
        let about = match self.start()?.ask(&json!({"job": "about", "threads": self.threads}), stop)? {
            Answer::Missing(module) => return Ok(Some(module)),
            Answer::Measured(about) => about,
        };
        self.versions = about["versions"].clone();
        let error = about["tuned_error"].as_f64().unwrap_or(f64::NAN);
        let is_f32 = error < 1e-5;
        let what = if is_f32 { "true f32" } else { "bf16, to which it rounds the operands" };
        self.tuned_column = if is_f32 { "PyTorch tuned" } else { "PyTorch tuned (rounds to bf16)" };
        self.tuned = format!(
            "PyTorch tuned is torch.backends.mkldnn.matmul.fp32_precision = \"bf16\"; on this CPU it computes in {what} (error \
             {error:.1e} of a product)"
        );
        Ok(None)
    }

    /// A new process that does jobs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(&self) -> Result<Process> {
        self.start_with(self.threads)
    }

    /// As [`Pytorch::start`], with another number of threads.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start_with(&self, threads: usize) -> Result<Process> {
        let mut command = Command::new(&self.python);
        command.arg("-u").arg(&self.worker).env("OMP_NUM_THREADS", threads.to_string());
        Process::start("PyTorch", &mut command)
    }

    /// The Hugging Face folder that it loads for `model`: that itself, or one made beside a .gguf file, once, with its
    /// weights decoded to bf16. `None`, with a note why, where it cannot make one.
    ///
    /// # Errors
    /// When the run is to end.
    pub(crate) fn folder(&self, model: &Path, notes: &mut Vec<String>, stop: &AtomicBool) -> Result<Option<PathBuf>> {
        if model.is_dir() {
            return Ok(Some(model.into()));
        }
        note(format!("{}: PyTorch reads it decoded to bf16, from a folder beside it", model.display()));
        let job = json!({"job": "folder", "model": model, "threads": self.threads});
        let why = match self.start().and_then(|mut process| process.ask(&job, stop)) {
            Ok(Answer::Measured(answer)) => match answer["folder"].as_str() {
                Some(folder) => return Ok(Some(folder.into())),
                None => format!("it answered {answer}"),
            },
            Ok(Answer::Missing(module)) => format!("it has no module {module}"),
            Err(error) => {
                check(stop)?;
                error.to_string()
            }
        };
        report::skip(format!("PyTorch is skipped: no folder of {}: {why}", model.display()), notes);
        Ok(None)
    }

    /// Whether it has a module, by the name under which it is installed.
    pub(crate) fn has(&self, module: &str) -> bool {
        self.versions.get(module).is_some()
    }
}

/// Goes on without PyTorch, unless it was asked for by name.
fn skip(options: &Common, why: String, notes: &mut Vec<String>) -> Result<Option<Pytorch>> {
    if options.python.is_some() {
        return Err(Error::invalid(format!("--python: {why}")));
    }
    report::skip(format!("PyTorch is skipped: {why}"), notes);
    Ok(None)
}
