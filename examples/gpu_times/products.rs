//! Products of matrices: dense, with quantised weights, with adapters, and with the loss behind them.

use crate::job::{Job, bf16, exactly, ids, normal};
use kinglet::autograd::{Grads, Tape, Var};
use kinglet::quant::{Direction, FourBit, GgufMatrix, Lora, RowOrder, Weight, ggml, linear_lora, nf4};
use kinglet::tensor::ops::{self, Targets, Term, Wants};
use kinglet::{DType, Device, Result, Tensor};
use std::sync::Arc;

/// a bᵀ. Sizes: m, n, k.
pub(crate) fn matmul(sizes: &[usize], device: &Device) -> Result<Job> {
    let [m, n, k] = exactly(sizes)?;
    let (a, b) = (bf16([m, k], device)?, bf16([n, k], device)?.transpose(0, 1)?);
    Job::new(2 * (m * k + n * k + m * n), 2 * m * n * k, move || ops::matmul(&a, &b))
}

/// With blocks of 64 and nested scales.
fn four_bit(shape: [usize; 2], device: &Device) -> Result<FourBit> {
    FourBit::quantize(&bf16(shape, device)?, nf4::Format::Nf4, 64, true)
}

/// Blocks of one value: what they hold changes no time.
fn blocks(format: ggml::Format, [rows, columns]: [usize; 2], device: &Device) -> Result<GgufMatrix> {
    let bytes = rows * columns / format.block_len() * format.block_bytes();
    let blocks = Tensor::full(36.0, &[bytes], DType::U8, device)?;
    GgufMatrix::new(format, [rows, columns], RowOrder::Plain, blocks)
}

/// Sizes: out, in.
pub(crate) fn quantise(sizes: &[usize], device: &Device) -> Result<Job> {
    let shape = exactly(sizes)?;
    let (dense, bytes) = (bf16(shape, device)?, four_bit(shape, device)?.bytes());
    let start = move || FourBit::quantize(&dense, nf4::Format::Nf4, 64, true);
    Job::new(bytes + 2 * shape[0] * shape[1], 0, start)
}

/// Sizes: out, in.
pub(crate) fn dequantise(sizes: &[usize], device: &Device) -> Result<Job> {
    let shape = exactly(sizes)?;
    let weight = four_bit(shape, device)?;
    Job::new(weight.bytes() + 2 * shape[0] * shape[1], 0, move || weight.dequantize(DType::BF16))
}

/// Sizes: out, in.
pub(crate) fn dequantise_q4_k(sizes: &[usize], device: &Device) -> Result<Job> {
    let shape = exactly(sizes)?;
    let weight = blocks(ggml::Format::Q4_K, shape, device)?;
    Job::new(weight.bytes() + 2 * shape[0] * shape[1], 0, move || weight.dequantize(DType::BF16))
}

/// A weight's product one way. Sizes: rows, out, in.
fn linear(sizes: &[usize], direction: Direction, device: &Device, weight: Make) -> Result<Job> {
    let [rows, outputs, inputs] = exactly(sizes)?;
    let (weight, bytes) = weight([outputs, inputs], device)?;
    let from = if direction == Direction::Forward { inputs } else { outputs };
    let x = bf16([rows, from], device)?;
    let bytes = bytes + 2 * rows * (outputs + inputs);
    Job::new(bytes, 2 * rows * outputs * inputs, move || weight.matmul(&x, direction))
}

/// A weight of a shape, and its bytes.
type Make = fn([usize; 2], &Device) -> Result<(Weight, usize)>;

const NF4: Make = |shape, device| {
    let weight = four_bit(shape, device)?;
    let bytes = weight.bytes();
    Ok((Weight::FourBit(Arc::new(weight)), bytes))
};
const Q4_K: Make = |shape, device| {
    let weight = blocks(ggml::Format::Q4_K, shape, device)?;
    let bytes = weight.bytes();
    Ok((Weight::Gguf(weight), bytes))
};
const Q8_0: Make = |shape, device| {
    let weight = blocks(ggml::Format::Q8_0, shape, device)?;
    let bytes = weight.bytes();
    Ok((Weight::Gguf(weight), bytes))
};

pub(crate) fn nf4(sizes: &[usize], device: &Device) -> Result<Job> {
    linear(sizes, Direction::Forward, device, NF4)
}

pub(crate) fn nf4_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    linear(sizes, Direction::Backward, device, NF4)
}

pub(crate) fn q4_k(sizes: &[usize], device: &Device) -> Result<Job> {
    linear(sizes, Direction::Forward, device, Q4_K)
}

pub(crate) fn q4_k_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    linear(sizes, Direction::Backward, device, Q4_K)
}

pub(crate) fn q8_0(sizes: &[usize], device: &Device) -> Result<Job> {
    linear(sizes, Direction::Forward, device, Q8_0)
}

pub(crate) fn q8_0_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    linear(sizes, Direction::Backward, device, Q8_0)
}

/// The operands of a layer with an adapter.
struct Adapted {
    x: Tensor,
    weight: Arc<Weight>,
    a: Tensor,
    b: Tensor,
}

impl Adapted {
    /// Sizes: rows, out, in, rank.
    fn new(sizes: &[usize], device: &Device) -> Result<(Self, [usize; 4])> {
        let [rows, outputs, inputs, rank] = exactly(sizes)?;
        let (x, weight) = (bf16([rows, inputs], device)?, bf16([outputs, inputs], device)?);
        let a = normal(&[rank, inputs], DType::F32, device)?;
        let b = normal(&[outputs, rank], DType::F32, device)?;
        let layer = Adapted { x, weight: Arc::new(Weight::Dense(weight)), a, b };
        Ok((layer, [rows, outputs, inputs, rank]))
    }

    fn forward<'t>(&self, tape: &'t Tape) -> Result<Var<'t>> {
        let [x, a, b] = [&self.x, &self.a, &self.b].map(|x| tape.leaf(x.clone()));
        linear_lora(&x, &self.weight, None, &[Lora { a, b, scale: 2.0, dropout: None }])
    }
}

pub(crate) fn lora(sizes: &[usize], device: &Device) -> Result<Job> {
    let (layer, [rows, outputs, inputs, rank]) = Adapted::new(sizes, device)?;
    let bytes = 2 * (rows * inputs + rows * outputs + outputs * inputs) + 4 * rank * (inputs + outputs);
    let flops = 2 * rows * (outputs * inputs + rank * (inputs + outputs));
    Job::new(bytes, flops, move || layer.forward(&Tape::inert()).map(|y| y.value().clone()))
}

/// Forward and backward, to x, A and B: the tape can be walked once only.
pub(crate) fn lora_both_ways(sizes: &[usize], device: &Device) -> Result<Job> {
    let (layer, [rows, outputs, inputs, rank]) = Adapted::new(sizes, device)?;
    let dy = bf16([rows, outputs], device)?;
    // x, W and y forward; dy, W and dx backward, and x for dA; the factors are small.
    let bytes = 2 * (3 * rows * inputs + 2 * rows * outputs + 2 * outputs * inputs) + 16 * rank * (inputs + outputs);
    let flops = 4 * rows * outputs * inputs + 6 * rows * rank * (inputs + outputs);
    Job::new(bytes, flops, move || {
        let tape = Tape::new();
        let y = layer.forward(&tape)?;
        tape.backward_from(&[(&y, dy.clone())], &mut Grads::none()).map(drop)
    })
}

/// The loss over an output projection, with the gradient of its input. Sizes: rows, vocabulary, width.
pub(crate) fn loss(sizes: &[usize], device: &Device) -> Result<Job> {
    let [rows, vocabulary, width] = exactly(sizes)?;
    let (x, weight) = (bf16([rows, width], device)?, bf16([vocabulary, width], device)?);
    let targets = Targets::new(&ids(&[rows], vocabulary, device)?.to_vec::<i32>()?, device)?;
    let bytes = 2 * (2 * vocabulary * width + 2 * rows * width);
    Job::new(bytes, 4 * rows * vocabulary * width, move || {
        let term = Term { x: &x, weight: &weight, wants: Wants { x: true, weight: false } };
        ops::linear_cross_entropy(&[term], &targets, rows as f32)
    })
}
