//! Parameter-efficient fine-tuning in PEFT's formats: LoRA adapters beside a model, full fine-tuning, merging.
//!
//! An [`Adapter`] is a set of parameters and a map of where they act; the model itself is never changed. It becomes
//! part of a forward pass through [`kinglet_models::Ctx::with_adapters`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod adapter;
mod config;
mod files;
mod merge;
mod modules;
mod targets;

pub use adapter::{Adapter, full};
pub use config::{CONFIG_FILE, Init, LoraConfig};
pub use files::{WEIGHTS_FILE, write_params, write_tensor};
pub use merge::{MergeOptions, logit_gap, merge};
pub use modules::count_parameters;
pub use targets::Targets;
