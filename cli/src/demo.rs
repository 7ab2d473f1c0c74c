//! The built-in demo: what `kinglet` does without any option.

use kinglet_tensor::{Error, Result};

/// # Errors
/// When the demo fails.
pub(crate) fn run() -> Result<()> {
    Err(Error::unsupported("the built-in demo is not in this build yet; kinglet finetune --help lists the options"))
}
