//! The oracle.
#![forbid(unsafe_code)]
