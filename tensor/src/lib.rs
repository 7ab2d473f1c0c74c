//! Strided tensors and the kernels on them.

pub mod cpu;
mod error;

pub use error::{Error, Result};
