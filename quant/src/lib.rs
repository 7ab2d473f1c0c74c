//! kinglet-quant
#![forbid(unsafe_code)]
