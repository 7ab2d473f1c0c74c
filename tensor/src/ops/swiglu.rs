//! SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020): y = silu(gate) · up with silu(g) = g sigmoid(g).

use crate::cpu::{Cpu, math, simd};
use crate::cuda::{self, Cuda};
use crate::{Error, Float, Result, Tensor, TensorMut, dispatch, kernel, same_device};

/// Arguments of [`SWIGLU`]: out = silu(gate) · up.
pub struct SwigluArgs<'a> {
    /// Any shape and float dtype, contiguous.
    pub gate: &'a Tensor,
    /// Shape and dtype of `gate`, contiguous.
    pub up: &'a Tensor,
    /// Shape and dtype of `gate`.
    pub out: TensorMut<'a>,
}
kernel!(pub SWIGLU = "swiglu", SwigluArgs, forward_cpu, forward_cuda);

/// Arguments of [`SWIGLU_BACKWARD`]: the gradients of [`SWIGLU`] by gate and up.
pub struct SwigluBackwardArgs<'a> {
    /// The gradient of the output: shape and dtype of `gate`, contiguous.
    pub dy: &'a Tensor,
    /// Any shape and float dtype, contiguous.
    pub gate: &'a Tensor,
    /// Shape and dtype of `gate`, contiguous.
    pub up: &'a Tensor,
    /// Shape and dtype of `gate`.
    pub d_gate: TensorMut<'a>,
    /// Shape and dtype of `gate`.
    pub d_up: TensorMut<'a>,
}
kernel!(pub SWIGLU_BACKWARD = "swiglu_backward", SwigluBackwardArgs, backward_cpu, backward_cuda);

/// Elements handed to one task.
const CHUNK: usize = 1 << 14;

/// silu(`gate`) · `up`, computed in f32 and rounded once. Both have one shape and float dtype.
///
/// # Errors
/// When shapes, dtypes or devices differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let device = same_device("swiglu", &[gate, up])?;
    alike(gate, up)?;
    let mut out = device.alloc(gate.shape(), gate.dtype())?;
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    device.run(&SWIGLU, SwigluArgs { gate: &gate, up: &up, out: out.view() })?;
    Ok(out.finish())
}

/// The gradients of [`swiglu`] with respect to `gate` and `up`.
///
/// # Errors
/// As [`swiglu`], for `dy` too.
pub fn swiglu_backward(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    let device = same_device("swiglu_backward", &[dy, gate, up])?;
    alike(gate, up)?;
    alike(dy, gate)?;
    let (mut d_gate, mut d_up) = (device.alloc(gate.shape(), gate.dtype())?, device.alloc(up.shape(), up.dtype())?);
    let (dy, gate, up) = (dy.contiguous()?, gate.contiguous()?, up.contiguous()?);
    let args = SwigluBackwardArgs { dy: &dy, gate: &gate, up: &up, d_gate: d_gate.view(), d_up: d_up.view() };
    device.run(&SWIGLU_BACKWARD, args)?;
    Ok((d_gate.finish(), d_up.finish()))
}

fn alike(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() != b.shape() {
        return Err(Error::shape("swiglu", format!("{:?} and {:?}", a.shape(), b.shape())));
    }
    if a.dtype() != b.dtype() {
        return Err(Error::dtype("swiglu", format!("{} and {}", a.dtype(), b.dtype())));
    }
    Ok(())
}

fn forward_cpu(cpu: &Cpu, mut args: SwigluArgs<'_>) -> Result<()> {
    dispatch!(float args.out.dtype(), "swiglu", T => {
        forward::<T>(cpu, args.gate.as_slice()?, args.up.as_slice()?, args.out.as_mut_slice()?);
        Ok(())
    })
}

fn forward<T: Float>(cpu: &Cpu, gate: &[T], up: &[T], out: &mut [T]) {
    let simd = cpu.simd();
    cpu.chunks(out, CHUNK, |i, out| {
        let part = i * CHUNK..i * CHUNK + out.len();
        forward_slice(simd, &gate[part.clone()], &up[part], out);
    });
}

fn backward_cpu(cpu: &Cpu, mut args: SwigluBackwardArgs<'_>) -> Result<()> {
    dispatch!(float args.d_up.dtype(), "swiglu_backward", T => {
        let (dy, gate, up) = (args.dy.as_slice()?, args.gate.as_slice()?, args.up.as_slice()?);
        backward::<T>(cpu, dy, gate, up, args.d_gate.as_mut_slice()?, args.d_up.as_mut_slice()?);
        Ok(())
    })
}

fn backward<T: Float>(cpu: &Cpu, dy: &[T], gate: &[T], up: &[T], d_gate: &mut [T], d_up: &mut [T]) {
    let simd = cpu.simd();
    cpu.chunks2((d_gate, CHUNK), (d_up, CHUNK), |i, d_gate, d_up| {
        let part = i * CHUNK..i * CHUNK + d_up.len();
        backward_slice(simd, &dy[part.clone()], &gate[part.clone()], &up[part], d_gate, d_up);
    });
}

fn forward_cuda(cuda: &Cuda, args: SwigluArgs<'_>) -> Result<()> {
    let SwigluArgs { gate, up, out } = args;
    let args = [cuda::read(gate)?, cuda::read(up)?, cuda::written(&out)?, cuda::count(out.len())];
    cuda::over_elements(cuda, "swiglu", &format!("swiglu_{}", gate.dtype()), out.len(), &args)
}

fn backward_cuda(cuda: &Cuda, args: SwigluBackwardArgs<'_>) -> Result<()> {
    let SwigluBackwardArgs { dy, gate, up, d_gate, d_up } = args;
    let args = [
        cuda::read(dy)?,
        cuda::read(gate)?,
        cuda::read(up)?,
        cuda::written(&d_gate)?,
        cuda::written(&d_up)?,
        cuda::count(d_up.len()),
    ];
    cuda::over_elements(cuda, "swiglu", &format!("swiglu_backward_{}", gate.dtype()), d_up.len(), &args)
}

simd! {
    fn forward_slice<T: Float>(gate: &[T], up: &[T], y: &mut [T]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            let (g, u) = (g.wide(), u.wide());
            *y = T::from_f32(g * math::sigmoid(g) * u);
        }
    }

    /// With s = sigmoid(g): d_up = dy g s, d_gate = dy u s (1 + g (1 - s)).
    fn backward_slice<T: Float>(dy: &[T], gate: &[T], up: &[T], d_gate: &mut [T], d_up: &mut [T]) {
        for ((((d_gate, d_up), dy), g), u) in d_gate.iter_mut().zip(d_up).zip(dy).zip(gate).zip(up) {
            let (dy, g, u) = (dy.wide(), g.wide(), u.wide());
            let s = math::sigmoid(g);
            *d_up = T::from_f32(dy * (g * s));
            *d_gate = T::from_f32(dy * u * (s * g.mul_add(1.0 - s, 1.0)));
        }
    }
}
