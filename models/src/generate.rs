//! Generating text: one pass over the prompt, then a token at a time over the KV cache.

use crate::cache::KvCache;
use crate::ctx::Ctx;
use crate::decoder::Decoder;
use crate::sample::Sampling;
use crate::sequence::Batch;
use kinglet_autograd::Tape;
use kinglet_tensor::{Error, Result};
use std::ops::ControlFlow;

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Token ids to continue.
    pub prompt: &'a [i32],
    /// The most tokens to make.
    pub max_new_tokens: usize,
    /// Tokens that end the text; they are not part of it.
    pub stop: &'a [i32],
    /// How each token is chosen.
    pub sampling: Sampling,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The new tokens, without the stop token.
    pub tokens: Vec<i32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token came.
    Stop,
    /// `max_new_tokens` were made, or the model's positions are used up.
    Length,
    /// The caller's callback ended it.
    Cancelled,
}

/// Prompt tokens in one pass: bounds the memory of long prompts.
const PREFILL: usize = 512;

/// Continues `request.prompt`, calling `on_token` with each new token.
///
/// # Errors
/// When the prompt is empty, holds an id that the model lacks, or memory runs out.
pub fn generate(
    model: &Decoder,
    request: &Request<'_>,
    ctx: &Ctx,
    mut on_token: impl FnMut(i32) -> ControlFlow<()>,
) -> Result<Generation> {
    request.sampling.validate()?;
    if request.prompt.is_empty() {
        return Err(Error::invalid("generate: the prompt has no tokens"));
    }
    // A text ends where the model's positions do, unless the prompt is past them already.
    let limit = model.config().max_positions;
    let limit = if request.prompt.len() < limit { limit } else { usize::MAX };
    let capacity = request.prompt.len().saturating_add(request.max_new_tokens).min(limit);
    let cache = model.cache(capacity, ctx.dtype);
    let mut cache = cache.map_err(|e| e.context(format!("a KV cache for {capacity} tokens")))?;
    let mut tokens = Vec::new();
    let mut pending = request.prompt.to_vec();
    while tokens.len() < request.max_new_tokens && cache.len() + pending.len() <= capacity {
        // A token enters the device's threads once.
        let step = || next_token(model, request, &pending, &mut cache, tokens.len(), ctx);
        let id = model.device().enter(step)?;
        if request.stop.contains(&id) {
            return Ok(Generation { tokens, finish: Finish::Stop });
        }
        tokens.push(id);
        if on_token(id).is_break() {
            return Ok(Generation { tokens, finish: Finish::Cancelled });
        }
        pending = vec![id];
    }
    Ok(Generation { tokens, finish: Finish::Length })
}

/// The token behind `pending`, which the cache takes in.
fn next_token(
    model: &Decoder,
    request: &Request<'_>,
    pending: &[i32],
    cache: &mut KvCache,
    step: usize,
    ctx: &Ctx,
) -> Result<i32> {
    let tape = Tape::inert();
    let mut last = None;
    for part in pending.chunks(PREFILL) {
        let batch = Batch::next(part, cache.len(), model.device())?.within(request.prompt.len());
        let hidden = model.hidden(&tape, &batch, Some(cache), ctx)?;
        last = Some(hidden.value().narrow(0, part.len() - 1, 1)?);
    }
    let logits = model.logits(&tape.constant(last.expect("a prompt, and then a token, are pending")), ctx)?;
    Ok(request.sampling.choose_on_device(logits.value(), step)? as i32)
}
