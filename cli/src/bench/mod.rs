//! `kinglet bench`: kinglet beside its peers, measured in turns in one run.

pub(crate) mod args;
mod decode;
mod jobs;
mod machine;
mod measure;
mod op;
mod ops;
mod process;
mod pytorch;
mod report;
mod shapes;
mod step;

use crate::bench::args::{BenchArgs, What};
use crate::signals::Caught;
use kinglet_tensor::{Device, Error, Result};
use std::path::Path;

/// # Errors
/// When the input is at fault.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if matches!(args.what, What::Measure) {
        return measure::run();
    }
    // Processes that were started are ended in order, before this one.
    let caught = Caught::new()?;
    let done = match &args.what {
        What::Op(args) => op::run(args, caught.asked()),
        What::Step(args) => step::run(args, caught.asked()),
        What::Decode(args) => decode::run(args, caught.asked()),
        What::Measure => Ok(()),
    };
    caught.end_if_asked()?;
    done
}

/// Says of a model that is not there so, before anything is measured.
fn check_model(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    Err(Error::invalid(format!("--model {}: is not there: give a Hugging Face folder or a .gguf file", path.display())))
}

/// The threads of a CPU device.
fn threads(device: &Device) -> Result<usize> {
    Ok(device.as_cpu()?.threads())
}
