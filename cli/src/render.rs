//! Chat templates are programs of strangers: they are compiled and run in a process of their own, with a limit of memory
//! and of time. It is this same program, called as `kinglet render-chats`.

use kinglet_data::Renderer;
use kinglet_data::template::serve;
use kinglet_tensor::{Error, Result};
use std::process::Command;

/// How the other commands start that process.
///
/// # Errors
/// When the system does not tell where this program is.
pub(crate) fn renderer() -> Result<Renderer> {
    let program = std::env::current_exe().map_err(|e| Error::io("cannot find kinglet itself, to render chats", e))?;
    Ok(Renderer::new(move || {
        let mut command = Command::new(&program);
        command.arg("render-chats");
        command
    }))
}

/// `kinglet render-chats`, which no user calls.
///
/// # Errors
/// When standard input holds something else than requests.
pub(crate) fn run() -> Result<()> {
    serve(std::io::stdin(), std::io::stdout())
}
