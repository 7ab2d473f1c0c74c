//! kinglet-autograd
#![forbid(unsafe_code)]
