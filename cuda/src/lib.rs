//! The CUDA driver seam: devices, buffers, modules, launches. Knows no tensor.
//!
//! Without a driver feature, [`Device`] has no values: code above matches on it and needs no `cfg`.
//! Kernels are the `.cu` files in `kernels/`, one an op; the features `cuda` and `emulator` embed their PTX ([`ptx`]).
#![forbid(unsafe_code)]

#[cfg(feature = "kernels")]
pub mod ptx;

/// A CUDA device. In a build without a driver none can exist.
#[derive(Clone, Copy, Debug)]
pub enum Device {}
