//! Tape autograd over `kinglet_tensor`: an owned [`Tape`], variables that borrow it, one gradient rule an op.
//!
//! ```
//! use kinglet_autograd::{Grads, Tape};
//! use kinglet_tensor::{CpuOptions, Device, Tensor};
//!
//! let device = Device::cpu(CpuOptions::default())?;
//! let tape = Tape::new();
//! let x = tape.leaf(Tensor::from_vec(vec![3f32], &[1], &device)?);
//! let y = x.mul(&x)?; // y = x²
//! let leaves = tape.backward(&y, &mut Grads::none())?;
//! assert_eq!(leaves.get(&x).unwrap().item()?, 6.0); // dy/dx = 2x
//! # Ok::<(), kinglet_tensor::Error>(())
//! ```
#![forbid(unsafe_code)]

mod checkpoint;
pub mod ops;
mod params;
mod record;
mod sink;
mod tape;
mod walk;

pub use params::{Grads, Param, ParamId, ParamSet};
pub use record::{Record, Save, Saved};
pub use sink::Sink;
pub use tape::{Options, Tape, Var};
pub use walk::Leaves;
