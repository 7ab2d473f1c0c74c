//! The layers of a decoder: linear, norm, attention, MLP, block.

use crate::cache::LayerCache;
use crate::ctx::{Ctx, Site};
use crate::sequence::Sequence;
use kinglet_autograd::{Tape, Var, ops};
use kinglet_quant::{Weight, linear_lora, linear_trained};
use kinglet_tensor::ops::Mask;
use kinglet_tensor::{DType, Device, Error, Result, Tensor};
use std::sync::Arc;

/// y = x Wᵀ + bias, with whatever adapters the context has for it.
pub struct Linear {
    /// Its name in files and its place in the model.
    pub site: Site,
    /// Shape: out by in.
    pub weight: Arc<Weight>,
    /// Shape: out.
    pub bias: Option<Tensor>,
    pub(crate) weight_name: String,
    pub(crate) bias_name: String,
}

impl Linear {
    pub(crate) fn new(site: Site, weight: Arc<Weight>, bias: Option<Tensor>) -> Self {
        let (weight_name, bias_name) = (format!("{}.weight", site.name), format!("{}.bias", site.name));
        Linear { site, weight, bias, weight_name, bias_name }
    }

    /// See [`crate::Decoder::forget`].
    pub(crate) fn forget(&mut self, replaced: impl Fn(&str) -> bool) -> Result<()> {
        if replaced(&self.weight_name) {
            self.weight = outline(&self.weight)?;
        }
        match &mut self.bias {
            Some(bias) if replaced(&self.bias_name) => *bias = shape_of(bias)?,
            _ => {}
        }
        Ok(())
    }

    /// x [t, in] -> [t, out]
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    pub fn forward<'t>(&self, x: &Var<'t>, ctx: &Ctx) -> Result<Var<'t>> {
        let tape = x.tape();
        let bias = match &self.bias {
            Some(bias) => Some(trained_or(tape, ctx, &self.bias_name, bias, ctx.dtype)?),
            None => None,
        };
        if let Some(weight) = ctx.trained(tape, &self.weight_name)? {
            return linear_trained(x, &weight, bias.as_ref());
        }
        linear_lora(x, &self.weight, bias.as_ref(), &ctx.loras(tape, &self.site)?)
    }
}

/// A tensor of this shape and dtype without values.
fn shape_of(tensor: &Tensor) -> Result<Tensor> {
    Tensor::zeros(tensor.shape(), tensor.dtype(), &Device::meta())
}

/// A weight of this shape without values.
pub(crate) fn outline(weight: &Weight) -> Result<Arc<Weight>> {
    let values = match weight {
        Weight::Dense(w) => shape_of(w)?,
        w => Tensor::zeros(&<[usize; 2]>::from(w.dims()?), DType::F32, &Device::meta())?,
    };
    Ok(Arc::new(Weight::Dense(values)))
}

/// The parameter that replaces the tensor called `name`, or the tensor itself, as a value of `dtype`.
fn trained_or<'t>(tape: &'t Tape, ctx: &Ctx, name: &str, tensor: &Tensor, dtype: DType) -> Result<Var<'t>> {
    match ctx.trained(tape, name)? {
        Some(var) => var.to_dtype(dtype),
        None => Ok(tape.constant(tensor.to_dtype(dtype)?)),
    }
}

/// Root-mean-square norm with a weight.
pub(crate) struct Norm {
    pub(crate) weight_name: String,
    pub(crate) weight: Tensor,
    pub(crate) eps: f32,
}

impl Norm {
    /// See [`crate::Decoder::forget`].
    pub(crate) fn forget(&mut self, replaced: impl Fn(&str) -> bool) -> Result<()> {
        if replaced(&self.weight_name) {
            self.weight = shape_of(&self.weight)?;
        }
        Ok(())
    }

    /// x [.., d] -> [.., d]
    ///
    /// # Errors
    /// When the last dimension is not the weight's.
    pub(crate) fn forward<'t>(&self, x: &Var<'t>, ctx: &Ctx) -> Result<Var<'t>> {
        ops::rms_norm(x, &self.weight(x.tape(), ctx)?, self.eps)
    }

    /// x + residual, which ends here, and the norm of that.
    ///
    /// # Errors
    /// When shapes differ, or the last dimension is not the weight's.
    pub(crate) fn forward_sum<'t>(&self, x: &Var<'t>, residual: Var<'t>, ctx: &Ctx) -> Result<(Var<'t>, Var<'t>)> {
        ops::add_rms_norm(x, &residual, &self.weight(x.tape(), ctx)?, self.eps)
    }

    fn weight<'t>(&self, tape: &'t Tape, ctx: &Ctx) -> Result<Var<'t>> {
        Ok(match ctx.trained(tape, &self.weight_name)? {
            Some(weight) => weight,
            None => tape.constant(self.weight.clone()),
        })
    }
}

/// Grouped-query self-attention with rotary positions.
pub(crate) struct Attention {
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    pub(crate) q_norm: Option<Norm>,
    pub(crate) k_norm: Option<Norm>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) mask: Mask,
    /// Off in the layers of SmolLM3 that have no positions.
    pub(crate) rope: bool,
}

impl Attention {
    /// x [t, hidden] -> [t, hidden]. With a cache, new keys and values are appended and earlier ones are seen too.
    fn forward<'t>(&self, x: &Var<'t>, seq: &Sequence, cache: Option<LayerCache<'_>>, ctx: &Ctx) -> Result<Var<'t>> {
        let t = x.shape()[0];
        let heads = |y: Var<'t>, n: usize| y.reshape(&[t, n, self.head_dim]);
        let mut q = heads(self.q.forward(x, ctx)?, self.heads)?; // [t, heads, d]
        let mut k = heads(self.k.forward(x, ctx)?, self.kv_heads)?; // [t, kv_heads, d]
        let v = heads(self.v.forward(x, ctx)?, self.kv_heads)?;
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            q = q_norm.forward(&q, ctx)?;
            k = k_norm.forward(&k, ctx)?;
        }
        if self.rope {
            q = ops::rope(&q, &seq.cos, &seq.sin)?;
            k = ops::rope(&k, &seq.cos, &seq.sin)?;
        }
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let y = match cache {
            None => ops::attention(&q, &k, &v, &seq.segments, self.mask, scale)?,
            Some(mut cache) => {
                if q.is_tracked() || k.is_tracked() || v.is_tracked() {
                    return Err(Error::unsupported("attention: a KV cache cannot be used while recording gradients"));
                }
                let (k, v) = cache.append(k.value(), v.value())?;
                let (k, v) = (x.tape().constant(k), x.tape().constant(v));
                ops::attention(&q, &k, &v, &seq.segments, self.mask, scale)?
            }
        };
        self.o.forward(&y.reshape(&[t, self.heads * self.head_dim])?, ctx)
    }
}

/// down(silu(gate(x)) · up(x))
pub(crate) struct Mlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl Mlp {
    fn forward<'t>(&self, x: &Var<'t>, ctx: &Ctx) -> Result<Var<'t>> {
        let gate = self.gate.forward(x, ctx)?; // [t, intermediate]
        let up = self.up.forward(x, ctx)?; // [t, intermediate]
        self.down.forward(&ops::swiglu(&gate, &up)?, ctx)
    }
}

/// One decoder layer: x + attention(norm(x)), then x + mlp(norm(x)).
pub(crate) struct Block {
    pub(crate) name: Arc<str>,
    pub(crate) input_norm: Norm,
    pub(crate) attention: Attention,
    pub(crate) post_norm: Norm,
    pub(crate) mlp: Mlp,
}

impl Block {
    /// x [t, hidden] -> [t, hidden]
    pub(crate) fn forward<'t>(
        &self,
        x: &Var<'t>,
        seq: &Sequence,
        cache: Option<LayerCache<'_>>,
        ctx: &Ctx,
    ) -> Result<Var<'t>> {
        x.tape().scoped(&self.name, || {
            let attended = self.attention.forward(&self.input_norm.forward(x, ctx)?, seq, cache, ctx)?;
            let (x, normed) = self.post_norm.forward_sum(x, attended, ctx)?;
            x.add(&self.mlp.forward(&normed, ctx)?)
        })
    }

    /// The seven linear layers, in the order of Hugging Face's modules.
    pub(crate) fn linears(&self) -> [&Linear; 7] {
        let (a, m) = (&self.attention, &self.mlp);
        [&a.q, &a.k, &a.v, &a.o, &m.gate, &m.up, &m.down]
    }

    /// Norms, in the same order.
    pub(crate) fn norms(&self) -> impl Iterator<Item = &Norm> {
        let heads = self.attention.q_norm.iter().chain(&self.attention.k_norm);
        heads.chain([&self.input_norm, &self.post_norm])
    }

    pub(crate) fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let (a, m) = (&mut self.attention, &mut self.mlp);
        [&mut a.q, &mut a.k, &mut a.v, &mut a.o, &mut m.gate, &mut m.up, &mut m.down]
    }

    pub(crate) fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        let heads = self.attention.q_norm.iter_mut().chain(&mut self.attention.k_norm);
        heads.chain([&mut self.input_norm, &mut self.post_norm])
    }
}
