//! `kinglet bench`: kinglet beside its peers, measured in turns in one run.

pub(crate) mod args;
mod decode;
mod jobs;
mod machine;
mod measure;
mod op;
mod ops;
mod peaks;
mod process;
mod pytorch;
mod report;
mod shapes;
mod step;

use crate::bench::args::{BenchArgs, Common, What};
use crate::bench::pytorch::Pytorch;
use crate::signals::Caught;
use kinglet_tensor::{Device, Error, Result};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::atomic::AtomicBool;

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

/// What every run begins with: who is measured beside kinglet, and what the report says of machine and versions.
struct Setting {
    pytorch: Option<Pytorch>,
    rounds: usize,
    about: Map<String, Value>,
    notes: Vec<String>,
}

impl Setting {
    /// # Errors
    /// When the Python that was asked for does not run.
    fn new(options: &Common, device: &Device, usual_rounds: usize, stop: &AtomicBool) -> Result<Self> {
        let (threads, mut notes) = (threads(device)?, Vec::new());
        let pytorch = Pytorch::find(options, threads, &mut notes, stop)?;
        let rounds = options.rounds.unwrap_or(usual_rounds);
        let mut about = machine::describe(device);
        about.insert("threads".into(), threads.into());
        about.insert("rounds".into(), rounds.into());
        if let Some(pytorch) = &pytorch {
            about.insert("versions".into(), pytorch.versions.clone());
        }
        Ok(Setting { pytorch, rounds, about, notes })
    }
}

/// The threads of a CPU device.
fn threads(device: &Device) -> Result<usize> {
    Ok(device.as_cpu()?.threads())
}
