//! The fine-tuning run: settings, the one training loop, checkpoints and the log.
//!
//! [`Settings`] has every option of `kinglet finetune` under its name there; a [`Reporter`] hears what happens.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod base;
mod report;
mod settings;

pub use base::{Base, OpenOptions};
pub use report::{EvalRow, Plan, Reporter, Silent, StepRow};
pub use settings::{DtypeName, Method, Quant, SchedulerType, Settings};
