//! The kinglet command line: fine-tune, generate, evaluate, merge, quantise, inspect, bench.
//!
//! Exit codes: 0 done; 2 the input is at fault, with one line on standard error that says what and what to do; 1 a
//! fault of kinglet itself.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod bench;
mod conflicts;
mod console;
mod demo;
mod device;
mod eval;
mod finetune;
mod generate;
mod inspect;
mod merge;
mod options;
mod progress;
mod quantize;
mod render;
mod session;
mod settings;
mod signals;
mod target;

use args::{Cli, Command, DeviceArgs};
use clap::Parser;
use clap::error::ErrorKind;
use console::{note, one_line};
use kinglet_tensor::Error;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};
use std::process::ExitCode;

const INPUT_AT_FAULT: u8 = 2;
const KINGLET_AT_FAULT: u8 = 1;

fn main() -> ExitCode {
    set_hook(Box::new(ask_to_report));
    // Nothing is looked at after a panic, so nothing broken can be seen.
    match catch_unwind(AssertUnwindSafe(parse_and_run)) {
        Ok(code) => code,
        Err(_) => ExitCode::from(KINGLET_AT_FAULT),
    }
}

/// A panic is a fault of ours: one line that helps to find it.
fn ask_to_report(panic: &PanicHookInfo<'_>) {
    let what = panic.payload_as_str().unwrap_or("no message");
    let place = panic.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    note(one_line(&format!("kinglet: a fault in kinglet {version} itself, please report it: {what}{place}")));
}

fn parse_and_run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(format!("kinglet: {}{}", one_line(&error.to_string()), remedy(&error)));
            // Nothing that a user gives can make two holders of one parameter.
            ExitCode::from(if error.is_aliased() { KINGLET_AT_FAULT } else { INPUT_AT_FAULT })
        }
    }
}

/// What helps against an error that every command can meet anywhere.
fn remedy(error: &Error) -> &'static str {
    match error.is_out_of_memory() {
        true => {
            "; ask for less: a smaller batch, --max-length, --lora-r or --max-new-tokens, or --gradient-checkpointing"
        }
        false => "",
    }
}

fn run(cli: Cli) -> kinglet_tensor::Result<()> {
    signals::write_errors_instead_of_signals()?;
    match cli.command {
        None => demo::run(DeviceArgs::default()),
        Some(Command::Finetune(args)) => finetune::run(*args),
        Some(Command::Generate(args)) => generate::run(&args),
        Some(Command::Eval(args)) => eval::run(&args),
        Some(Command::Merge(args)) => merge::run(&args),
        Some(Command::Quantize(args)) => quantize::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::RenderChats) => render::run(),
    }
}

/// Prints help and version on standard output with 0, everything else as one line on standard error with 2.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A closed pipe (`| head`) is no fault of anybody.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    note(usage_line(&error.render().to_string()));
    ExitCode::from(INPUT_AT_FAULT)
}

/// clap's message without the usage below it, as one line.
fn usage_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let is_footer = |part: &&str| part.starts_with("Usage:") || part.starts_with("For more information");
    let parts = message.split("\n\n").map(str::trim).take_while(|part| !is_footer(part));
    let lines: Vec<String> = parts.map(|part| part.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    format!("kinglet: {}; --help lists the options", lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_is_one_line() {
        let error = Cli::try_parse_from(["kinglet", "merge", "--model", "m"]).err().unwrap();
        let line = usage_line(&error.render().to_string());
        assert!(line.starts_with("kinglet: ") && line.contains("--adapter") && line.contains("--output"), "{line}");
        assert!(!line.contains('\n') && !line.contains("Usage"), "{line}");
    }
}
