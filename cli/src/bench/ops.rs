//! How kinglet does the jobs of `kinglet bench op`.

use crate::args::Dtype;
use crate::bench::jobs::{Job, OpName};
use kinglet_optim::kernels::{ADAMW, AdamwArgs};
use kinglet_quant::nf4::Format;
use kinglet_quant::{Direction, FourBit, Weight};
use kinglet_tensor::ops::{self, KvView, Mask, Segments, Targets, Term, Wants};
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Device, Error, Result, Tensor};
use std::sync::Arc;

/// A job with its inputs made: each call does it once.
pub(crate) type Prepared = Box<dyn FnMut() -> Result<()> + Send>;

/// Elements that share a scale, as in bitsandbytes.
const BLOCK: usize = 64;
const EPS: f32 = 1e-5;

/// # Errors
/// When memory runs out.
pub(crate) fn prepare(job: &Job, device: &Device) -> Result<Prepared> {
    let make = Inputs { dtype: dtype(job.dtype), device };
    match (job.op, job.shape.as_slice()) {
        (OpName::Gemm, &[m, k, n]) => gemm(&make, [m, k, n], job.transposed),
        (OpName::Attention, &[heads, length, width]) => attention(&make, heads, length, width),
        (OpName::Nf4Dequantize, &[rows, columns]) => {
            let (weight, dtype) = (make.four_bit(rows, columns)?, make.dtype);
            Ok(Box::new(move || weight.dequantize(dtype).map(drop)))
        }
        (OpName::Nf4Gemm, &[tokens, from, to]) => nf4_linear(&make, tokens, from, to),
        (OpName::Nf4Linear, &[from, to]) => nf4_linear(&make, 1, from, to),
        (OpName::Nf4Quantize, &[rows, columns]) => {
            let dense = make.normal(&[rows, columns], 0)?;
            Ok(Box::new(move || FourBit::quantize(&dense, Format::Nf4, BLOCK, true).map(drop)))
        }
        (OpName::Adamw, &[parameters]) => adamw(parameters, device),
        (OpName::CrossEntropy, &[tokens, vocabulary, hidden]) => cross_entropy(&make, tokens, vocabulary, hidden),
        (OpName::RmsNorm, &[rows, width]) => rms_norm(&make, rows, width),
        (OpName::Swiglu, &[rows, width]) => {
            let [gate, up, dy] = make.three(&[rows, width])?;
            Ok(Box::new(move || {
                ops::swiglu(&gate, &up)?;
                ops::swiglu_backward(&dy, &gate, &up).map(drop)
            }))
        }
        (OpName::Rope, &[tokens, heads, width]) => rope(&make, tokens, heads, width),
        (op, shape) => Err(Error::invalid(format!("{}: the shape {shape:?} has too many or too few sizes", op.name()))),
    }
}

fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
    }
}

/// Makes inputs of one dtype on one device.
struct Inputs<'a> {
    dtype: DType,
    device: &'a Device,
}

impl Inputs<'_> {
    /// Normal numbers; another `seed` gives others.
    fn normal(&self, shape: &[usize], seed: u64) -> Result<Tensor> {
        ops::normal(shape, 1.0, Key::derive(&[seed]), self.device)?.to_dtype(self.dtype)
    }

    fn three(&self, shape: &[usize]) -> Result<[Tensor; 3]> {
        Ok([self.normal(shape, 0)?, self.normal(shape, 1)?, self.normal(shape, 2)?])
    }

    /// A matrix that lies as it is asked for, or as its transpose.
    fn matrix(&self, [rows, columns]: [usize; 2], transposed: bool, seed: u64) -> Result<Tensor> {
        match transposed {
            true => self.normal(&[columns, rows], seed)?.transpose(0, 1),
            false => self.normal(&[rows, columns], seed),
        }
    }

    fn four_bit(&self, rows: usize, columns: usize) -> Result<FourBit> {
        FourBit::quantize(&self.normal(&[rows, columns], 0)?, Format::Nf4, BLOCK, true)
    }
}

fn gemm(make: &Inputs<'_>, [m, k, n]: [usize; 3], transposed: &str) -> Result<Prepared> {
    let (a, b) = (transposed.starts_with('t'), transposed.ends_with('t'));
    let (a, b) = (make.matrix([m, k], a, 0)?, make.matrix([k, n], b, 1)?);
    Ok(Box::new(move || ops::matmul(&a, &b).map(drop)))
}

fn nf4_linear(make: &Inputs<'_>, tokens: usize, from: usize, to: usize) -> Result<Prepared> {
    let weight = Weight::FourBit(Arc::new(make.four_bit(to, from)?));
    let x = make.normal(&[tokens, from], 1)?;
    Ok(Box::new(move || weight.matmul(&x, Direction::Forward).map(drop)))
}

fn attention(make: &Inputs<'_>, heads: usize, length: usize, width: usize) -> Result<Prepared> {
    let [q, k, v] = make.three(&[length, heads, width])?;
    let dy = make.normal(&[length, heads, width], 3)?;
    let segments = Segments::one(length, length)?;
    let scale = 1.0 / (width as f32).sqrt();
    Ok(Box::new(move || {
        let kv = KvView { k: &k, v: &v };
        let (out, lse) = ops::attention(&q, kv, &segments, Mask::Causal, scale)?;
        ops::attention_backward(&dy, &q, kv, &out, &lse, &segments, Mask::Causal, scale).map(drop)
    }))
}

/// The update alone, as `torch.optim.AdamW(fused=True)` does it: without the norm of the gradient.
fn adamw(parameters: usize, device: &Device) -> Result<Prepared> {
    let filled = |value: f32| Tensor::full(value, &[parameters], DType::F32, device);
    let (mut p, mut m, mut v, gradient) = (filled(0.5)?, filled(0.0)?, filled(0.0)?, filled(0.01)?);
    let one = Tensor::full(1.0, &[1], DType::F32, device)?;
    // 1 - β₁; β₂; 1 - β₂; the decay; the step size; the root of the second bias correction; ε.
    let numbers = Tensor::from_vec(vec![0.1f32, 0.999, 0.001, 1.0, 1e-4, 1.0, 1e-8], &[7], device)?;
    let device = device.clone();
    let held = || Error::aliased("adamw: its buffers are held elsewhere");
    Ok(Box::new(move || {
        let args = AdamwArgs {
            numbers: &numbers,
            max_norm: 0.0,
            norm: &one,
            loss: &one,
            p: p.as_mut().ok_or_else(held)?,
            m: m.as_mut().ok_or_else(held)?,
            v: v.as_mut().ok_or_else(held)?,
            gradient: &gradient,
        };
        device.run(&ADAMW, args)
    }))
}

fn cross_entropy(make: &Inputs<'_>, tokens: usize, vocabulary: usize, hidden: usize) -> Result<Prepared> {
    let x = make.normal(&[tokens, hidden], 0)?;
    let weight = ops::normal(&[vocabulary, hidden], 0.02, Key::derive(&[1]), make.device)?.to_dtype(make.dtype)?;
    let targets: Vec<i32> = (0..tokens).map(|i| (i * 97 % vocabulary) as i32).collect();
    let targets = Targets::new(&targets, make.device)?;
    Ok(Box::new(move || {
        let term = Term { x: &x, weight: &weight, wants: Wants { x: true, weight: false } };
        ops::linear_cross_entropy(&[term], &targets, tokens as f32).map(drop)
    }))
}

fn rms_norm(make: &Inputs<'_>, rows: usize, width: usize) -> Result<Prepared> {
    let (x, dy, weight) = (make.normal(&[rows, width], 0)?, make.normal(&[rows, width], 1)?, make.normal(&[width], 2)?);
    Ok(Box::new(move || {
        ops::rms_norm(&x, &weight, EPS)?;
        ops::rms_norm_backward_both(None, &dy, &x, &weight, EPS).map(drop)
    }))
}

fn rope(make: &Inputs<'_>, tokens: usize, heads: usize, width: usize) -> Result<Prepared> {
    let (x, dy) = (make.normal(&[tokens, heads, width], 0)?, make.normal(&[tokens, heads, width], 1)?);
    let positions = Tensor::from_vec((0..tokens as i32).collect(), &[tokens], make.device)?;
    let frequencies: Vec<f32> = (0..width / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / width as f32)).collect();
    let (cos, sin) = ops::rope_table(&positions, &frequencies, 1.0)?;
    Ok(Box::new(move || {
        ops::rope(&x, &cos, &sin)?;
        ops::rope_backward(&dy, &cos, &sin).map(drop)
    }))
}
