//! Operations, forward and backward, as plain functions of tensors. One file an op.
//!
//! Nothing here records gradients: `kinglet_autograd::ops` pairs each function with its rule.

pub(crate) mod affine;
pub(crate) mod attention;
pub(crate) mod binary;
pub(crate) mod cat;
pub(crate) mod compare;
pub(crate) mod copy;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod gather;
pub(crate) mod layer_norm;
pub(crate) mod linear_cross_entropy;
pub(crate) mod matmul;
pub(crate) mod random;
pub(crate) mod reduce;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod sample;
pub(crate) mod scale;
pub(crate) mod softmax;
pub(crate) mod swiglu;
pub(crate) mod unary;

pub use crate::cpu::attention::{Mask, Segment};
pub use crate::targets::Targets;
pub use affine::affine;
pub use attention::{KvView, Segments, attention, attention_backward};
pub use binary::{Binary, accumulate, add, binary, div, maximum, minimum, mul, sub};
pub use cat::{cat, pad, stack};
pub use compare::{Compare, compare, where_};
pub use copy::{copy, copy_into, fill};
pub use cross_entropy::{cross_entropy, cross_entropy_backward};
pub use dropout::{add_dropout, dropout};
pub use embedding::{check_stray_ids, embedding, embedding_backward, stray_id};
pub use gather::{gather, index_add, index_select, scatter_add};
pub use layer_norm::{layer_norm, layer_norm_backward, layer_norm_backward_weight};
pub use linear_cross_entropy::{
    LinearCrossEntropy, Projection, Term, TermGradients, Wants, linear_cross_entropy, logits, token_losses,
};
pub use matmul::{matmul, matmul_into, matmul_into_in_any_order, product_into, product_with};
pub use random::{normal, uniform};
pub use reduce::{Reduce, argmax, extreme_backward, kept_shape, reduce, sum_to};
pub use rms_norm::{
    add_rms_norm, add_rms_norm_backward, rms_norm, rms_norm_backward, rms_norm_backward_both, rms_norm_backward_weight,
};
pub use rope::{rope, rope_backward, rope_table};
pub use sample::sample;
pub use scale::{add_scaled, scale};
pub use softmax::{Softmax, softmax, softmax_backward};
pub use swiglu::{swiglu, swiglu_backward};
pub use unary::{Unary, unary, unary_backward};
