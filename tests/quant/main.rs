//! Quantised weights against bitsandbytes and gguf (fixtures by scripts/make-quant-fixtures), and the layers over them.
#![allow(clippy::unwrap_used)]

mod bnb;
mod fixture;
mod ggml;
mod linear;
mod nf4;
mod weights;
