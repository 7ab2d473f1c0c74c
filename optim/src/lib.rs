//! kinglet-optim
#![forbid(unsafe_code)]
