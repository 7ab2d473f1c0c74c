//! Operations, forward and backward, as plain functions of tensors. One file an op.
//!
//! Nothing here records gradients: `kinglet_autograd::ops` pairs each function with its rule.

mod affine;
mod binary;
mod cat;
mod compare;
mod copy;
mod gather;
mod matmul;
mod reduce;
mod softmax;
mod unary;

pub use affine::affine;
pub use binary::{Binary, accumulate, add, binary, div, maximum, minimum, mul, sub};
pub use cat::{cat, pad, stack};
pub use compare::{Compare, compare, where_};
pub use copy::{copy, copy_into, fill};
pub use gather::{gather, index_add, index_select, scatter_add};
pub use matmul::{matmul, matmul_into};
pub use reduce::{Reduce, argmax, extreme_grad, kept_shape, reduce, sum_to};
pub use softmax::{Softmax, softmax, softmax_grad};
pub use unary::{Unary, unary, unary_grad};
