//! The CUDA driver seam: devices, buffers, modules, launches. Knows no tensor.
//!
//! Without a driver feature, [`Device`] has no values: code above matches on it and needs no `cfg`.
//! Kernels will be the `.cu` files in `kernels/`, one an op.
#![forbid(unsafe_code)]

/// A CUDA device. In a build without a driver none can exist.
#[derive(Clone, Copy, Debug)]
pub enum Device {}
