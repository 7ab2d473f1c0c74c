//! Output projection and cross-entropy in one: the logits hidden · weightᵀ exist for one chunk of rows at a time, and
//! only for rows that have a target. Gradients are made in the same pass, while the logits are there.

use super::cross_entropy::{check_targets, classes_of, log_sum_exp, logits_to_gradient, mean_loss};
use crate::cpu::Cpu;
use crate::cpu::reduce;
use crate::{DType, Error, Float, Result, Tensor, TensorMut, dispatch, kernel, same_device};

/// Target rows whose logits exist at once.
const ROWS: usize = 128;

struct Args<'a> {
    hidden: &'a Tensor,
    weight: &'a Tensor,
    targets: &'a Tensor,
    divisor: f32,
    /// Room for one chunk of rows: the hidden states and their gradient [2, ROWS, d], the logits [ROWS, classes].
    rows: TensorMut<'a>,
    logits: TensorMut<'a>,
    loss: TensorMut<'a>,
    losses: TensorMut<'a>,
    d_hidden: Option<TensorMut<'a>>,
    d_weight: Option<TensorMut<'a>>,
}
kernel!(LINEAR_CROSS_ENTROPY = "linear_cross_entropy", Args, linear_cross_entropy_cpu);

struct Scale<'a> {
    x: &'a Tensor,
    by: &'a Tensor,
    out: TensorMut<'a>,
}
kernel!(SCALE = "scale", Scale, scale_cpu);

struct Rows<'a> {
    hidden: &'a Tensor,
    weight: &'a Tensor,
    rows: &'a [usize],
    out: TensorMut<'a>,
}
kernel!(LOGITS = "logits", Rows, logits_cpu);

/// Which gradients [`linear_cross_entropy`] makes beside the loss.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Wants {
    /// That of the hidden states.
    pub hidden: bool,
    /// That of the weight.
    pub weight: bool,
}

/// What [`linear_cross_entropy`] gives.
pub struct LinearCrossEntropy {
    /// The sum of the losses over the divisor, a scalar of f32.
    pub loss: Tensor,
    /// -log p(target) of each row, f32; 0 where there is no target.
    pub losses: Tensor,
    /// The gradient of `loss` with respect to the hidden states, in their dtype.
    pub d_hidden: Option<Tensor>,
    /// The gradient of `loss` with respect to the weight, in f32.
    pub d_weight: Option<Tensor>,
}
