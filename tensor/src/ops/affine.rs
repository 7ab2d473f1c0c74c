//! x · scale + shift, by two numbers.

use crate::blocks::{Old, Reader, write};
use crate::cpu::{Cpu, simd};
use crate::cuda::{self, Arg, Cuda, View};
use crate::{Result, Tensor, TensorMut, kernel};

/// Arguments of [`AFFINE`]: out = x · scale + shift.
pub struct AffineArgs<'a> {
    /// Any shape, layout and float dtype.
    pub x: &'a Tensor,
    /// The factor.
    pub scale: f32,
    /// What is added.
    pub shift: f32,
    /// Shape and dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub AFFINE = "affine", AffineArgs, affine_cpu, affine_cuda);

/// x · scale + shift, with one rounding.
///
/// # Errors
/// When `x` is not of a float dtype.
pub fn affine(x: &Tensor, scale: f32, shift: f32) -> Result<Tensor> {
    let dtype = x.dtype().expect_float("affine")?;
    let mut out = x.device().alloc(x.shape(), dtype)?;
    x.device().run(&AFFINE, AffineArgs { x, scale, shift, out: out.view() })?;
    Ok(out.finish())
}

fn affine_cpu(cpu: &Cpu, args: AffineArgs<'_>) -> Result<()> {
    let AffineArgs { x, scale, shift, mut out } = args;
    let x = Reader::new(x, cpu.simd())?;
    write(cpu, &mut out, Old::Ignored, &|range, out, [block, ..]| {
        apply(cpu.simd(), x.read(range, block), scale, shift, out);
    })
}

fn affine_cuda(cuda: &Cuda, args: AffineArgs<'_>) -> Result<()> {
    let AffineArgs { x, scale, shift, out } = args;
    let (entry, view) = (format!("affine_{}", x.dtype()), View::new(x)?);
    let args =
        [cuda::read(x)?, view.arg(), Arg::F32(scale), Arg::F32(shift), cuda::written(&out)?, cuda::count(out.len())];
    cuda::over_elements(cuda, "affine", &entry, out.len(), &args)
}

simd! {
    fn apply(x: &[f32], scale: f32, shift: f32, out: &mut [f32]) {
        for (x, out) in x.iter().zip(out) {
            *out = x.mul_add(scale, shift);
        }
    }
}
