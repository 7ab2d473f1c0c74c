//! The CUDA driver seam: devices, buffers, modules, launches. Knows no tensor.
//!
//! Without a driver feature, [`Device`] has no values: code above matches on it and needs no `cfg`.
//! Kernels are the `.cu` files in `kernels/`.
#![forbid(unsafe_code)]

/// A CUDA device. In a build without a driver none can exist.
#[derive(Clone, Copy, Debug)]
pub enum Device {}
