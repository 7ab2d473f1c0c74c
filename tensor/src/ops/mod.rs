//! Operations, forward and backward, as plain functions of tensors. One file an op.
//!
//! Nothing here records gradients: `kinglet_autograd::ops` pairs each function with its rule.

mod attention;
mod binary;
mod cat;
mod copy;
mod cross_entropy;
mod dropout;
mod embedding;
mod layer_norm;
mod linear_cross_entropy;
mod random;
mod rms_norm;
mod rope;
mod scale;
mod swiglu;

pub use crate::cpu::attention::{Mask, Segment};
pub use attention::{KvView, Segments, attention, attention_backward};
pub use binary::{Binary, accumulate, add, binary, mul, sum_to};
pub use cat::cat;
pub use copy::{copy, copy_into, fill};
pub use cross_entropy::{cross_entropy, cross_entropy_backward};
pub use dropout::dropout;
pub use embedding::{embedding, embedding_backward};
pub use layer_norm::{layer_norm, layer_norm_backward, layer_norm_backward_weight};
pub use linear_cross_entropy::{LinearCrossEntropy, Projection, Wants, linear_cross_entropy, logits, token_losses};
pub use random::{normal, uniform};
pub use rms_norm::{rms_norm, rms_norm_backward, rms_norm_backward_weight};
pub use rope::{rope, rope_backward, rope_table};
pub use scale::{add_scaled, scale};
pub use swiglu::{swiglu, swiglu_backward};
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
