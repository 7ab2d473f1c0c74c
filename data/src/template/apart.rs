//! A template that is compiled and run in a process of its own: the side that asks.

use super::SpecialTokens;
use super::render::MAX_OUTPUT_BYTES;
use super::serve::{Answer, Chat, MEMORY_LIMIT, Opening};
use kinglet_tensor::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest answer that is read, in bytes: every byte of a text may be written as `\u00xx`.
const MAX_ANSWER_BYTES: u64 = 6 * MAX_OUTPUT_BYTES as u64 + 1024;
/// How much of what a process says before it dies is read.
const MAX_LAST_WORDS: u64 = 64 << 10;
/// What a pipe holds on any system: that much is written without waiting for the other side, which may be writing too.
const PIPE_BYTES: usize = 8 << 10;
/// A chat takes a millisecond, and its steps are bounded to about a second: this much only a template takes that nests
/// values without end, on a machine however busy.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// How to start a process that calls [`serve`](super::serve), and how long it may take for a chat.
#[derive(Clone)]
pub struct Renderer {
    command: Arc<dyn Fn() -> Command + Send + Sync>,
    time_limit: Duration,
}

impl Renderer {
    /// Processes are started by `command`, whose streams are taken: it reads requests from standard input, writes
    /// nothing but answers on standard output, and little on standard error.
    pub fn new(command: impl Fn() -> Command + Send + Sync + 'static) -> Self {
        Renderer { command: Arc::new(command), time_limit: TIME_LIMIT }
    }

    /// Another limit than 30 seconds for compiling a template, and for each chat. It is kept to half a second.
    #[must_use]
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }
}

impl fmt::Debug for Renderer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renderer").field("time_limit", &self.time_limit).finish_non_exhaustive()
    }
}

/// A template in a process of its own.
pub(super) struct Apart {
    renderer: Renderer,
    opening: Opening,
    /// Absent after an error that ended it; the next chat starts another.
    process: Mutex<Option<Process>>,
}

impl Apart {
    pub(super) fn compile(
        templates: &Value,
        origin: &str,
        special_tokens: &SpecialTokens,
        renderer: &Renderer,
    ) -> Result<Self> {
        let opening = Opening {
            templates: templates.clone(),
            origin: origin.to_owned(),
            special_tokens: special_tokens.clone(),
            clock: None,
            time_limit: renderer.time_limit,
        };
        let apart = Apart { renderer: renderer.clone(), opening, process: Mutex::new(None) };
        let process = apart.start()?;
        *apart.lock() = Some(process);
        Ok(apart)
    }

    /// Takes effect with a new process.
    pub(super) fn set_clock(&mut self, unix_seconds: i64) {
        self.opening.clock = Some(unix_seconds);
        *self.lock() = None;
    }

    /// What came of each chat, or why the process died of them.
    pub(super) fn render_all(&self, chats: &[Chat<'_>]) -> Result<Vec<Result<String>>> {
        let mut kept = self.lock();
        // Taken out, so that a process which did not answer is never asked again.
        let process = kept.take().and_then(Process::if_alive).map_or_else(|| self.start(), Ok)?;
        let (process, answers) = self.ask(process, chats)?;
        *kept = Some(process);
        Ok(answers.into_iter().map(text).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process that has compiled the template.
    fn start(&self) -> Result<Process> {
        let process = Process::start((self.renderer.command)())
            .map_err(|e| Error::io(format!("cannot start a process to render {}", self.opening.origin), e))?;
        let (process, answers) = self.ask(process, std::slice::from_ref(&self.opening))?;
        answers.into_iter().try_for_each(|answer| text(answer).map(drop))?;
        Ok(process)
    }

    /// The answers to `messages`, or why the process died of them.
    fn ask(&self, mut process: Process, messages: &[impl Serialize]) -> Result<(Process, Vec<Answer>)> {
        let start = Instant::now();
        match process.exchange(messages) {
            Ok(answers) => Ok((process, answers)),
            Err(failed) => {
                let why = match start.elapsed() >= self.renderer.time_limit {
                    true => format!("takes longer than {} s", self.renderer.time_limit.as_secs_f32()),
                    false => process.cause_of_death(&failed),
                };
                Err(Error::invalid(format!("chat template {}: {why}", self.opening.origin)))
            }
        }
    }
}

fn text(answer: Answer) -> Result<String> {
    match answer {
        Answer::Text(text) => Ok(text),
        Answer::Error(line) => Err(Error::invalid(line)),
    }
}

fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// A process that renders; it is ended when this is dropped.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(mut command: Command) -> io::Result<Self> {
        // An abort says why in one line.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("RUST_BACKTRACE", "0");
        // Ctrl-C on the terminal is meant for this process, which then decides what becomes of the other.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("its streams are not there"));
        };
        Ok(Process { child, input, output: BufReader::new(output) })
    }

    fn if_alive(mut self) -> Option<Self> {
        matches!(self.child.try_wait(), Ok(None)).then_some(self)
    }

    /// Small messages go together, so that the two processes wait for each other once.
    fn exchange(&mut self, messages: &[impl Serialize]) -> io::Result<Vec<Answer>> {
        let lines = messages.iter().map(line).collect::<io::Result<Vec<_>>>()?;
        if lines.iter().map(Vec::len).sum::<usize>() <= PIPE_BYTES {
            self.input.write_all(&lines.concat())?;
            return lines.iter().map(|_| self.answer()).collect();
        }
        let mut ask = |line: &Vec<u8>| self.input.write_all(line).and_then(|()| self.answer());
        lines.iter().map(&mut ask).collect()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let mut line = Vec::new();
        self.output.by_ref().take(MAX_ANSWER_BYTES).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }

    /// Why there was no answer, as far as the process and its standard error tell.
    fn cause_of_death(mut self, failed: &io::Error) -> String {
        let ended = self.end();
        let mut words = Vec::new();
        if let Some(errors) = self.child.stderr.take() {
            let _ = errors.take(MAX_LAST_WORDS).read_to_end(&mut words); // what can be read must do
        }
        let words = String::from_utf8_lossy(&words);
        if words.contains("memory allocation of") {
            return format!("needs more than {} MiB of memory", MEMORY_LIMIT >> 20);
        }
        if words.contains("has overflowed its stack") {
            return "nests values too deeply".to_owned();
        }
        let ended = ended.map_or_else(|e| e.to_string(), |status| status.to_string());
        let said = words.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        format!("the process that renders it failed ({failed}; {ended}) {said}").trim_end().to_owned()
    }

    /// Ends the process if it did not end by itself.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let _ = self.child.kill(); // it may be gone already
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.end(); // nobody is left to tell
    }
}
