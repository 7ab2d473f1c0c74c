//! What the commands say, and how numbers look to a reader. Results go to standard output; progress, warnings and hints
//! to standard error.

use kinglet_tensor::{Error, Result};
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Prints a result. A reader that went away (`| head`) is no error; a full disk is.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn out(text: impl Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("standard output", e)),
        _ => Ok(()),
    }
}

/// Prints a line for the reader on standard error; when nobody listens, the work goes on all the same.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Something that the user should know and that stops nothing.
pub(crate) fn warn(text: impl Display) {
    note(format!("warning: {text}"));
}

/// The next command to try.
pub(crate) fn next(command: impl Display) {
    note(format!("next: kinglet {command}"));
}

/// A path as a shell takes it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%~".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { in_quotes(&text) }
}

/// Any text as a shell takes it.
pub(crate) fn in_quotes(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Text with its line breaks and other control characters taken out.
pub(crate) fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").replace(char::is_control, " ")
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes in the largest unit that it fills.
pub(crate) fn bytes(n: usize) -> String {
    format!("{:.1}", kinglet_train::ByteSize(n as u64))
}

/// Seconds as h:mm:ss or m:ss.
pub(crate) fn clock(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    let (hours, minutes, seconds) = (s / 3600, s / 60 % 60, s % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!((grouped(0), grouped(999), grouped(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!((bytes(12), bytes(3 << 29)), ("12 bytes".into(), "1.5 GiB".into()));
        assert_eq!((clock(59.6), clock(3661.0)), ("1:00".into(), "1:01:01".into()));
    }

    #[test]
    fn text_is_safe_to_print_and_to_paste() {
        assert_eq!(one_line("a\n  b\r\n\n\u{7}c"), "a; b;  c");
        assert_eq!(quoted(Path::new("a/b-1.gguf")), "a/b-1.gguf");
        assert_eq!(quoted(Path::new("it's here")), r"'it'\''s here'");
    }
}
