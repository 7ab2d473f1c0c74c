//! Elementwise operations of two tensors that broadcast, and the in-place sum that gradients are gathered by.

use crate::cpu::Cpu;
use crate::{DType, Element, Error, Result, Tensor, TensorMut, broadcast_shape, dispatch, kernel, same_device};

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
}

struct BinaryArgs<'a> {
    op: Binary,
    a: &'a Tensor,
    b: &'a Tensor,
    out: TensorMut<'a>,
}
kernel!(BINARY = "binary", BinaryArgs, binary_cpu);

struct Accumulate<'a> {
    x: &'a Tensor,
    out: TensorMut<'a>,
}
kernel!(ACCUMULATE = "accumulate", Accumulate, accumulate_cpu);

/// Elements handed to one task.
const CHUNK: usize = 1 << 14;

/// `op` of `a` and `b`, which have one float dtype and broadcast to the shape of the result.
///
/// # Errors
/// When shapes do not broadcast, or dtypes or devices differ.
pub fn binary(op: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let device = same_device("binary", &[a, b])?;
    if a.dtype() != b.dtype() {
        return Err(Error::dtype("binary", format!("{op:?} of {} and {}", a.dtype(), b.dtype())));
    }
    let shape = broadcast_shape("binary", a.shape(), b.shape())?;
    let a = a.broadcast_to(&shape)?.contiguous()?;
    let b = b.broadcast_to(&shape)?.contiguous()?;
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

/// a · b, element by element
///
/// # Errors
/// As [`binary`].
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary(Binary::Mul, a, b)
}

/// `out += x`, where `x` has the shape of `out`; `x` may have another float dtype.
///
/// # Errors
/// When shapes or devices differ.
pub fn accumulate(out: &mut TensorMut<'_>, x: &Tensor) -> Result<()> {
    if x.shape() != out.shape() {
        return Err(Error::shape("accumulate", format!("{:?} into {:?}", x.shape(), out.shape())));
    }
    if x.device() != out.device() {
        return Err(Error::device("accumulate", "tensors on two devices"));
    }
    let x = x.to_dtype(out.dtype())?.contiguous()?;
    x.device().run(&ACCUMULATE, Accumulate { x: &x, out: out.reborrow() })
}

/// The sum of `x` over the dimensions along which `shape` was broadcast to it: the gradient of a broadcast.
///
/// # Errors
/// When `shape` does not broadcast to the shape of `x`.
pub fn sum_to(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    if broadcast_shape("sum_to", x.shape(), shape)?[..] != *x.shape() {
        return Err(Error::shape("sum_to", format!("{shape:?} does not broadcast to {:?}", x.shape())));
    }
    let lead = x.rank() - shape.len();
    // Bring every repeated dimension to the front, then add slices in order.
    let repeated = |d: usize| d < lead || (shape[d - lead] == 1 && x.shape()[d] != 1);
    let (front, back): (Vec<usize>, Vec<usize>) = (0..x.rank()).partition(|&d| repeated(d));
    let count: usize = front.iter().map(|&d| x.shape()[d]).product();
    let order: Vec<usize> = front.iter().chain(&back).copied().collect();
    let rest: usize = back.iter().map(|&d| x.shape()[d]).product();
    let flat = x.permute(&order)?.reshape(&[count, rest])?;
    let mut out = Tensor::zeros(&[rest], DType::F32, x.device())?;
    for i in 0..count {
        let mut place = out.as_mut().ok_or_else(|| Error::aliased("sum_to: output"))?;
        accumulate(&mut place, &flat.select(0, i)?)?;
    }
    out.reshape(shape)?.to_dtype(x.dtype())
}

fn binary_cpu(cpu: &Cpu, mut args: BinaryArgs<'_>) -> Result<()> {
    dispatch!(float args.out.dtype(), "binary", T => {
        let (a, b) = (args.a.as_slice::<T>()?, args.b.as_slice::<T>()?);
        let out = args.out.as_mut_slice::<T>()?;
        match args.op {
            Binary::Add => zip(cpu, a, b, out, |x, y| x + y),
            Binary::Sub => zip(cpu, a, b, out, |x, y| x - y),
            Binary::Mul => zip(cpu, a, b, out, |x, y| x * y),
            Binary::Div => zip(cpu, a, b, out, |x, y| x / y),
        }
        Ok(())
    })
}

fn zip<T: Element>(cpu: &Cpu, a: &[T], b: &[T], out: &mut [T], f: impl Fn(f32, f32) -> f32 + Sync + Send) {
    cpu.chunks(out, CHUNK, |i, out| {
        let (a, b) = (&a[i * CHUNK..][..out.len()], &b[i * CHUNK..][..out.len()]);
        for ((out, &x), &y) in out.iter_mut().zip(a).zip(b) {
            *out = T::from_f32(f(x.to_f32(), y.to_f32()));
        }
    });
}

fn accumulate_cpu(cpu: &Cpu, mut args: Accumulate<'_>) -> Result<()> {
    dispatch!(float args.out.dtype(), "accumulate", T => {
        let x = args.x.as_slice::<T>()?;
        cpu.chunks(args.out.as_mut_slice::<T>()?, CHUNK, |i, out| {
            for (out, &x) in out.iter_mut().zip(&x[i * CHUNK..]) {
                *out = T::from_f32(out.to_f32() + x.to_f32());
            }
        });
        Ok(())
    })
}
