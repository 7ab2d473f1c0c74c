//! What the tests of the binary share: folders, a small model, and running `kinglet`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder that is deleted in the end.
pub(crate) struct Temp(pub(crate) PathBuf);

impl Temp {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kinglet-cli-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Temp(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The path as an argument.
    pub(crate) fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file and returns its path as an argument.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.arg(name)
    }

    /// A copy of the fixture model, to be spoilt.
    pub(crate) fn model(&self) -> PathBuf {
        let to = self.path("model");
        copy(Path::new(&model()), &to);
        to
    }

    /// `rows` rows with a question and an answer each.
    pub(crate) fn rows(&self, rows: usize) -> String {
        let row = |i| format!("{{\"prompt\": \"What is {i}?\", \"completion\": \"It is {i}.\"}}\n");
        self.write("rows.jsonl", (0..rows).map(row).collect::<String>())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub(crate) fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name).display().to_string()
}

/// A Llama of two layers and 307 tokens, with a tokenizer and a chat template.
pub(crate) fn model() -> String {
    fixture("train/base-llama")
}

pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_kinglet")
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).env_remove("KINGLET_SIMD").stdin(Stdio::null());
    command
}

/// What a command printed, and its exit code.
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let done =
            Done { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) };
        assert!(!done.err.contains("panicked") && !done.err.contains("RUST_BACKTRACE"), "a panic: {}", done.err);
        done
    }
}

pub(crate) fn run(args: &[&str]) -> Done {
    command(args).output().unwrap().into()
}

/// Runs a command that must succeed.
pub(crate) fn ok(args: &[&str]) -> Done {
    let done = run(args);
    assert_eq!(done.code, 0, "{args:?}: {}", done.err);
    done
}

/// Runs a command that must end with 2 and one line on standard error, which it returns; warnings may come before.
pub(crate) fn refused(args: &[&str]) -> String {
    refusal(run(args), args)
}

pub(crate) fn refusal(done: Done, args: &[&str]) -> String {
    assert_eq!(done.code, 2, "{args:?}: {}{}", done.out, done.err);
    assert_eq!(done.out, "", "{args:?}");
    let lines: Vec<&str> = done.err.lines().filter(|line| !line.starts_with("warning: ")).collect();
    assert_eq!(lines.len(), 1, "{args:?}: {}", done.err);
    assert!(lines[0].starts_with("kinglet: "), "{args:?}: {}", done.err);
    lines[0].to_string()
}

#[track_caller]
pub(crate) fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

pub(crate) fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

pub(crate) fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

pub(crate) fn spawn(args: &[&str]) -> Child {
    let mut started = command(args);
    if ignores_ctrl_c() {
        started = Command::new("env");
        started.arg("--default-signal=INT").arg(binary()).args(args).env_remove("KINGLET_SIMD").stdin(Stdio::null());
    }
    started.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Whether the tests were started in the background of a shell that makes such processes, and what they start, deaf to
/// Ctrl-C.
fn ignores_ctrl_c() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or("0").trim();
    u64::from_str_radix(ignored, 16).is_ok_and(|bits| bits & 0b10 != 0)
}

/// Sends SIGTERM.
pub(crate) fn terminate(child: &Child) {
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
}

/// Names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}
