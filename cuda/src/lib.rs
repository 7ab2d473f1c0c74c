//! The CUDA driver seam: devices, memory, modules, launches, events, graphs. Knows no tensor.
//!
//! Two drivers stand behind it, and nothing above knows which: NVIDIA's (feature `cuda`, opened at run time) and the
//! virtual GPU (feature `emulator`). Without either feature no [`Device`] can be made, so code above needs no `cfg`.
//! Kernels are the `.cu` files in `kernels/`, one an op.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![cfg_attr(not(any(feature = "cuda", feature = "emulator")), allow(dead_code, reason = "no device can be made"))]

mod buffer;
#[cfg(feature = "kernels")]
mod compile;
mod device;
mod driver;
mod error;
mod event;
mod graph;
mod handles;
mod launch;
mod memory;
mod options;
mod pool;
#[cfg(feature = "kernels")]
pub mod ptx;
#[cfg(feature = "kernels")]
mod replace;
mod signature;
#[cfg(feature = "kernels")]
mod source;
mod text;

pub use buffer::Buffer;
pub use device::{Counts, Device, DeviceInfo};
pub use error::{Error, Result};
pub use event::Event;
pub use graph::Graph;
pub use launch::{Arg, Launch};
pub use memory::MemoryUse;
pub use options::EmulatorOptions;
#[cfg(feature = "kernels")]
pub use replace::{CompilerOptions, KernelSource};
