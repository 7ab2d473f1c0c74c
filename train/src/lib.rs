//! kinglet-train
#![forbid(unsafe_code)]
