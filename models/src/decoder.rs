//! The decoder of Llama, Mistral, Qwen2, Qwen3 and SmolLM3: one structure, told apart by its configuration.

use crate::cache::KvCache;
use crate::config::Config;
use crate::ctx::{AdapterMap, Ctx};
use crate::layers::{Block, Linear, Norm, outline};
use crate::sequence::{Batch, Sequence};
use kinglet_autograd::ops::{Term, TermWeight};
use kinglet_autograd::{Tape, Var, ops};
use kinglet_quant::{Weight, embed};
use kinglet_tensor::ops::Targets;
use kinglet_tensor::{DType, Device, Error, Result, Tensor, ops as tensor_ops};
use std::sync::Arc;

/// A causal language model. Immutable, shared by `Arc`.
pub struct Decoder {
    pub(crate) config: Config,
    /// [vocab, hidden]
    pub(crate) embedding: Arc<Weight>,
    pub(crate) blocks: Vec<Arc<Block>>,
    pub(crate) norm: Norm,
    /// The output projection [vocab, hidden], whose weight may be the embedding.
    pub(crate) head: Linear,
    pub(crate) device: Device,
}

/// The embedding's name in files.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// The output projection's name in files. Where it is the embedding, a parameter of this name replaces it in its role as
/// projection only: one that trains both names them both.
pub const HEAD: &str = "lm_head.weight";

impl Decoder {
    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the model lives.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Every linear layer but the output projection, in the model's order: where adapters go.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(|b| b.linears())
    }

    /// The output projection. Where [`Decoder::is_tied`], its weight is the embedding.
    #[must_use]
    pub fn head(&self) -> &Linear {
        &self.head
    }

    /// Whether the output projection's weight is the embedding.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        Arc::ptr_eq(&self.head.weight, &self.embedding)
    }

    /// The embedding [vocab, hidden].
    #[must_use]
    pub fn embedding(&self) -> &Arc<Weight> {
        &self.embedding
    }

    /// Every norm weight with its name in files, in the model's order.
    pub fn norms(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let blocks = self.blocks.iter().flat_map(|b| b.norms());
        blocks.chain([&self.norm]).map(|n| (n.weight_name.as_str(), &n.weight))
    }

    /// The same without the values of tensors that a parameter of `map` replaces: their memory is given back, their shapes stay. It runs
    /// only under contexts that have `map`; under any other those tensors are on no device.
    ///
    /// # Errors
    /// When somebody else holds a part of the model.
    pub fn forget(mut self, map: &AdapterMap) -> Result<Self> {
        let replaced = |name: &str| map.tensors.contains_key(name);
        for block in &mut self.blocks {
            let block = Arc::get_mut(block).ok_or_else(|| Error::aliased("a tape holds a block of the model"))?;
            block.linears_mut().into_iter().try_for_each(|linear| linear.forget(replaced))?;
            block.norms_mut().try_for_each(|norm| norm.forget(replaced))?;
        }
        self.norm.forget(replaced)?;
        if !self.is_tied() {
            if replaced(EMBEDDING) {
                self.embedding = outline(&self.embedding)?;
            }
            self.head.forget(replaced)?;
        } else if replaced(EMBEDDING) && replaced(HEAD) {
            self.embedding = outline(&self.embedding)?;
            self.head.weight = self.embedding.clone();
        }
        Ok(self)
    }

    /// An empty KV cache for one sequence of up to `capacity` tokens.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn cache(&self, capacity: usize, dtype: DType) -> Result<KvCache> {
        let c = &self.config;
        KvCache::new(c.layers.len(), capacity, c.kv_heads, c.head_dim, dtype, &self.device)
    }

    /// The final hidden states [t, hidden], normed: what the output projection reads.
    ///
    /// # Errors
    /// When the batch does not fit the model or the cache, or a checkpointed pass has a cache.
    pub fn hidden<'t>(
        &self,
        tape: &'t Tape,
        batch: &Batch,
        mut cache: Option<&mut KvCache>,
        ctx: &Ctx,
    ) -> Result<Var<'t>> {
        if let Some(cache) = &cache {
            cache.check_room(batch.len())?;
            if ctx.checkpoint {
                return Err(Error::invalid("a KV cache cannot be used together with gradient checkpointing"));
            }
        }
        let seq = self.sequence(batch)?;
        let mut x = self.embed(tape, batch, ctx)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = match &mut cache {
                None if ctx.checkpoint => checkpointed(block, &x, &seq, ctx)?,
                None => block.forward(&x, &seq, None, ctx)?,
                Some(cache) => block.forward(&x, &seq, Some(cache.layer(i)), ctx)?,
            };
        }
        if let Some(cache) = cache {
            cache.advance(batch.len());
        }
        self.norm.forward(&x, ctx)
    }

    fn embed<'t>(&self, tape: &'t Tape, batch: &Batch, ctx: &Ctx) -> Result<Var<'t>> {
        match ctx.trained(tape, EMBEDDING)? {
            Some(weight) => ops::embedding(&weight, &batch.ids, ctx.dtype),
            None => Ok(tape.constant(embed(&self.embedding, &batch.ids, ctx.dtype)?)),
        }
    }

    fn sequence(&self, batch: &Batch) -> Result<Sequence> {
        let (rope, d) = (&self.config.rope, self.config.head_dim);
        let whole = rope.frequencies(d, batch.len());
        let (cos, sin) = if rope.depends_on_length() {
            // Each sequence has frequencies of its own, so that none depends on its neighbours in the batch.
            let tables = batch.segments.list().iter().map(|s| {
                let positions = batch.positions.narrow(0, s.q_start, s.q_len)?;
                let f = rope.frequencies(d, s.kv_len.max(batch.reach));
                tensor_ops::rope_table(&positions, &f.inv_freq, f.attention_factor)
            });
            let (cos, sin): (Vec<_>, Vec<_>) = tables.collect::<Result<Vec<_>>>()?.into_iter().unzip();
            (rows(&cos)?, rows(&sin)?)
        } else {
            tensor_ops::rope_table(&batch.positions, &whole.inv_freq, whole.attention_factor)?
        };
        Ok(Sequence { cos, sin, segments: batch.segments.clone() })
    }

    /// Logits [t, vocab] in f32 for rows of [`Decoder::hidden`].
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits<'t>(&self, hidden: &Var<'t>, ctx: &Ctx) -> Result<Var<'t>> {
        self.head.forward(hidden, ctx)?.to_dtype(DType::F32)
    }

    /// The sum over all targets of -log p(target), over `divisor`: f32, one element. A target is the id to be
    /// predicted at a token.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn loss<'t>(
        &self,
        tape: &'t Tape,
        batch: &Batch,
        targets: &Targets,
        divisor: f32,
        ctx: &Ctx,
    ) -> Result<Var<'t>> {
        let hidden = self.hidden(tape, batch, None, ctx)?;
        Ok(self.losses(&hidden, targets, divisor, ctx)?.0)
    }

    /// As [`Decoder::loss`], from rows of [`Decoder::hidden`]; and -log p(target) of each row, 0 where there is no
    /// target.
    ///
    /// # Errors
    /// When shapes do not fit or a target is not in the vocabulary.
    pub fn losses<'t>(
        &self,
        hidden: &Var<'t>,
        targets: &Targets,
        divisor: f32,
        ctx: &Ctx,
    ) -> Result<(Var<'t>, Tensor)> {
        let tape = hidden.tape();
        if let Some(weight) = ctx.trained(tape, HEAD)? {
            let term = Term { x: hidden, weight: TermWeight::Var(&weight) };
            return ops::linear_cross_entropy(&[term], targets, divisor);
        }
        // With adapters, logits = h Wᵀ + Σ (scale · dropout(h) Aᵀ) Bᵀ: one more term each, as narrow as its rank.
        let loras = ctx.loras(tape, &self.head.site)?;
        let narrow = loras.iter().map(|lora| lora.narrow(hidden)).collect::<Result<Vec<_>>>()?;
        let adapters = loras.iter().zip(&narrow).map(|(lora, x)| Term { x, weight: TermWeight::Var(&lora.b) });
        let base = Term { x: hidden, weight: TermWeight::Frozen(&*self.head.weight) };
        ops::linear_cross_entropy(&[base].into_iter().chain(adapters).collect::<Vec<_>>(), targets, divisor)
    }
}

/// Tables of several sequences, one after another.
fn rows(tables: &[Tensor]) -> Result<Tensor> {
    tensor_ops::cat(&tables.iter().collect::<Vec<_>>(), 0)
}

/// A block that keeps only its input and runs again in the backward pass.
fn checkpointed<'t>(block: &Arc<Block>, x: &Var<'t>, seq: &Sequence, ctx: &Ctx) -> Result<Var<'t>> {
    let (block, seq, ctx) = (block.clone(), seq.clone(), ctx.clone());
    let outputs = x.tape().checkpoint(&[x], move |_, xs| Ok(vec![block.forward(&xs[0], &seq, None, &ctx)?]))?;
    outputs.into_iter().next().ok_or_else(|| Error::invalid("checkpoint: no output"))
}
