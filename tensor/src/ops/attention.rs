//! Attention: softmax(q kᵀ · scale) v within segments, heads grouped. One op for training, packed rows, prefill,
//! decoding and encoders, which differ in their segments and mask only.

use crate::cpu::Cpu;
use crate::cpu::attention::{self, Attention, Gradients, Mask, Segment};
use crate::cuda::{self, Arg, Cuda};
use crate::ops::fill;
use crate::{DType, Error, Result, Tensor, TensorMut, kernel, same_device};

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

/// Arguments of [`ATTENTION`]: out = softmax(q kᵀ · scale) v within segments.
pub struct AttentionArgs<'a> {
    /// [tokens, heads, d], f32, contiguous.
    pub q: &'a Tensor,
    /// Keys and values [entries, key heads, d], f32, contiguous.
    pub kv: KvView<'a>,
    /// Which queries see which keys, in the order of the queries.
    pub segments: &'a Segments,
    /// Which keys of its segment a query sees.
    pub mask: Mask,
    /// Factor of the scores.
    pub scale: f32,
    /// [tokens, heads, d], f32.
    pub out: TensorMut<'a>,
    /// The logarithm of each softmax's sum: [tokens, heads], f32.
    pub lse: TensorMut<'a>,
}
kernel!(pub ATTENTION = "attention", AttentionArgs, forward_cpu, forward_cuda);

/// Arguments of [`ATTENTION_BACKWARD`]: the gradients of [`ATTENTION`] by q, k and v.
pub struct AttentionBackwardArgs<'a> {
    /// The gradient of `out`: [tokens, heads, d], f32, contiguous.
    pub d_out: &'a Tensor,
    /// [tokens, heads, d], f32, contiguous.
    pub q: &'a Tensor,
    /// Keys and values [entries, key heads, d], f32, contiguous.
    pub kv: KvView<'a>,
    /// As the forward pass gave it: [tokens, heads, d], f32, contiguous.
    pub out: &'a Tensor,
    /// As the forward pass gave it: [tokens, heads], f32, contiguous.
    pub lse: &'a Tensor,
    /// Which queries see which keys, in the order of the queries.
    pub segments: &'a Segments,
    /// Which keys of its segment a query sees.
    pub mask: Mask,
    /// Factor of the scores.
    pub scale: f32,
    /// [tokens, heads, d], f32.
    pub dq: TensorMut<'a>,
    /// [entries, key heads, d], f32.
    pub dk: TensorMut<'a>,
    /// [entries, key heads, d], f32.
    pub dv: TensorMut<'a>,
}
kernel!(pub ATTENTION_BACKWARD = "attention_backward", AttentionBackwardArgs, backward_cpu, backward_cuda);

/// Attention of `q` [tokens, heads, d] over the keys and values of `kv`; query head h uses key head
/// h / (heads / key heads). Gives the output [tokens, heads, d] and the logarithm of each softmax's sum
/// [tokens, heads] in f32, which [`attention_backward`] needs.
///
/// # Errors
/// When shapes, dtypes or devices do not fit each other or the segments.
pub fn attention(q: &Tensor, kv: KvView<'_>, segments: &Segments, mask: Mask, scale: f32) -> Result<(Tensor, Tensor)> {
    let device = same_device("attention", &[q, kv.k, kv.v])?;
    check(q, kv, segments, mask)?;
    let (q32, k32, v32) = (wide(q)?, wide(kv.k)?, wide(kv.v)?);
    let mut out = device.alloc(q.shape(), DType::F32)?;
    let mut lse = device.alloc(&q.shape()[..2], DType::F32)?;
    let kv = KvView { k: &k32, v: &v32 };
    device.run(&ATTENTION, AttentionArgs { q: &q32, kv, segments, mask, scale, out: out.view(), lse: lse.view() })?;
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
    let (d_out, q32, k32, v32) = (wide(d_out)?, wide(q)?, wide(kv.k)?, wide(kv.v)?);
    let (out, lse) = (wide(out)?, wide(lse)?);
    let mut dq = device.alloc(q.shape(), DType::F32)?;
    let mut dk = device.alloc(kv.k.shape(), DType::F32)?;
    let mut dv = device.alloc(kv.v.shape(), DType::F32)?;
    let args = AttentionBackwardArgs {
        d_out: &d_out,
        q: &q32,
        kv: KvView { k: &k32, v: &v32 },
        out: &out,
        lse: &lse,
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

/// The values as the kernels take them.
fn wide(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.contiguous()
}

fn check(q: &Tensor, kv: KvView<'_>, segments: &Segments, mask: Mask) -> Result<()> {
    let ((tokens, heads, width), (entries, kv_heads, kv_width)) = (q.dims3("attention")?, kv.k.dims3("attention")?);
    if kv.k.shape() != kv.v.shape() || width != kv_width || width == 0 || kv_heads == 0 || heads % kv_heads != 0 {
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
    let (q, k, v) = (args.q.as_slice()?, args.kv.k.as_slice()?, args.kv.v.as_slice()?);
    attention::forward(cpu, &of, args.segments.list(), q, k, v, args.out.as_mut_slice()?, args.lse.as_mut_slice()?)
}

fn backward_cpu(cpu: &Cpu, mut args: AttentionBackwardArgs<'_>) -> Result<()> {
    let of = attention_of(args.q, args.kv, args.mask, args.scale)?;
    let (q, k, v) = (args.q.as_slice()?, args.kv.k.as_slice()?, args.kv.v.as_slice()?);
    let (out, lse, d_out) = (args.out.as_slice()?, args.lse.as_slice()?, args.d_out.as_slice()?);
    let (dq, dk, dv) = (args.dq.as_mut_slice()?, args.dk.as_mut_slice()?, args.dv.as_mut_slice()?);
    attention::backward(cpu, &of, args.segments.list(), q, k, v, out, lse, d_out, Gradients { q: dq, k: dk, v: dv })
}

/// Rows and keys of a tile of attention.cu.
const SIDE: usize = 64;
/// The most columns that a block of its kernel for keys and values owns.
const SLICE: usize = 128;

/// The segments as attention.cu takes them, and what else its kernels share.
struct Plan {
    /// i32 [segments, 4]; see [`Segments::to_device`].
    table: Tensor,
    mask: Mask,
    heads: usize,
    kv_heads: usize,
    width: usize,
    row_tiles: usize,
    key_tiles: usize,
}

impl Plan {
    fn new(q: &Tensor, kv: KvView<'_>, segments: &Segments, mask: Mask) -> Result<Self> {
        let ((tokens, heads, width), (entries, kv_heads, _)) = (q.dims3("attention")?, kv.k.dims3("attention")?);
        if width > 256 || i32::try_from((tokens * heads).max(entries)).is_err() {
            let shapes = format!("q {:?} and k {:?}", q.shape(), kv.k.shape());
            return Err(Error::unsupported(format!("attention on a CUDA device: {shapes} (heads of at most 256)")));
        }
        // As the kernels count them.
        let row_tiles = segments.list().iter().map(|s| (s.q_len * (heads / kv_heads)).div_ceil(SIDE)).sum();
        let key_tiles = segments.list().iter().map(|s| s.kv_len.div_ceil(SIDE)).sum();
        Ok(Plan { table: segments.table(q.device())?, mask, heads, kv_heads, width, row_tiles, key_tiles })
    }

    /// `segments, count, full, window, scale`
    fn who_sees_whom(&self, scale: f32) -> Result<[Arg<'static>; 5]> {
        let (full, window) = match self.mask {
            Mask::Full => (1, 0),
            Mask::Causal => (0, i32::MAX as usize),
            Mask::Window(n) => (0, n.min(i32::MAX as usize)),
        };
        let count = cuda::number(self.table.dim(0)?)?;
        Ok([cuda::read(&self.table)?, count, Arg::U32(full), cuda::number(window)?, Arg::F32(scale)])
    }

    /// `heads, kv_heads, width`
    fn sizes(&self) -> Result<[Arg<'static>; 3]> {
        Ok([cuda::number(self.heads)?, cuda::number(self.kv_heads)?, cuda::number(self.width)?])
    }

    /// Starts a kernel whose blocks own rows.
    fn over_rows(&self, cuda: &Cuda, kernel: &str, args: &[Arg<'_>]) -> Result<()> {
        let columns = self.width.next_power_of_two().max(64);
        let blocks = self.row_tiles * self.kv_heads;
        cuda::start(cuda, "attention", &format!("{kernel}_f32_{columns}"), blocks, cuda::THREADS, args)
    }

    /// Starts a kernel whose blocks own keys, and a slice of their columns.
    fn over_keys(&self, cuda: &Cuda, kernel: &str, args: &[Arg<'_>]) -> Result<()> {
        let columns = self.width.next_power_of_two().clamp(64, SLICE);
        let blocks = self.key_tiles * self.kv_heads * self.width.div_ceil(columns);
        cuda::start(cuda, "attention", &format!("{kernel}_f32_{columns}"), blocks, cuda::THREADS, args)
    }
}

fn forward_cuda(cuda: &Cuda, args: AttentionArgs<'_>) -> Result<()> {
    let AttentionArgs { q, kv, segments, mask, scale, out, lse } = args;
    let plan = Plan::new(q, kv, segments, mask)?;
    let tensors = [cuda::read(q)?, cuda::read(kv.k)?, cuda::read(kv.v)?];
    let outputs = [cuda::written(&out)?, cuda::written(&lse)?];
    let args = [&tensors[..], &plan.who_sees_whom(scale)?, &outputs, &plan.sizes()?].concat();
    plan.over_rows(cuda, "attention", &args)
}

fn backward_cuda(cuda: &Cuda, args: AttentionBackwardArgs<'_>) -> Result<()> {
    let AttentionBackwardArgs { d_out, q, kv, out, lse, segments, mask, scale, dq, mut dk, mut dv } = args;
    attention::check_keys(segments.list())?;
    let plan = Plan::new(q, kv, segments, mask)?;
    // No block owns the entries between segments.
    if segments.list().iter().map(|s| s.kv_len).sum::<usize>() < kv.k.dim(0)? {
        fill(&mut dk, 0.0)?;
        fill(&mut dv, 0.0)?;
    }
    let mut scratch = q.device().alloc(lse.shape(), DType::F32)?;
    let delta = cuda::written(&scratch.view())?;
    let args = [cuda::read(d_out)?, cuda::read(out)?, delta, cuda::count(lse.len()), cuda::number(plan.width)?];
    cuda::over_rows(cuda, "attention", "attention_backward_delta_f32", lse.len(), &args)?;
    let tensors = [cuda::read(d_out)?, cuda::read(q)?, cuda::read(kv.k)?, cuda::read(kv.v)?, cuda::read(lse)?, delta];
    let with = |outputs: &[Arg<'static>]| -> Result<Vec<Arg<'static>>> {
        Ok([&tensors[..], &plan.who_sees_whom(scale)?, outputs, &plan.sizes()?].concat())
    };
    plan.over_rows(cuda, "attention_backward_q", &with(&[cuda::written(&dq)?])?)?;
    plan.over_keys(cuda, "attention_backward_kv", &with(&[cuda::written(&dk)?, cuda::written(&dv)?])?)
}
