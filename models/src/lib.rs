//! Models: weight files, their configuration, and what is built from them.
//!
//! Reading starts at [`Source`], which opens a Hugging Face folder or a `.gguf` file; writing at
//! [`fs`], which never leaves a half-written file or folder behind.

// Everything but the memory map itself is safe code.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod fs;
pub mod gguf;
mod json;
#[allow(unsafe_code)]
pub mod mmap;
pub mod names;
pub mod rope;
pub mod safetensors;
mod source;
mod stored;
mod weights;

pub use config::{Architecture, Config, LayerConfig};
pub use rope::{Rope, RopeKind};
pub use source::{ModelFiles, Source, SourceTensor};
pub use stored::StoredType;
pub use weights::{Bytes, Entry, WeightFiles};
