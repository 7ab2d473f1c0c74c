//! Strided tensors, devices and the kernels on them: the bottom of kinglet.
//!
//! A [`Tensor`] is an immutable strided view of bytes on a [`Device`]. Operations are plain functions in
//! [`ops`], forward and backward alike; gradients are recorded one crate up. CPU kernels are functions over
//! slices in [`cpu`]. Those of [`kernels`] can be replaced and listened to at their [device](Device::hooks).
//!
//! ```
//! use kinglet_tensor::{CpuOptions, Device, Tensor};
//!
//! let device = Device::cpu(CpuOptions::default())?;
//! let x = Tensor::from_vec(vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], &device)?;
//! assert_eq!(x.transpose(0, 1)?.to_vec::<f32>()?, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
//! # Ok::<(), kinglet_tensor::Error>(())
//! ```

#![deny(unsafe_code)]

mod blocks;
#[allow(unsafe_code)]
pub mod cpu;
pub mod cuda;
mod device;
mod dtype;
mod error;
mod flags;
pub mod kernel;
pub mod kernels;
mod layout;
mod mat;
pub mod ops;
mod output;
pub mod philox;
#[allow(unsafe_code)]
mod storage;
mod targets;
mod tensor;

pub use device::{CpuOptions, Device};
pub use dtype::{DType, Element, Float};
pub use error::{Error, Result};
pub use kinglet_cuda::EmulatorOptions;
pub use layout::{Dims, Layout, MAX_RANK, Shape, broadcast_shape};
pub use output::{Output, TensorMut};
pub use storage::{ALIGN, MemoryUse, SharedBytes, Storage};
pub use tensor::{Tensor, same_device};
