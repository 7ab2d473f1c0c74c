//! Quantised weights against bitsandbytes and gguf: fixtures by scripts/make-quant-fixtures.

mod fixture;
mod nf4;
