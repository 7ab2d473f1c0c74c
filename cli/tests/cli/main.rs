//! The real binary on small models: what it prints, where, and with which exit code.
#![allow(clippy::unwrap_used)]

mod bench;
mod common;
mod conflicts;
mod finetune;
mod folders;
mod inference;
mod malformed;
mod resume;
mod signals;
mod templates;
mod usage;
