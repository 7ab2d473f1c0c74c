//! The training run against PEFT, bitsandbytes and torch (fixtures by scripts/make-train-fixtures), and against itself:
//! interrupted, resumed, on other threads.
#![allow(clippy::unwrap_used)]

mod adapter_files;
mod adapters;
mod common;
mod curves;
mod folder;
mod resume;
mod steps;
