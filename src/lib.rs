//! kinglet
#![forbid(unsafe_code)]
