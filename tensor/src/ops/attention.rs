//! Attention: softmax(q kᵀ · scale) v within segments, heads grouped. One op for training, packed rows, prefill,
//! decoding and encoders, which differ in their segments and mask only.

use crate::cpu::Cpu;
use crate::cpu::attention::{self, Attention, Gradients, Mask, Segment};
use crate::{DType, Error, Result, Tensor, TensorMut, kernel, same_device};
use std::sync::Arc;

/// Keys and values [entries, key heads, d]. Contiguous now; pages with a block table are to come here.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// The keys.
    pub k: &'a Tensor,
    /// The values, of the keys' shape.
    pub v: &'a Tensor,
}

/// Which query rows see which key rows: a list of segments, checked when made and cheap to clone.
#[derive(Clone, Debug)]
pub struct Segments {
    list: Arc<[Segment]>,
    queries: usize,
    keys: usize,
}

impl Segments {
    /// The queries of the segments follow each other without gaps from row 0; keys may lie anywhere. Under a causal
    /// or window mask the last query of a segment stands at its last key.
    ///
    /// # Errors
    /// When a segment is empty, queries have gaps or overlap, or a number is too large.
    pub fn new(list: Vec<Segment>) -> Result<Self> {
        let (mut queries, mut keys) = (0usize, 0usize);
        for (i, s) in list.iter().enumerate() {
            let ends = s.q_start.checked_add(s.q_len).zip(s.kv_start.checked_add(s.kv_len));
            let Some((q_end, kv_end)) = ends.filter(|_| s.q_start == queries && s.q_len > 0 && s.kv_len > 0) else {
                return Err(Error::invalid(format!("attention: segment {i} is {s:?}, its queries start at {queries}")));
            };
            (queries, keys) = (q_end, keys.max(kv_end));
        }
        Ok(Segments { list: list.into(), queries, keys })
    }

    /// Rows packed one after another, each seeing itself alone: row i is tokens `offsets[i]..offsets[i + 1]`.
    ///
    /// # Errors
    /// When the offsets do not start at 0 and rise.
    pub fn packed(offsets: &[usize]) -> Result<Self> {
        if offsets.first() != Some(&0) || offsets.windows(2).any(|w| w[0] >= w[1]) {
            return Err(Error::invalid(format!("attention: packed rows at offsets {offsets:?}")));
        }
        let row = |w: &[usize]| Segment { q_start: w[0], q_len: w[1] - w[0], kv_start: w[0], kv_len: w[1] - w[0] };
        Self::new(offsets.windows(2).map(row).collect())
    }

    /// One sequence of `queries` tokens at the end of `keys` (all of which they may see).
    ///
    /// # Errors
    /// When there are none of either.
    pub fn one(queries: usize, keys: usize) -> Result<Self> {
        Self::new(vec![Segment { q_start: 0, q_len: queries, kv_start: 0, kv_len: keys }])
    }

    /// The segments in the order of their queries.
    #[must_use]
    pub fn list(&self) -> &[Segment] {
        &self.list
    }

    /// How many query rows there are.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.queries
    }
}

/// Arguments of [`ATTENTION`]: out = softmax(q kᵀ · scale) v within segments.
pub struct AttentionArgs<'a> {
    /// [tokens, heads, d], f32, contiguous.
    pub q: &'a Tensor,
    /// Keys and values [entries, key heads, d], f32, contiguous.
    pub kv: KvView<'a>,
    /// Which queries see which keys, in the order of the queries.
    pub segments: &'a [Segment],
    /// Which keys of its segment a query sees.
    pub mask: Mask,
    /// Factor of the scores.
    pub scale: f32,
    /// [tokens, heads, d], f32.
    pub out: TensorMut<'a>,
    /// The logarithm of each softmax's sum: [tokens, heads], f32.
    pub lse: TensorMut<'a>,
}
kernel!(pub ATTENTION = "attention", AttentionArgs, forward_cpu);

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
    pub segments: &'a [Segment],
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
kernel!(pub ATTENTION_BACKWARD = "attention_backward", AttentionBackwardArgs, backward_cpu);

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
    let segments = segments.list();
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
        segments: segments.list(),
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
    if segments.queries != tokens || segments.keys > entries {
        let needs = format!("segments of {} queries and {} keys", segments.queries, segments.keys);
        return Err(Error::shape("attention", format!("{needs}, with q {:?} and k {:?}", q.shape(), kv.k.shape())));
    }
    if !q.dtype().is_float() || kv.k.dtype() != q.dtype() || kv.v.dtype() != q.dtype() {
        let dtypes = format!("q {}, k {}, v {}", q.dtype(), kv.k.dtype(), kv.v.dtype());
        return Err(Error::dtype("attention", dtypes));
    }
    let blind = |s: &&Segment| mask != Mask::Full && s.q_len > s.kv_len;
    if let Some(s) = segments.list.iter().find(blind) {
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
    attention::forward(cpu, &of, args.segments, q, k, v, args.out.as_mut_slice()?, args.lse.as_mut_slice()?)
}

fn backward_cpu(cpu: &Cpu, mut args: AttentionBackwardArgs<'_>) -> Result<()> {
    let of = attention_of(args.q, args.kv, args.mask, args.scale)?;
    let (q, k, v) = (args.q.as_slice()?, args.kv.k.as_slice()?, args.kv.v.as_slice()?);
    let (out, lse, d_out) = (args.out.as_slice()?, args.lse.as_slice()?, args.d_out.as_slice()?);
    let (dq, dk, dv) = (args.dq.as_mut_slice()?, args.dk.as_mut_slice()?, args.dv.as_mut_slice()?);
    attention::backward(cpu, &of, args.segments, q, k, v, out, lse, d_out, Gradients { q: dq, k: dk, v: dv })
}
