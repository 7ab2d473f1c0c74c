//! A virtual GPU in pure Rust: it parses PTX, runs its kernels on the CPU, to the bit where the ISA fixes the bits, and
//! reports the faults that a GPU hides: out-of-bounds and misaligned access, uninitialised reads, races in shared memory,
//! divergent barriers, deadlock, asynchronous copies read before their wait.
//!
//! The way of a kernel: [`syntax`] reads the text into a tree, [`decode`] makes it a flat [`program`], [`exec`] runs that
//! over [`memory`], with [`arith`] and [`tensor_core`] for the values.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod arith;
pub mod counters;
pub mod decode;
pub mod error;
pub mod exec;
pub mod gpu;
pub mod memory;
pub mod program;
pub mod syntax;
pub mod tensor_core;
