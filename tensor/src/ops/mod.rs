//! Operations, forward and backward, as plain functions of tensors. One file an op.
//!
//! Nothing here records gradients: `kinglet_autograd::ops` pairs each function with its rule.

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
mod random;
mod reduce;
mod rms_norm;
mod rope;
mod scale;
mod softmax;
mod swiglu;
mod unary;

pub use crate::cpu::attention::{Mask, Segment};
pub use affine::affine;
pub use attention::{KvView, Segments, attention, attention_backward};
pub use binary::{Binary, accumulate, add, binary, div, maximum, minimum, mul, sub};
pub use cat::{cat, pad, stack};
pub use compare::{Compare, compare, where_};
pub use copy::{copy, copy_into, fill};
pub use cross_entropy::{cross_entropy, cross_entropy_backward};
pub use dropout::dropout;
pub use embedding::{embedding, embedding_backward};
pub use gather::{gather, index_add, index_select, scatter_add};
pub use layer_norm::{layer_norm, layer_norm_backward, layer_norm_backward_weight};
pub use linear_cross_entropy::{
    LinearCrossEntropy, Projection, Term, TermGradients, Wants, linear_cross_entropy, logits, token_losses,
};
pub use matmul::{matmul, matmul_into};
pub use random::{normal, uniform};
pub use reduce::{Reduce, argmax, extreme_backward, kept_shape, reduce, sum_to};
pub use rms_norm::{rms_norm, rms_norm_backward, rms_norm_backward_weight};
pub use rope::{rope, rope_backward, rope_table};
pub use scale::{add_scaled, scale};
pub use softmax::{Softmax, softmax, softmax_backward};
pub use swiglu::{swiglu, swiglu_backward};
pub use unary::{Unary, unary, unary_backward};
