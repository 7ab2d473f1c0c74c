//! Another process that measures: PyTorch's worker, or kinglet itself. It reads jobs from its standard input, one JSON
//! object a line, and answers each with one line on its standard output.

use kinglet_tensor::{Error, Result};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often a waiting parent looks for a signal.
const LOOK: Duration = Duration::from_millis(20);
/// Lines of standard error that are kept, for the message when something fails.
const KEPT: usize = 20;

/// A running process. It ends when this is dropped; it would also end by itself, because its input ends.
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
    said: Arc<Mutex<VecDeque<String>>>,
}

/// What came of a job.
pub(crate) enum Answer {
    Measured(Value),
    /// The peer lacks a module of this name.
    Missing(String),
}

impl Process {
    /// Starts `command`; `name` is for messages.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = started.map_err(|e| Error::io(format!("{name}: cannot start {program}"), e))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Error::invalid(format!("{name}: {program} has no pipes")));
        };
        let (send, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let said = Arc::<Mutex<VecDeque<String>>>::default();
        let kept = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(line);
                if kept.len() > KEPT {
                    kept.pop_front();
                }
            }
        });
        Ok(Process { name: name.into(), child, stdin, answers, said })
    }

    /// Gives the process a job and waits for the answer, or until `stop` is set.
    ///
    /// # Errors
    /// When the process fails or answers with an error, or `stop` is set.
    pub(crate) fn ask(&mut self, job: &Value, stop: &AtomicBool) -> Result<Answer> {
        // A process that ended already is found out below, with what it said.
        let _ = writeln!(self.stdin, "{job}").and_then(|()| self.stdin.flush());
        let line = loop {
            check(stop)?;
            match self.answers.recv_timeout(LOOK) {
                Ok(line) => break line,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
        };
        let answer: Value = serde_json::from_str(&line)
            .map_err(|e| Error::invalid(format!("{}: answered {line:?}: {e}", self.name)))?;
        match (&answer["error"], &answer["missing"]) {
            (Value::String(error), _) => Err(Error::invalid(format!("{}: {error}", self.name))),
            (_, Value::String(module)) => Ok(Answer::Missing(module.clone())),
            _ => Ok(Answer::Measured(answer)),
        }
    }

    /// Why there was no answer.
    fn ended(&mut self) -> Error {
        let status = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        // The thread that reads has the last lines soon after the end.
        std::thread::sleep(LOOK);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let last = said.iter().rev().find(|line| !line.trim().is_empty()).cloned().unwrap_or_default();
        Error::invalid(format!("{}: ended without an answer ({status}): {last}", self.name))
    }

    /// As [`machine::peak_mib`](super::machine::peak_mib) of the process; only while it lives.
    pub(crate) fn peak_mib(&self) -> Option<f64> {
        super::machine::peak_mib(&self.child.id().to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has nothing to save, and it may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program that takes no jobs to its end; returns its standard output and its peak memory in MiB.
///
/// # Errors
/// When it cannot be started or fails, or `stop` is set.
pub(crate) fn run(name: &str, command: &mut Command, stop: &AtomicBool) -> Result<(String, Option<f64>)> {
    let process = Process::start(name, command)?;
    let (mut text, mut peak) = (String::new(), None);
    let mut process = process;
    loop {
        check(stop)?;
        peak = process.peak_mib().or(peak);
        match process.answers.recv_timeout(LOOK) {
            Ok(line) => text = text + &line + "\n",
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    match process.child.wait() {
        Ok(status) if status.success() => Ok((text, peak)),
        _ => Err(process.ended()),
    }
}

/// # Errors
/// When `stop` is set: what is measured is thrown away.
pub(crate) fn check(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(Error::invalid("interrupted")) } else { Ok(()) }
}
