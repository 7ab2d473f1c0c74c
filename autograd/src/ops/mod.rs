//! Differentiable operations: each pairs a forward function of `kinglet_tensor::ops` with its gradient rule.

mod attention;
mod binary;
mod cast;
mod cross_entropy;
mod dropout;
mod embedding;
mod layer_norm;
mod linear_cross_entropy;
mod rms_norm;
mod rope;
mod swiglu;
mod views;

pub use attention::attention;
pub use cast::cast;
pub use cross_entropy::cross_entropy;
pub use dropout::dropout;
pub use embedding::embedding;
pub use layer_norm::layer_norm;
pub use linear_cross_entropy::{linear_cross_entropy, linear_cross_entropy_frozen};
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use swiglu::swiglu;
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
