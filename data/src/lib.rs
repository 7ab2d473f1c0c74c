//! kinglet-data
#![forbid(unsafe_code)]
