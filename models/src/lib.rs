//! Models: weight files, their configuration, and what is built from them.
//!
//! Reading starts at [`Source`], which opens a Hugging Face folder or a `.gguf` file; writing at
//! [`fs`], which never leaves a half-written file or folder behind.

// Everything but the memory map itself is safe code.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cache;
pub mod config;
mod ctx;
mod decoder;
pub mod fs;
mod generate;
pub mod gguf;
mod json;
mod layers;
mod load;
#[allow(unsafe_code)]
pub mod mmap;
pub mod names;
pub mod rope;
pub mod safetensors;
mod sample;
mod sequence;
mod source;
mod stored;
mod weights;

pub use cache::KvCache;
pub use config::{Architecture, Config, LayerConfig};
pub use ctx::{AdapterMap, AdapterSet, Ctx, LoraPlace, Site};
pub use decoder::{Decoder, EMBEDDING, HEAD};
pub use generate::{Finish, Generation, Request, generate};
pub use layers::Linear;
pub use load::{LoadOptions, QuantOptions};
pub use rope::{Rope, RopeKind};
pub use sample::Sampling;
pub use sequence::Batch;
pub use source::{ModelFiles, Source, SourceTensor};
pub use stored::StoredType;
pub use weights::{Bytes, Entry, WeightFiles};
