//! The process that compiles and renders a template for another one.
//!
//! One JSON value a line: first an [`Opening`], then a [`Chat`] for each rendering; each line is answered by an
//! [`Answer`]. Limits are set before the first line is read. What breaks them ends this process, and the other one finds
//! out why.

use super::render::Program;
use super::{Message, RenderOptions, SpecialTokens};
use kinglet_tensor::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The address space of a process that renders, in bytes: several times what the longest text takes that a template may
/// write.
pub const MEMORY_LIMIT: u64 = 1 << 30;
/// Far more than the interpreter needs for what it recurses into; a value nested a million deep needs more.
const STACK_BYTES: usize = 64 << 20;
/// How often the time is looked at.
const TICK: Duration = Duration::from_millis(500);

/// What the process is told first: the template.
#[derive(Serialize, Deserialize)]
pub(super) struct Opening {
    /// The value of `chat_template` in `tokenizer_config.json`.
    pub(super) templates: Value,
    pub(super) origin: String,
    pub(super) special_tokens: SpecialTokens,
    /// What `strftime_now` shows, if it is defined.
    pub(super) clock: Option<i64>,
    /// How long compiling, or a chat, may take.
    pub(super) time_limit: Duration,
}

/// A chat to render.
#[derive(Serialize, Deserialize)]
pub(crate) struct Chat<'a> {
    pub(crate) messages: Cow<'a, [Message]>,
    pub(crate) options: Cow<'a, RenderOptions>,
}

/// What came of a line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    /// The rendered chat; nothing for a template that is compiled.
    Text(String),
    /// The whole line to show.
    Error(String),
}

/// Renders chats for a [`Renderer`](super::Renderer): reads requests from `input` and writes answers to `output` until
/// `input` ends. A program that uses the one calls this from `main` where it sees an argument of its own choice, with
/// standard input and output, and then ends.
///
/// On Linux the process limits its own memory to [`MEMORY_LIMIT`]. A template that needs more, or more stack than there
/// is, or more time than the request allows, **aborts the process**.
///
/// # Errors
/// When the system refuses the limits, a request is none, or `input` or `output` fail.
pub fn serve(input: impl Read + Send + 'static, output: impl Write + Send + 'static) -> Result<()> {
    limit_resources()?;
    let watch = Arc::new(Watch::default());
    let (alive, ended) = channel::<()>();
    let answering = {
        let watch = watch.clone();
        move || {
            let _alive = alive; // dropped at the end, also of a panic
            answer_all(BufReader::new(input), output, &watch)
        }
    };
    let worker = thread::Builder::new().stack_size(STACK_BYTES).spawn(answering);
    let worker = worker.map_err(|e| Error::io("a thread to render chats", e))?;
    while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        if watch.is_overdue() {
            // Nothing that allocates or takes a lock: the thread that is ended may hold it.
            std::process::abort();
        }
    }
    worker.join().unwrap_or_else(|_| Err(Error::invalid("rendering a chat panicked")))
}

fn answer_all(mut input: impl BufRead, mut output: impl Write, watch: &Watch) -> Result<()> {
    let Some(opening) = next::<Opening>(&mut input)? else { return Ok(()) };
    let program = watch.during(opening.time_limit, || compile(&opening));
    let compiled = program.as_ref().map(|_| String::new()).map_err(Error::invalid);
    answer(&mut output, compiled)?;
    let Ok(program) = program else { return Ok(()) };
    while let Some(chat) = next::<Chat<'_>>(&mut input)? {
        answer(&mut output, watch.during(opening.time_limit, || program.render(&chat.messages, &chat.options)))?;
    }
    Ok(())
}

fn compile(opening: &Opening) -> Result<Program> {
    let mut program = Program::compile(&opening.templates, &opening.origin, &opening.special_tokens)?;
    if let Some(unix_seconds) = opening.clock {
        program.set_clock(unix_seconds);
    }
    Ok(program)
}

/// The value on the next line; `None` at the end.
fn next<T: DeserializeOwned>(input: &mut impl BufRead) -> Result<Option<T>> {
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line).map_err(|e| Error::io("a request to render", e))?;
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).map_err(|e| Error::invalid(format!("not a request to render: {e}")))
}

fn answer(output: &mut impl Write, rendered: Result<String>) -> Result<()> {
    let answer = rendered.map_or_else(|e| Answer::Error(e.to_string()), Answer::Text);
    let mut line = serde_json::to_vec(&answer).map_err(Error::invalid)?;
    line.push(b'\n');
    output.write_all(&line).and_then(|()| output.flush()).map_err(|e| Error::io("a rendered chat", e))
}

/// When what is being done must be over.
#[derive(Default)]
struct Watch(Mutex<Option<Instant>>);

impl Watch {
    fn during<T>(&self, limit: Duration, work: impl FnOnce() -> T) -> T {
        self.set(Instant::now().checked_add(limit));
        let done = work();
        self.set(None);
        done
    }

    fn set(&self, deadline: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    fn is_overdue(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|deadline| Instant::now() > deadline)
    }
}

/// Bounds the memory of this process, and makes it the first to go when the machine has none left.
#[cfg(target_os = "linux")]
fn limit_resources() -> Result<()> {
    use rlimit::Resource;
    let lower = |resource: Resource, limit: u64| {
        let (_, hard) = resource.get()?;
        resource.set(limit.min(hard), limit.min(hard))
    };
    lower(Resource::AS, MEMORY_LIMIT).map_err(|e| Error::io("a limit of memory", e))?;
    lower(Resource::CORE, 0).map_err(|e| Error::io("a limit of core dumps", e))?;
    // Advice to the kernel: where /proc is not there or not to be written, the limit above is what holds.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

/// Other systems have no such limit (Windows), or do not keep to it (macOS).
#[cfg(not(target_os = "linux"))]
fn limit_resources() -> Result<()> {
    Ok(())
}
