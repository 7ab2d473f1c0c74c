//! The kinglet command line: fine-tune, generate, evaluate, merge, quantise, inspect.
//!
//! Exit codes: 0 done; 2 the input is at fault, with one line on standard error that says what and what to do; 1 a
//! fault of kinglet itself.
#![forbid(unsafe_code)]

mod args;
mod generate;
mod options;
mod session;

use args::{Cli, Command};
use clap::Parser;
use clap::error::ErrorKind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kinglet: {error}");
            ExitCode::from(2)
        }
    }
}

/// Prints help and version on standard output with 0, everything else on standard error with 2.
fn usage(error: &clap::Error) -> ExitCode {
    let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let _ = error.print();
    if help { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

fn run(cli: Cli) -> kinglet_tensor::Result<()> {
    match cli.command {
        Some(Command::Generate(args)) => generate::run(&args),
        _ => Err(kinglet_tensor::Error::unsupported("not in this build yet")),
    }
}
