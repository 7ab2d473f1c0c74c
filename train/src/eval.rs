//! Measuring a model on rows: loss, perplexity, exact match.
//!
//! Rows are packed into batches for the loss; no row sees another, and each is summed by itself, so that no number
//! depends on how they are grouped. Answers are generated one row at a time.

use kinglet_autograd::Tape;
use kinglet_data::{Example, Prompt, TokenBatch, Tokenizer};
use kinglet_models::{Batch, Ctx, Decoder, Request, Sampling, generate};
use kinglet_tensor::cpu::gemm::FEW_ROWS;
use kinglet_tensor::ops::Targets;
use kinglet_tensor::{Error, Result, Tensor};
use std::ops::ControlFlow;

/// The loss over a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// The mean of -log p over all target tokens.
    pub mean: f64,
    /// Target tokens.
    pub tokens: usize,
}

impl Loss {
    /// e to the loss.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        self.mean.exp()
    }
}

/// The loss of `model` over `rows`, of which `batch_size` go through it at once: that changes time and memory, but no
/// bit of the result (on a GPU in 16 bits the last bits only: products of few and of many rows are cut differently). `on_row` is called after each and may end the evaluation.
///
/// # Errors
/// `is_non_finite` when the loss of a row is no number: the error names its line. When there is no row, a row does not
/// fit the model, `batch_size` is 0, or `on_row` broke off.
pub fn evaluate_loss(
    model: &Decoder,
    ctx: &Ctx,
    rows: &[Example],
    batch_size: usize,
    mut on_row: impl FnMut() -> ControlFlow<()>,
) -> Result<Loss> {
    if batch_size == 0 {
        return Err(Error::invalid("the batch size must be at least 1"));
    }
    let (mut sum, mut tokens) = (0.0, 0);
    for rows in rows.chunks(batch_size) {
        for (row, loss) in rows.iter().zip(row_losses(model, ctx, rows)?) {
            if !loss.is_finite() {
                return Err(Error::non_finite(format!("line {}: the loss is {loss}", row.line)));
            }
            sum += loss;
            tokens += row.target_tokens();
            if on_row().is_break() {
                return Err(Error::invalid("the evaluation was broken off"));
            }
        }
    }
    if tokens == 0 {
        return Err(Error::invalid("there is no target token to evaluate on"));
    }
    Ok(Loss { mean: sum / tokens as f64, tokens })
}

/// The sum of -log p over the targets of each row.
fn row_losses(model: &Decoder, ctx: &Ctx, rows: &[Example]) -> Result<Vec<f64>> {
    let packed = packed(rows);
    let place = |e: Error| match rows {
        [row] => e.context(format!("line {}", row.line)),
        _ => e.context(format!("lines {} to {}", rows[0].line, rows[rows.len() - 1].line)),
    };
    let losses = token_losses(model, ctx, &packed).and_then(|losses| losses.to_vec::<f32>()).map_err(place)?;
    let of_row = |span: &[usize]| losses[span[0]..span[1]].iter().map(|&loss| f64::from(loss)).sum();
    Ok(packed.segments.windows(2).take(rows.len()).map(of_row).collect())
}

/// `rows` as they go through the model together.
pub(crate) fn packed(rows: &[Example]) -> TokenBatch {
    // Products of few rows add in another order than larger ones, so a small batch gets a row that nobody looks at.
    let is_small = rows.iter().map(Example::target_tokens).sum::<usize>() <= FEW_ROWS;
    let filler = Example { ids: vec![0; FEW_ROWS + 2], is_target: vec![true; FEW_ROWS + 2], line: 0 };
    TokenBatch::of(rows.iter().chain(is_small.then_some(&filler)))
}

/// -log p of each token that is a target, 0 for any other.
pub(crate) fn token_losses(model: &Decoder, ctx: &Ctx, packed: &TokenBatch) -> Result<Tensor> {
    let tape = Tape::inert();
    let batch = Batch::new(&packed.ids, &packed.segments, model.device())?;
    let targets = Targets::new(&packed.targets, model.device())?;
    let hidden = model.hidden(&tape, &batch, None, ctx)?;
    Ok(model.losses(&hidden, &targets, 1.0, ctx)?.1)
}

/// How answers are generated for [`exact_match`].
#[derive(Clone, Copy)]
pub struct Answering<'a> {
    /// Turns tokens into text.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that end an answer.
    pub stop: &'a [i32],
    /// The most tokens of an answer.
    pub max_new_tokens: usize,
}

/// The share of `prompts`, 0 to 1, whose greedy continuation is the row's answer, white space at both ends apart.
/// `on_row` gets whether each one was, and may end the evaluation.
///
/// # Errors
/// When there is no prompt, one does not fit the model, or `on_row` broke off.
pub fn exact_match(
    model: &Decoder,
    ctx: &Ctx,
    prompts: &[Prompt],
    how: &Answering<'_>,
    mut on_row: impl FnMut(bool) -> ControlFlow<()>,
) -> Result<f64> {
    if prompts.is_empty() {
        return Err(Error::invalid("there is no row to answer"));
    }
    let mut right = 0;
    for prompt in prompts {
        let answer = answer(model, ctx, prompt, how).map_err(|e| e.context(format!("line {}", prompt.line)))?;
        let same = answer.trim() == prompt.reference.trim();
        right += usize::from(same);
        if on_row(same).is_break() {
            return Err(Error::invalid("the evaluation was broken off"));
        }
    }
    Ok(right as f64 / prompts.len() as f64)
}

/// The greedy answer to one prompt.
fn answer(model: &Decoder, ctx: &Ctx, prompt: &Prompt, how: &Answering<'_>) -> Result<String> {
    let request = Request {
        prompt: &prompt.ids,
        max_new_tokens: how.max_new_tokens,
        stop: how.stop,
        sampling: Sampling::default(),
    };
    let generation = generate(model, &request, ctx, |_| ControlFlow::Continue(()))?;
    let ids: Vec<u32> = generation.tokens.iter().map(|&id| id as u32).collect();
    how.tokenizer.decode(&ids, true)
}
