//! Operations, forward and backward, as plain functions of tensors. One file an op.
//!
//! Nothing here records gradients: `kinglet_autograd::ops` pairs each function with its rule.

mod binary;
mod copy;

pub use binary::{Binary, accumulate, add, binary, mul, sum_to};
pub use copy::{copy, copy_into, fill};
