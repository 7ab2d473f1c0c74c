//! Quantised weights against bitsandbytes and gguf: fixtures by scripts/make-quant-fixtures.
#![allow(clippy::unwrap_used)]

mod bnb;
mod fixture;
mod ggml;
mod nf4;
mod weights;
