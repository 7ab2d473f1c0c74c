//! The fine-tuning run: settings, the one training loop, checkpoints and the log.
//!
//! [`Settings`] has every option of `kinglet finetune` under its name there; a [`Reporter`] hears what happens.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod base;
mod budget;
mod checkpoint;
mod eval;
mod fingerprint;
mod learner;
mod log;
mod output;
mod plan;
mod report;
mod rows;
mod run;
mod settings;

pub use base::{Base, OpenOptions, gguf_vocab};
pub use budget::ByteSize;
pub use eval::{Answering, Loss, evaluate_loss, exact_match};
pub use learner::{Learner, StepResult};
pub use report::{EvalRow, Plan, Reporter, Silent, StepRow};
pub use run::{End, Outcome, RunOptions, Start, run};
pub use settings::{DtypeName, Method, Quant, SchedulerType, Settings};
