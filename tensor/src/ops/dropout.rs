//! Dropout (Srivastava et al., 2014), inverted: an element is kept with probability 1 - p and divided by it.
//!
//! The mask is never stored: element i is kept by word i mod 4 of the Philox block i / 4 of the key, so the backward
//! pass, a checkpoint's replay and a resumed run make the same one.

use crate::blocks::{Old, Reader, write};
use crate::cpu::gemm::Accumulate;
use crate::cpu::{Cpu, simd};
use crate::cuda::{self, Arg, Cuda};
use crate::ops::binary::add_to;
use crate::philox::Key;
use crate::{DType, Error, Result, Tensor, TensorMut, kernel};

/// Arguments of [`DROPOUT`]: out = drop(x) or out += drop(x), where drop(x) = x / (1 - p), each element 0 with probability p.
pub struct DropoutArgs<'a> {
    /// Any shape and float dtype, contiguous.
    pub x: &'a Tensor,
    /// In (0, 1).
    pub p: f32,
    /// Of the random mask.
    pub key: Key,
    /// Whether `out` is overwritten or added to; either way it is rounded once.
    pub accumulate: Accumulate,
    /// Shape of `x`, and its dtype unless `x` is f32, which goes into any float dtype.
    pub out: TensorMut<'a>,
}
kernel!(pub DROPOUT = "dropout", DropoutArgs, dropout_cpu, dropout_cuda);

/// `x` with each element zero with probability `p`, else divided by 1 - p. The gradient is the same function of the
/// output's gradient. With p = 0 this is `x`.
///
/// # Errors
/// When `p` is not in [0, 1), or `x` is not of a float type.
pub fn dropout(x: &Tensor, p: f32, key: Key) -> Result<Tensor> {
    check_operand(x, p)?;
    if p == 0.0 {
        return Ok(x.clone());
    }
    let x = x.contiguous()?;
    let mut out = x.device().alloc(x.shape(), x.dtype())?;
    let args = DropoutArgs { x: &x, p, key, accumulate: Accumulate::Store, out: out.view() };
    x.device().run(&DROPOUT, args)?;
    Ok(out.finish())
}

/// `out += dropout(x, p, key)`, rounded once: how a gradient that dropout stopped in part joins another. `x` is f32 or has the
/// dtype of `out`.
///
/// # Errors
/// As [`dropout`], and when shapes, dtypes or devices differ.
pub fn add_dropout(x: &Tensor, p: f32, key: Key, mut out: TensorMut<'_>) -> Result<()> {
    check_operand(x, p)?;
    if x.shape() != out.shape() {
        return Err(Error::shape("dropout", format!("{:?} into {:?}", x.shape(), out.shape())));
    }
    if x.device() != out.device() {
        return Err(Error::device("dropout", "tensors on two devices"));
    }
    if !out.dtype().is_float() || x.dtype() != DType::F32 && x.dtype() != out.dtype() {
        return Err(Error::dtype("dropout", format!("{} into {}", x.dtype(), out.dtype())));
    }
    if p == 0.0 {
        return super::accumulate(&mut out, x);
    }
    let x = x.contiguous()?;
    x.device().run(&DROPOUT, DropoutArgs { x: &x, p, key, accumulate: Accumulate::Add, out })
}

fn check_operand(x: &Tensor, p: f32) -> Result<()> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::invalid(format!("dropout: probability {p} is not in [0, 1)")));
    }
    if !x.dtype().is_float() {
        return Err(Error::dtype("dropout", format!("takes f32, bf16 or f16, not {}", x.dtype())));
    }
    Ok(())
}

/// Words below the first number drop their element: p is met to 2^-32. The others are multiplied by the second.
fn numbers(p: f32) -> (u32, f32) {
    ((f64::from(p) * 2f64.powi(32)) as u32, 1.0 / (1.0 - p))
}

fn dropout_cpu(cpu: &Cpu, args: DropoutArgs<'_>) -> Result<()> {
    let DropoutArgs { x, p, key, accumulate, mut out } = args;
    let (simd, x, (threshold, scale)) = (cpu.simd(), Reader::new(x, cpu.simd())?, numbers(p));
    let old = if accumulate == Accumulate::Add { Old::Kept } else { Old::Ignored };
    write(cpu, &mut out, old, &|range, out, [block, dropped, _]| {
        // Blocks start on multiples of four elements, so on Philox blocks.
        let (first, dropped) = ((range.start / 4) as u64, &mut dropped[..range.len()]);
        let x = x.read(range, block);
        match accumulate {
            Accumulate::Store => mask(simd, x, key, first, threshold, scale, out),
            Accumulate::Add => {
                mask(simd, x, key, first, threshold, scale, dropped);
                add_to(simd, dropped, out);
            }
        }
    })
}

fn dropout_cuda(cuda: &Cuda, args: DropoutArgs<'_>) -> Result<()> {
    let DropoutArgs { x, p, key: Key([key0, key1]), accumulate, out } = args;
    let (threshold, scale) = numbers(p);
    let args = [
        cuda::read(x)?,
        Arg::U32(threshold),
        Arg::F32(scale),
        Arg::U32(key0),
        Arg::U32(key1),
        Arg::U32((accumulate == Accumulate::Add).into()),
        cuda::written(&out)?,
        cuda::count(out.len()),
    ];
    cuda::over_elements(cuda, "dropout", &format!("dropout_{}_{}", x.dtype(), out.dtype()), out.len(), &args)
}

simd! {
    fn mask(x: &[f32], key: Key, first: u64, threshold: u32, scale: f32, y: &mut [f32]) {
        for (block, (x, y)) in x.chunks(4).zip(y.chunks_mut(4)).enumerate() {
            let words = key.words(first + block as u64);
            for ((y, &x), word) in y.iter_mut().zip(x).zip(words) {
                *y = if word < threshold { 0.0 } else { x * scale };
            }
        }
    }
}
