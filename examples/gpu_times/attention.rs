//! Attention: rows of one length, packed rows, windows, and one query over a cache of keys.

use crate::job::{Job, bf16, exactly};
use kinglet::tensor::ops::{self, KvView, Mask, Segments};
use kinglet::{Device, Result, Tensor};

/// Sizes: rows, length, heads, key heads, head size.
pub(crate) fn forward(sizes: &[usize], device: &Device) -> Result<Job> {
    let (offsets, heads) = rows(sizes)?;
    Attention::new(offsets, heads, Mask::Causal, device)?.forward()
}

/// As [`forward`].
pub(crate) fn backward(sizes: &[usize], device: &Device) -> Result<Job> {
    let (offsets, heads) = rows(sizes)?;
    Attention::new(offsets, heads, Mask::Causal, device)?.backward()
}

/// Sizes: segments, tokens, heads, key heads, head size; segment i ends at token ⌊tokens (i + 1)² / segments²⌋.
pub(crate) fn packed_forward(sizes: &[usize], device: &Device) -> Result<Job> {
    let (offsets, heads) = packed(sizes)?;
    Attention::new(offsets, heads, Mask::Causal, device)?.forward()
}

/// As [`packed_forward`].
pub(crate) fn packed_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    let (offsets, heads) = packed(sizes)?;
    Attention::new(offsets, heads, Mask::Causal, device)?.backward()
}

/// Sizes: window, rows, length, heads, key heads, head size.
pub(crate) fn window_forward(sizes: &[usize], device: &Device) -> Result<Job> {
    let [window, row_sizes @ ..] = exactly::<6>(sizes)?;
    let (offsets, heads) = rows(&row_sizes)?;
    Attention::new(offsets, heads, Mask::Window(window), device)?.forward()
}

/// As [`window_forward`].
pub(crate) fn window_backward(sizes: &[usize], device: &Device) -> Result<Job> {
    let [window, row_sizes @ ..] = exactly::<6>(sizes)?;
    let (offsets, heads) = rows(&row_sizes)?;
    Attention::new(offsets, heads, Mask::Window(window), device)?.backward()
}

/// One query, as when a token is written. Sizes: keys, heads, key heads, head size.
pub(crate) fn decode(sizes: &[usize], device: &Device) -> Result<Job> {
    let [keys, heads, kv_heads, head_dim] = exactly(sizes)?;
    let q = bf16([1, heads, head_dim], device)?;
    let [k, v] = [bf16([keys, kv_heads, head_dim], device)?, bf16([keys, kv_heads, head_dim], device)?];
    let segments = Segments::one(1, keys)?;
    segments.to_device(device)?;
    let bytes = 4 * keys * kv_heads * head_dim + 4 * heads * head_dim;
    Job::new(bytes, 4 * keys * heads * head_dim, move || {
        ops::attention(&q, KvView { k: &k, v: &v }, &segments, Mask::Causal, scale(head_dim))
    })
}

/// Heads, key heads, head size.
type Heads = [usize; 3];

fn rows(sizes: &[usize]) -> Result<(Vec<usize>, Heads)> {
    let [rows, length, heads @ ..] = exactly::<5>(sizes)?;
    Ok(((0..=rows).map(|row| row * length).collect(), heads))
}

fn packed(sizes: &[usize]) -> Result<(Vec<usize>, Heads)> {
    let [segments, tokens, heads @ ..] = exactly::<5>(sizes)?;
    Ok(((0..=segments).map(|i| tokens * i * i / (segments * segments)).collect(), heads))
}

fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

struct Attention {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    mask: Mask,
    scale: f32,
    /// Bytes of q, k, v and the output.
    bytes: usize,
    /// Of one of the products: two forward, five backward.
    flops: usize,
}

impl Attention {
    fn new(offsets: Vec<usize>, [heads, kv_heads, head_dim]: Heads, mask: Mask, device: &Device) -> Result<Self> {
        let tokens = offsets.last().copied().unwrap_or(0);
        let segments = Segments::packed(&offsets)?;
        segments.to_device(device)?;
        let seen = |position: usize| match mask {
            Mask::Window(window) => window.min(position + 1),
            _ => position + 1,
        };
        let pairs: usize = offsets.windows(2).map(|ends| (0..ends[1] - ends[0]).map(seen).sum::<usize>()).sum();
        Ok(Attention {
            q: bf16([tokens, heads, head_dim], device)?,
            k: bf16([tokens, kv_heads, head_dim], device)?,
            v: bf16([tokens, kv_heads, head_dim], device)?,
            segments,
            mask,
            scale: scale(head_dim),
            bytes: 2 * tokens * head_dim * (2 * heads + 2 * kv_heads),
            flops: 2 * pairs * heads * head_dim,
        })
    }

    fn run(&self) -> Result<(Tensor, Tensor)> {
        ops::attention(&self.q, KvView { k: &self.k, v: &self.v }, &self.segments, self.mask, self.scale)
    }

    fn forward(self) -> Result<Job> {
        Job::new(self.bytes, 2 * self.flops, move || self.run())
    }

    /// The output serves as its own gradient.
    fn backward(self) -> Result<Job> {
        let (out, lse) = self.run()?;
        Job::new(2 * self.bytes, 5 * self.flops, move || {
            let kv = KvView { k: &self.k, v: &self.v };
            ops::attention_backward(&out, &self.q, kv, &out, &lse, &self.segments, self.mask, self.scale)
        })
    }
}
