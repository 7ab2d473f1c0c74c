//! The decoder of Llama, Mistral, Qwen2, Qwen3 and SmolLM3: one structure, told apart by its configuration.

use crate::cache::KvCache;
use crate::config::Config;
use crate::ctx::Ctx;
use crate::layers::{Block, Linear, Norm};
use crate::sequence::{Batch, Sequence};
use kinglet_autograd::{Tape, Var, ops};
use kinglet_quant::{Weight, embed, linear, linear_trained};
use kinglet_tensor::{DType, Device, Error, Result, Tensor, ops as tensor_ops};
use std::sync::Arc;

/// A causal language model. Immutable, shared by `Arc`.
pub struct Decoder {
    pub(crate) config: Config,
    /// [vocab, hidden]
    pub(crate) embedding: Arc<Weight>,
    pub(crate) blocks: Vec<Arc<Block>>,
    pub(crate) norm: Norm,
    /// The output projection [vocab, hidden]; `None` where it is the embedding.
    pub(crate) head: Option<Linear>,
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

    /// The output projection, where it is not the embedding.
    #[must_use]
    pub fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
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
                let positions = &batch.positions[s.q_start..s.q_start + s.q_len];
                let f = rope.frequencies(d, s.kv_len.max(batch.reach));
                tensor_ops::rope_table(positions, &f.inv_freq, f.attention_factor, &self.device)
            });
            let (cos, sin): (Vec<_>, Vec<_>) = tables.collect::<Result<Vec<_>>>()?.into_iter().unzip();
            (rows(&cos)?, rows(&sin)?)
        } else {
            tensor_ops::rope_table(&batch.positions, &whole.inv_freq, whole.attention_factor, &self.device)?
        };
        Ok(Sequence { cos, sin, segments: batch.segments.clone() })
    }

    /// Logits [t, vocab] in f32 for rows of [`Decoder::hidden`].
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn logits<'t>(&self, hidden: &Var<'t>, ctx: &Ctx) -> Result<Var<'t>> {
        let logits = match (&self.head, ctx.trained(hidden.tape(), HEAD)?) {
            (Some(head), _) => head.forward(hidden, ctx)?,
            (None, Some(weight)) => linear_trained(hidden, &weight, None)?,
            (None, None) => linear(hidden, &self.embedding, None)?,
        };
        logits.to_dtype(DType::F32)
    }

    /// The sum over all targets of -log p(target), over `divisor`: f32, one element. `targets[i]` is the id to be
    /// predicted at token `i`, or -1 where there is none.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn loss<'t>(
        &self,
        tape: &'t Tape,
        batch: &Batch,
        targets: &Tensor,
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
    pub fn losses<'t>(&self, hidden: &Var<'t>, targets: &Tensor, divisor: f32, ctx: &Ctx) -> Result<(Var<'t>, Tensor)> {
        let tape = hidden.tape();
        let (name, weight) = match &self.head {
            Some(head) if !ctx.loras(tape, &head.site)?.is_empty() => {
                return Err(Error::unsupported("an adapter on the output projection (lm_head)"));
            }
            Some(head) => (head.weight_name.as_str(), &head.weight),
            None => (HEAD, &self.embedding),
        };
        match ctx.trained(tape, name)? {
            Some(weight) => ops::linear_cross_entropy(hidden, &weight, targets, divisor),
            None => ops::linear_cross_entropy_frozen(hidden, &**weight, targets, divisor),
        }
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
