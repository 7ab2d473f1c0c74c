//! Differentiable operations: each pairs a forward function of `kinglet_tensor::ops` with its gradient rule.

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
mod views;
