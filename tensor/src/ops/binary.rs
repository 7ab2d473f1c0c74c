//! Elementwise operations of two tensors that broadcast, and the in-place sum that gradients are gathered by.

use crate::blocks::{Old, Reader, write};
use crate::cpu::{Cpu, simd};
use crate::cuda::{self, Arg, Cuda, View};
use crate::{Error, Result, Tensor, TensorMut, broadcast_shape, kernel, same_device};

/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
    /// The larger; NaN if either is.
    Maximum,
    /// The smaller; NaN if either is.
    Minimum,
}

/// Arguments of [`BINARY`]: out = `op` of a and b, element by element.
pub struct BinaryArgs<'a> {
    /// Which operation.
    pub op: Binary,
    /// Shape of `out`, any layout (broadcast: strides of 0), any float dtype.
    pub a: &'a Tensor,
    /// Shape and dtype of `a`, any layout.
    pub b: &'a Tensor,
    /// Shape and dtype of `a`.
    pub out: TensorMut<'a>,
}
kernel!(pub BINARY = "binary", BinaryArgs, binary_cpu, binary_cuda);

/// Arguments of [`ACCUMULATE`]: out += x.
pub struct AccumulateArgs<'a> {
    /// Shape of `out`, any layout and float dtype.
    pub x: &'a Tensor,
    /// Any shape and float dtype; read and written.
    pub out: TensorMut<'a>,
}
kernel!(pub ACCUMULATE = "accumulate", AccumulateArgs, accumulate_cpu, accumulate_cuda);

/// `op` of `a` and `b`, which have one float dtype and broadcast to the shape of the result.
///
/// # Errors
/// When shapes do not broadcast, or dtypes or devices differ.
pub fn binary(op: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let device = same_device("binary", &[a, b])?;
    if a.dtype() != b.dtype() || !a.dtype().is_float() {
        return Err(Error::dtype("binary", format!("{op:?} of {} and {}", a.dtype(), b.dtype())));
    }
    let shape = broadcast_shape("binary", a.shape(), b.shape())?;
    let (a, b) = (a.broadcast_to(&shape)?, b.broadcast_to(&shape)?);
    let mut out = device.alloc(&shape, a.dtype())?;
    device.run(&BINARY, BinaryArgs { op, a: &a, b: &b, out: out.view() })?;
    Ok(out.finish())
}

/// a + b
///
/// # Errors
/// As [`binary`].
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Add, a, b)
}

/// a - b
///
/// # Errors
/// As [`binary`].
pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Sub, a, b)
}

/// a · b, element by element
///
/// # Errors
/// As [`binary`].
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Mul, a, b)
}

/// a / b
///
/// # Errors
/// As [`binary`].
pub fn div(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Div, a, b)
}

/// The larger of a and b, NaN if either is.
///
/// # Errors
/// As [`binary`].
pub fn maximum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Maximum, a, b)
}

/// The smaller of a and b, NaN if either is.
///
/// # Errors
/// As [`binary`].
pub fn minimum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Minimum, a, b)
}

/// `out += x`, where `x` has the shape of `out`; `x` may have another float dtype.
///
/// # Errors
/// When shapes or devices differ, or a dtype is no float.
pub fn accumulate(out: &mut TensorMut<'_>, x: &Tensor) -> Result<()> {
    if x.shape() != out.shape() {
        return Err(Error::shape("accumulate", format!("{:?} into {:?}", x.shape(), out.shape())));
    }
    if x.device() != out.device() {
        return Err(Error::device("accumulate", "tensors on two devices"));
    }
    if !x.dtype().is_float() || !out.dtype().is_float() {
        return Err(Error::dtype("accumulate", format!("{} into {}", x.dtype(), out.dtype())));
    }
    x.device().run(&ACCUMULATE, AccumulateArgs { x, out: out.reborrow() })
}

fn binary_cpu(cpu: &Cpu, args: BinaryArgs<'_>) -> Result<()> {
    let BinaryArgs { op, a, b, mut out } = args;
    let (a, b) = (Reader::new(a, cpu.simd())?, Reader::new(b, cpu.simd())?);
    write(cpu, &mut out, Old::Ignored, &|range, out, [x, y, _]| {
        apply(cpu.simd(), op, a.read(range.clone(), x), b.read(range, y), out);
    })
}

fn accumulate_cpu(cpu: &Cpu, args: AccumulateArgs<'_>) -> Result<()> {
    let AccumulateArgs { x, mut out } = args;
    let x = Reader::new(x, cpu.simd())?;
    write(cpu, &mut out, Old::Kept, &|range, out, [block, ..]| add_to(cpu.simd(), x.read(range, block), out))
}

fn binary_cuda(cuda: &Cuda, args: BinaryArgs<'_>) -> Result<()> {
    let BinaryArgs { op, a, b, out } = args;
    let (entry, a_view, b_view) = (format!("binary_{}", a.dtype()), View::new(a)?, View::new(b)?);
    let args = [
        Arg::U32(op as u32),
        cuda::read(a)?,
        a_view.arg(),
        cuda::read(b)?,
        b_view.arg(),
        cuda::written(&out)?,
        cuda::count(out.len()),
    ];
    cuda::over_elements(cuda, "binary", &entry, out.len(), &args)
}

fn accumulate_cuda(cuda: &Cuda, args: AccumulateArgs<'_>) -> Result<()> {
    let AccumulateArgs { x, out } = args;
    let (entry, view) = (format!("accumulate_{}_{}", x.dtype(), out.dtype()), View::new(x)?);
    let args = [cuda::read(x)?, view.arg(), cuda::written(&out)?, cuda::count(out.len())];
    cuda::over_elements(cuda, "binary", &entry, out.len(), &args)
}

simd! {
    fn apply(op: Binary, a: &[f32], b: &[f32], out: &mut [f32]) {
        match op {
            Binary::Add => zip(a, b, out, |a, b| a + b),
            Binary::Sub => zip(a, b, out, |a, b| a - b),
            Binary::Mul => zip(a, b, out, |a, b| a * b),
            Binary::Div => zip(a, b, out, |a, b| a / b),
            Binary::Maximum => zip(a, b, out, |a, b| if a >= b || a.is_nan() { a } else { b }),
            Binary::Minimum => zip(a, b, out, |a, b| if a <= b || a.is_nan() { a } else { b }),
        }
    }

    pub(super) fn add_to(x: &[f32], out: &mut [f32]) {
        for (x, out) in x.iter().zip(out) {
            *out += x;
        }
    }
}

#[inline(always)]
fn zip(a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    for ((&a, &b), out) in a.iter().zip(b).zip(out) {
        *out = f(a, b);
    }
}
