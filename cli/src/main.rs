//! The kinglet command line.
#![forbid(unsafe_code)]
fn main() {}
