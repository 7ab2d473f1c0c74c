//! Quantised weights against bitsandbytes and gguf: fixtures by scripts/make-quant-fixtures.
#![allow(clippy::unwrap_used)]

mod fixture;
mod ggml;
mod nf4;
