//! Dropout (Srivastava et al., 2014), inverted: an element is kept with probability 1 - p and divided by it.
//!
//! The mask is never stored: element i is kept by word i mod 4 of the Philox block i / 4 of the key, so the backward
//! pass, a checkpoint's replay and a resumed run make the same one.

use crate::cpu::{Cpu, simd};
use crate::cuda::{self, Arg, Cuda};
use crate::philox::Key;
use crate::{Error, Float, Result, Tensor, TensorMut, dispatch, kernel};

/// Arguments of [`DROPOUT`]: out = x / (1 - p), each element 0 with probability p.
pub struct DropoutArgs<'a> {
    /// Any shape and float dtype, contiguous.
    pub x: &'a Tensor,
    /// In (0, 1).
    pub p: f32,
    /// Of the random mask.
    pub key: Key,
    /// Shape and dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub DROPOUT = "dropout", DropoutArgs, dropout_cpu, dropout_cuda);

/// Elements handed to one task: a multiple of four, so that a task starts on a Philox block.
const CHUNK: usize = 1 << 13;

/// `x` with each element zero with probability `p`, else divided by 1 - p. The gradient is the same function of the
/// output's gradient. With p = 0 this is `x`.
///
/// # Errors
/// When `p` is not in [0, 1), or `x` is not of a float type.
pub fn dropout(x: &Tensor, p: f32, key: Key) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::invalid(format!("dropout: probability {p} is not in [0, 1)")));
    }
    if !x.dtype().is_float() {
        return Err(Error::dtype("dropout", format!("takes f32, bf16 or f16, not {}", x.dtype())));
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    let x = x.contiguous()?;
    let mut out = x.device().alloc(x.shape(), x.dtype())?;
    x.device().run(&DROPOUT, DropoutArgs { x: &x, p, key, out: out.view() })?;
    Ok(out.finish())
}

fn dropout_cpu(cpu: &Cpu, mut args: DropoutArgs<'_>) -> Result<()> {
    dispatch!(float args.x.dtype(), "dropout", T => {
        mask::<T>(cpu, args.x.as_slice()?, args.p, args.key, args.out.as_mut_slice()?);
        Ok(())
    })
}

fn mask<T: Float>(cpu: &Cpu, x: &[T], p: f32, key: Key, out: &mut [T]) {
    let (simd, (threshold, scale)) = (cpu.simd(), numbers(p));
    cpu.chunks(out, CHUNK, |i, out| {
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        let x = T::as_f32(simd, &x[i * CHUNK..][..out.len()], &mut xs);
        let first = (i * CHUNK / 4) as u64;
        T::write_f32(simd, out, &mut ys, |y| mask_slice(simd, x, key, first, threshold, scale, y));
    });
}

/// Words below the first number drop their element: p is met to 2^-32. The others are multiplied by the second.
fn numbers(p: f32) -> (u32, f32) {
    ((f64::from(p) * 2f64.powi(32)) as u32, 1.0 / (1.0 - p))
}

fn dropout_cuda(cuda: &Cuda, args: DropoutArgs<'_>) -> Result<()> {
    let DropoutArgs { x, p, key: Key([key0, key1]), out } = args;
    let (threshold, scale) = numbers(p);
    let args = [
        cuda::read(x)?,
        Arg::U32(threshold),
        Arg::F32(scale),
        Arg::U32(key0),
        Arg::U32(key1),
        cuda::written(&out)?,
        cuda::count(out.len()),
    ];
    cuda::over_elements(cuda, "dropout", &format!("dropout_{}", x.dtype()), out.len(), &args)
}

simd! {
    fn mask_slice(x: &[f32], key: Key, first: u64, threshold: u32, scale: f32, y: &mut [f32]) {
        for (block, (x, y)) in x.chunks(4).zip(y.chunks_mut(4)).enumerate() {
            let words = key.words(first + block as u64);
            for ((y, &x), word) in y.iter_mut().zip(x).zip(words) {
                *y = if word < threshold { 0.0 } else { x * scale };
            }
        }
    }
}
