//! The built-in kernels and their arguments, to [replace](crate::kernel::Hooks::replace) or to
//! [launch](crate::Device::run). Each is declared in the file of its op.
//!
//! The kernel called `rms_norm` is [`RMS_NORM`] and takes [`RmsNormArgs`]; so it is with all of them. An op checks
//! shapes, dtypes and devices before it launches, so a kernel can rely on what is said of each argument here. Whoever
//! launches a built-in kernel himself must keep to it: else he gets an error, a panic or wrong numbers, though never
//! undefined behaviour. Outputs are contiguous, and hold anything unless they are said to be read.

pub use crate::ops::affine::{AFFINE, AffineArgs};
pub use crate::ops::attention::{ATTENTION, ATTENTION_BACKWARD, AttentionArgs, AttentionBackwardArgs};
pub use crate::ops::binary::{ACCUMULATE, AccumulateArgs, BINARY, BinaryArgs};
pub use crate::ops::cat::{CAT, CatArgs};
pub use crate::ops::compare::{COMPARE, CompareArgs, WHERE, WhereArgs};
pub use crate::ops::copy::{COPY, CopyArgs, FILL, FillArgs};
pub use crate::ops::cross_entropy::{
    CROSS_ENTROPY, CROSS_ENTROPY_BACKWARD, CrossEntropyArgs, CrossEntropyBackwardArgs,
};
pub use crate::ops::dropout::{DROPOUT, DropoutArgs};
pub use crate::ops::embedding::{EMBEDDING, EMBEDDING_BACKWARD, EmbeddingArgs, EmbeddingBackwardArgs};
pub use crate::ops::gather::{GATHER, GatherArgs, SCATTER_ADD, ScatterAddArgs};
pub use crate::ops::layer_norm::{
    LAYER_NORM, LAYER_NORM_BACKWARD, LAYER_NORM_BACKWARD_WEIGHT, LayerNormArgs, LayerNormBackwardArgs,
    LayerNormBackwardWeightArgs,
};
pub use crate::ops::linear_cross_entropy::{
    LINEAR_CROSS_ENTROPY, LOGITS, LinearCrossEntropyArgs, LogitsArgs, Room, TermGradientsMut,
};
pub use crate::ops::matmul::{
    Epilogue, Freedom, LowRank, MATMUL, Machine, MatmulArgs, PlainTiles, Plan, Sizes, Target, Tile, Tiles,
    comes_in_chunks,
};
pub use crate::ops::random::{Distribution, RANDOM, RandomArgs};
pub use crate::ops::reduce::{ARGMAX, ArgmaxArgs, EXTREME_BACKWARD, ExtremeBackwardArgs, REDUCE, ReduceArgs};
pub use crate::ops::rms_norm::{
    ADD_RMS_NORM, ADD_RMS_NORM_BACKWARD, AddRmsNormArgs, AddRmsNormBackwardArgs, RMS_NORM, RMS_NORM_BACKWARD,
    RMS_NORM_BACKWARD_BOTH, RMS_NORM_BACKWARD_WEIGHT, RmsNormArgs, RmsNormBackwardArgs, RmsNormBackwardBothArgs,
    RmsNormBackwardWeightArgs,
};
pub use crate::ops::rope::{ROPE, ROPE_TABLE, RopeArgs, RopeTableArgs};
pub use crate::ops::sample::{SAMPLE, SampleArgs};
pub use crate::ops::scale::{ADD_SCALED, AddScaledArgs, SCALE, ScaleArgs};
pub use crate::ops::softmax::{SOFTMAX, SOFTMAX_BACKWARD, SoftmaxArgs, SoftmaxBackwardArgs};
pub use crate::ops::swiglu::{SWIGLU, SWIGLU_BACKWARD, SwigluArgs, SwigluBackwardArgs};
pub use crate::ops::unary::{UNARY, UNARY_BACKWARD, UnaryArgs, UnaryBackwardArgs};
