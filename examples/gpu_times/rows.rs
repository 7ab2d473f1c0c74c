//! Ops of whole rows: norms, softmaxes, losses, rotations, tables, the choice of a token.

use crate::job::{Job, bf16, exactly, ids, normal, place};
use kinglet::tensor::cpu::sample::Choice;
use kinglet::tensor::ops::{self, Reduce, Softmax};
use kinglet::tensor::philox::Key;
use kinglet::{DType, Device, Result, Tensor};

const EPS: f32 = 1e-5;

/// Rows of x and a weight. Sizes here and below: rows, width.
fn norm(sizes: &[usize], device: &Device) -> Result<(Tensor, Tensor, usize)> {
    let [rows, width] = exactly(sizes)?;
    Ok((bf16([rows, width], device)?, normal(&[width], DType::F32, device)?, rows * width))
}

pub(crate) fn rms_norm(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, weight, len) = norm(sizes, device)?;
    Job::new(4 * len, 0, move || ops::rms_norm(&x, &weight, EPS))
}

/// To x; the weight is frozen.
pub(crate) fn rms_norm_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, weight, len) = norm(sizes, device)?;
    let dy = x.clone();
    Job::new(6 * len, 0, move || ops::rms_norm_backward(&dy, &x, &weight, EPS))
}

pub(crate) fn add_rms_norm(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, weight, len) = norm(sizes, device)?;
    let residual = ops::affine(&x, 0.5, 1.0)?;
    Job::new(8 * len, 0, move || ops::add_rms_norm(&x, &residual, &weight, EPS))
}

pub(crate) fn layer_norm(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, weight, len) = norm(sizes, device)?;
    Job::new(4 * len, 0, move || ops::layer_norm(&x, &weight, &weight, EPS))
}

/// To x; weight and bias are frozen.
pub(crate) fn layer_norm_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, weight, len) = norm(sizes, device)?;
    let dy = ops::affine(&x, 0.5, 1.0)?;
    Job::new(6 * len, 0, move || ops::layer_norm_backward(&dy, &x, &weight, EPS))
}

pub(crate) fn softmax(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, _, len) = norm(sizes, device)?;
    Job::new(4 * len, 0, move || ops::softmax(Softmax::Plain, &x))
}

pub(crate) fn softmax_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, _, len) = norm(sizes, device)?;
    let y = ops::softmax(Softmax::Plain, &x)?;
    Job::new(6 * len, 0, move || ops::softmax_backward(Softmax::Plain, &y, &x))
}

pub(crate) fn swiglu(sizes: &[usize], device: &Device) -> Result<Job> {
    let (gate, _, len) = norm(sizes, device)?;
    let up = ops::affine(&gate, 0.5, 1.0)?;
    Job::new(6 * len, 0, move || ops::swiglu(&gate, &up))
}

pub(crate) fn swiglu_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    let (gate, _, len) = norm(sizes, device)?;
    let (up, dy) = (ops::affine(&gate, 0.5, 1.0)?, ops::affine(&gate, -1.0, 0.0)?);
    Job::new(10 * len, 0, move || ops::swiglu_backward(&dy, &gate, &up))
}

/// Sums of rows.
pub(crate) fn sum(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, _, len) = norm(sizes, device)?;
    Job::new(2 * len, 0, move || ops::reduce(Reduce::Sum, &x, &[1], false))
}

/// Sums over rows.
pub(crate) fn sum_of_columns(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, _, len) = norm(sizes, device)?;
    Job::new(2 * len, 0, move || ops::reduce(Reduce::Sum, &x, &[0], false))
}

/// Logits and targets. Sizes: rows, classes.
fn classes(sizes: &[usize], device: &Device) -> Result<(Tensor, Tensor, usize)> {
    let [rows, classes] = exactly(sizes)?;
    Ok((bf16([rows, classes], device)?, ids(&[rows], classes, device)?, rows))
}

pub(crate) fn cross_entropy(sizes: &[usize], device: &Device) -> Result<Job> {
    let (logits, targets, rows) = classes(sizes, device)?;
    Job::new(2 * logits.len(), 0, move || ops::cross_entropy(&logits, &targets, rows as f32))
}

pub(crate) fn cross_entropy_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    let (logits, targets, rows) = classes(sizes, device)?;
    let (loss, lse) = ops::cross_entropy(&logits, &targets, rows as f32)?;
    Job::new(4 * logits.len(), 0, move || ops::cross_entropy_backward(&loss, &logits, &targets, &lse, rows as f32))
}

/// Sizes: rows, vocabulary.
pub(crate) fn sample(sizes: &[usize], device: &Device) -> Result<Job> {
    let [rows, vocabulary] = exactly(sizes)?;
    let logits = normal(&[rows, vocabulary], DType::F32, device)?;
    let choice = Choice { temperature: 0.7, top_k: 50, top_p: 0.9, key: Key::derive(&[1]), step: 0 };
    Job::new(4 * rows * vocabulary, 0, move || ops::sample(&logits, &choice))
}

/// Tokens with a table of angles. Sizes: tokens, heads, head size.
fn rotation(sizes: &[usize], device: &Device) -> Result<([Tensor; 3], usize)> {
    let [tokens, heads, head_dim] = exactly(sizes)?;
    let positions = Tensor::from_vec((0..tokens as i32).collect(), &[tokens], device)?;
    let (cos, sin) = ops::rope_table(&positions, &vec![0.5; head_dim / 2], 1.0)?;
    let bytes = 4 * tokens * heads * head_dim + 4 * tokens * head_dim;
    Ok(([bf16([tokens, heads, head_dim], device)?, cos, sin], bytes))
}

pub(crate) fn rope(sizes: &[usize], device: &Device) -> Result<Job> {
    let ([x, cos, sin], bytes) = rotation(sizes, device)?;
    Job::new(bytes, 0, move || ops::rope(&x, &cos, &sin))
}

pub(crate) fn rope_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    let ([dy, cos, sin], bytes) = rotation(sizes, device)?;
    Job::new(bytes, 0, move || ops::rope_backward(&dy, &cos, &sin))
}

/// Sizes: ids, vocabulary, width.
pub(crate) fn embedding(sizes: &[usize], device: &Device) -> Result<Job> {
    let [tokens, vocabulary, width] = exactly(sizes)?;
    let (table, ids) = (bf16([vocabulary, width], device)?, ids(&[tokens], vocabulary, device)?);
    Job::new(4 * tokens * width, 0, move || ops::embedding(&table, &ids, DType::BF16))
}

/// Rows of f32 are added to those of a gradient. Sizes: as [`embedding`].
pub(crate) fn embedding_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    let [tokens, vocabulary, width] = exactly(sizes)?;
    let (dy, ids) = (normal(&[tokens, width], DType::F32, device)?, ids(&[tokens], vocabulary, device)?);
    let mut gradient = Tensor::zeros(&[vocabulary, width], DType::F32, device)?;
    Job::new(12 * tokens * width, 0, move || ops::embedding_backward(&dy, &ids, place(&mut gradient)?))
}

/// Some elements of each row. Sizes: rows, width, how many.
pub(crate) fn gather(sizes: &[usize], device: &Device) -> Result<Job> {
    let [rows, width, picked] = exactly(sizes)?;
    let (x, index) = (bf16([rows, width], device)?, ids(&[rows, picked], width, device)?);
    Job::new(8 * rows * picked, 0, move || ops::gather(&x, 1, &index))
}
