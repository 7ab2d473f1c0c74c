//! Differentiable operations: each pairs a forward function of `kinglet_tensor::ops` with its gradient rule. What acts on
//! one or two variables is a method of [`crate::Var`]; the ops of models are functions.

mod affine;
mod attention;
mod binary;
mod cat;
mod compare;
mod copy;
mod cross_entropy;
mod dropout;
mod embedding;
mod gather;
mod layer_norm;
mod linear_cross_entropy;
mod matmul;
mod reduce;
mod rms_norm;
mod rope;
mod softmax;
mod swiglu;
mod unary;
mod views;

pub use attention::attention;
pub use cross_entropy::cross_entropy;
pub use dropout::dropout;
pub use embedding::embedding;
pub use layer_norm::layer_norm;
pub use linear_cross_entropy::{Term, TermWeight, linear_cross_entropy};
pub use rms_norm::{add_rms_norm, rms_norm};
pub use rope::rope;
pub use swiglu::swiglu;
