//! kinglet-peft
#![forbid(unsafe_code)]
