//! Attention: softmax(q kᵀ · scale) v within segments, heads grouped. One op for training, packed rows, prefill,
//! decoding and encoders, which differ in their segments and mask only.

use crate::cpu::Cpu;
use crate::cpu::attention::{self, Attention, Gradients, Mask, Segment};
use crate::ops::copy;
use crate::{DType, Error, Result, Tensor, TensorMut, dispatch, kernel, same_device};

mod cuda;
mod segments;
pub use segments::Segments;

/// Keys and values [entries, key heads, d]. Contiguous now; pages with a block table are to come here.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// The keys.
    pub k: &'a Tensor,
    /// The values, of the keys' shape.
    pub v: &'a Tensor,
}

/// Arguments of [`ATTENTION`]: out = softmax(q kᵀ · scale) v within segments. q, k, v and out are of one float dtype. On
/// CUDA devices, where that is bf16 or f16, d is a multiple of 8 and each tensor begins at a multiple of 16 bytes.
pub struct AttentionArgs<'a> {
    /// [tokens, heads, d], contiguous.
    pub q: &'a Tensor,
    /// Keys and values [entries, key heads, d], contiguous.
    pub kv: KvView<'a>,
    /// Which queries see which keys, in the order of the queries.
    pub segments: &'a Segments,
    /// Which keys of its segment a query sees.
    pub mask: Mask,
    /// Factor of the scores.
    pub scale: f32,
    /// [tokens, heads, d].
    pub out: TensorMut<'a>,
    /// The logarithm of each softmax's sum: [tokens, heads], f32.
    pub lse: TensorMut<'a>,
}
kernel!(pub ATTENTION = "attention", AttentionArgs, forward_cpu, cuda::forward);

/// Arguments of [`ATTENTION_BACKWARD`]: the gradients of [`ATTENTION`] by q, k and v. All but lse are of one dtype, as
/// there.
pub struct AttentionBackwardArgs<'a> {
    /// The gradient of `out`: [tokens, heads, d], contiguous.
    pub d_out: &'a Tensor,
    /// [tokens, heads, d], contiguous.
    pub q: &'a Tensor,
    /// Keys and values [entries, key heads, d], contiguous.
    pub kv: KvView<'a>,
    /// As the forward pass gave it: [tokens, heads, d], contiguous.
    pub out: &'a Tensor,
    /// As the forward pass gave it: [tokens, heads], f32, contiguous.
    pub lse: &'a Tensor,
    /// Which queries see which keys, in the order of the queries.
    pub segments: &'a Segments,
    /// Which keys of its segment a query sees.
    pub mask: Mask,
    /// Factor of the scores.
    pub scale: f32,
    /// [tokens, heads, d].
    pub dq: TensorMut<'a>,
    /// [entries, key heads, d].
    pub dk: TensorMut<'a>,
    /// [entries, key heads, d].
    pub dv: TensorMut<'a>,
}
kernel!(pub ATTENTION_BACKWARD = "attention_backward", AttentionBackwardArgs, backward_cpu, cuda::backward);

/// Attention of `q` [tokens, heads, d] over the keys and values of `kv`; query head h uses key head
/// h / (heads / key heads). Gives the output [tokens, heads, d] and the logarithm of each softmax's sum
/// [tokens, heads] in f32, which [`attention_backward`] needs. 16-bit tensors are read and written as they are, but on CUDA
/// devices where d is no multiple of 8, which compute with a copy in f32.
///
/// # Errors
/// When shapes, dtypes or devices do not fit each other or the segments.
pub fn attention(q: &Tensor, kv: KvView<'_>, segments: &Segments, mask: Mask, scale: f32) -> Result<(Tensor, Tensor)> {
    let device = same_device("attention", &[q, kv.k, kv.v])?;
    check(q, kv, segments, mask)?;
    let dtype = kernels_dtype(q)?;
    let [q_in, k, v] = &operands([q, kv.k, kv.v], dtype)?;
    let mut out = device.alloc(q.shape(), dtype)?;
    let mut lse = device.alloc(&q.shape()[..2], DType::F32)?;
    let kv = KvView { k, v };
    device.run(&ATTENTION, AttentionArgs { q: q_in, kv, segments, mask, scale, out: out.view(), lse: lse.view() })?;
    Ok((out.finish().to_dtype(q.dtype())?, lse.finish()))
}

/// The gradients of [`attention()`] with respect to q, k and v, given its outputs.
///
/// # Errors
/// As [`attention()`].
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    d_out: &Tensor,
    q: &Tensor,
    kv: KvView<'_>,
    out: &Tensor,
    lse: &Tensor,
    segments: &Segments,
    mask: Mask,
    scale: f32,
) -> Result<[Tensor; 3]> {
    let device = same_device("attention_backward", &[d_out, q, kv.k, kv.v, out, lse])?;
    check(q, kv, segments, mask)?;
    if d_out.shape() != q.shape() || out.shape() != q.shape() || lse.shape() != &q.shape()[..2] {
        let shapes = format!("gradient {:?}, output {:?}, lse {:?}", d_out.shape(), out.shape(), lse.shape());
        return Err(Error::shape("attention_backward", format!("{shapes} of q {:?}", q.shape())));
    }
    let dtype = kernels_dtype(q)?;
    let [d_out, q_in, k, v, out] = &operands([d_out, q, kv.k, kv.v, out], dtype)?;
    let lse = &lse.to_dtype(DType::F32)?.contiguous()?;
    let mut dq = device.alloc(q.shape(), dtype)?;
    let mut dk = device.alloc(kv.k.shape(), dtype)?;
    let mut dv = device.alloc(kv.v.shape(), dtype)?;
    let args = AttentionBackwardArgs {
        d_out,
        q: q_in,
        kv: KvView { k, v },
        out,
        lse,
        segments,
        mask,
        scale,
        dq: dq.view(),
        dk: dk.view(),
        dv: dv.view(),
    };
    device.run(&ATTENTION_BACKWARD, args)?;
    let dtype = q.dtype();
    Ok([dq.finish().to_dtype(dtype)?, dk.finish().to_dtype(dtype)?, dv.finish().to_dtype(dtype)?])
}

/// The dtype that the kernels for `q` take: its own, but f32 on a CUDA device whose tensor cores cannot take it, as they
/// need heads of whole 16 bytes.
fn kernels_dtype(q: &Tensor) -> Result<DType> {
    let (_, _, width) = q.dims3("attention")?;
    Ok(if q.device().as_cuda().is_ok() && !width.is_multiple_of(8) { DType::F32 } else { q.dtype() })
}

/// Tensors as the kernels take them: of `dtype`, contiguous, and aligned where a GPU reads 16 bits 16 bytes at a time.
fn operands<const N: usize>(tensors: [&Tensor; N], dtype: DType) -> Result<[Tensor; N]> {
    let mut operands = tensors.map(Clone::clone);
    for x in &mut operands {
        *x = x.to_dtype(dtype)?.contiguous()?;
        if x.device().as_cuda().is_ok() && dtype != DType::F32 && x.address()? % cuda::ALIGNMENT != 0 {
            *x = copy(x, dtype)?;
        }
    }
    Ok(operands)
}

fn check(q: &Tensor, kv: KvView<'_>, segments: &Segments, mask: Mask) -> Result<()> {
    let ((tokens, heads, width), (entries, kv_heads, kv_width)) = (q.dims3("attention")?, kv.k.dims3("attention")?);
    if kv.k.shape() != kv.v.shape()
        || width != kv_width
        || width == 0
        || heads == 0
        || kv_heads == 0
        || heads % kv_heads != 0
    {
        let shapes = format!("q {:?}, k {:?}, v {:?}", q.shape(), kv.k.shape(), kv.v.shape());
        return Err(Error::shape("attention", shapes));
    }
    if segments.queries() != tokens || segments.keys() > entries {
        let needs = format!("segments of {} queries and {} keys", segments.queries(), segments.keys());
        return Err(Error::shape("attention", format!("{needs}, with q {:?} and k {:?}", q.shape(), kv.k.shape())));
    }
    if !q.dtype().is_float() || kv.k.dtype() != q.dtype() || kv.v.dtype() != q.dtype() {
        let dtypes = format!("q {}, k {}, v {}", q.dtype(), kv.k.dtype(), kv.v.dtype());
        return Err(Error::dtype("attention", dtypes));
    }
    let blind = |s: &&Segment| mask != Mask::Full && s.q_len > s.kv_len;
    if let Some(s) = segments.list().iter().find(blind) {
        return Err(Error::invalid(format!("attention: under {mask:?} {s:?} has queries before its first key")));
    }
    if mask == Mask::Window(0) {
        return Err(Error::invalid("attention: a window of no keys"));
    }
    Ok(())
}

fn attention_of(q: &Tensor, kv: KvView<'_>, mask: Mask, scale: f32) -> Result<Attention> {
    let ((_, heads, head_dim), (_, kv_heads, _)) = (q.dims3("attention")?, kv.k.dims3("attention")?);
    Ok(Attention { heads, kv_heads, head_dim, scale, mask })
}

fn forward_cpu(cpu: &Cpu, mut args: AttentionArgs<'_>) -> Result<()> {
    let of = attention_of(args.q, args.kv, args.mask, args.scale)?;
    dispatch!(float args.q.dtype(), "attention", T => {
        let (q, k, v) = (args.q.as_slice::<T>()?, args.kv.k.as_slice()?, args.kv.v.as_slice()?);
        let (out, lse) = (args.out.as_mut_slice()?, args.lse.as_mut_slice()?);
        attention::forward(cpu, &of, args.segments.list(), q, k, v, out, lse)
    })
}

fn backward_cpu(cpu: &Cpu, mut args: AttentionBackwardArgs<'_>) -> Result<()> {
    let of = attention_of(args.q, args.kv, args.mask, args.scale)?;
    dispatch!(float args.q.dtype(), "attention_backward", T => {
        let (q, k, v) = (args.q.as_slice::<T>()?, args.kv.k.as_slice()?, args.kv.v.as_slice()?);
        let (out, lse, d_out) = (args.out.as_slice()?, args.lse.as_slice()?, args.d_out.as_slice()?);
        let gradients =
            Gradients { q: args.dq.as_mut_slice()?, k: args.dk.as_mut_slice()?, v: args.dv.as_mut_slice()? };
        attention::backward(cpu, &of, args.segments.list(), q, k, v, out, lse, d_out, gradients)
    })
}
