//! Optimisation over the flat buffers of a [`kinglet_autograd::ParamSet`]: AdamW with gradient clipping, and learning
//! rate schedules. Orders of operation and step counting are those of torch and transformers.
//!
//! ```
//! use kinglet_autograd::{Grads, ParamSet, Tape};
//! use kinglet_optim::{AdamW, AdamWOptions};
//! use kinglet_tensor::{CpuOptions, Device, Tensor};
//!
//! let device = Device::cpu(CpuOptions::default())?;
//! let x = Tensor::from_vec(vec![3f32], &[1], &device)?;
//! let mut set = ParamSet::new(vec![("x".into(), x)], &device)?;
//! let mut grads = Grads::new(&set)?;
//! let mut adamw = AdamW::new(&set, AdamWOptions::default())?;
//! for _ in 0..200 {
//!     {
//!         let tape = Tape::new();
//!         let x = tape.param(&set, 0)?;
//!         tape.backward(&x.mul(&x)?, &mut grads)?; // x² is least at 0
//!     }
//!     adamw.step(&mut set, &grads, 0.1)?;
//!     grads.zero()?;
//! }
//! assert!(set.values().item()?.abs() < 0.1);
//! # Ok::<(), kinglet_tensor::Error>(())
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod adamw;
pub mod kernels;
mod norm;
mod schedule;

pub use adamw::{AdamW, AdamWOptions, decays};
pub use norm::grad_norm;
pub use schedule::{Schedule, ScheduleKind};
