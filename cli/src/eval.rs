//! `kinglet eval`.

use crate::args::{EvalArgs, Metric};
use crate::console::{next, out, quoted, warn};
use crate::progress::rows_bar;
use crate::session::Session;
use kinglet_data::{Dataset, Encoder};
use kinglet_tensor::{Error, Result};
use kinglet_train::{Answering, evaluate_loss, exact_match};
use serde_json::{Map, Value};
use std::ops::ControlFlow;

/// # Errors
/// When the input is at fault.
pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    let measured = measured(args)?;
    if args.json {
        out(Value::Object(measured))?;
    } else {
        for (name, value) in &measured {
            out(format!("{name}: {value}"))?;
        }
    }
    next(format!("generate {} --prompt 'Hello'", args.model.shown()));
    Ok(())
}

/// Loads model and rows and measures what `args` ask for.
///
/// # Errors
/// When the input is at fault.
pub(crate) fn measured(args: &EvalArgs) -> Result<Map<String, Value>> {
    if args.batch_size == 0 {
        return Err(Error::invalid("--batch-size must be at least 1"));
    }
    let dataset = Dataset::from_file(&args.data)?;
    let session = Session::open(&args.model)?;
    let encoder = session.base.encoder(args.max_length)?;
    measure(args, &session, &encoder, &dataset)
}

/// What was asked for, by its names in JSON.
fn measure(args: &EvalArgs, session: &Session, encoder: &Encoder<'_>, dataset: &Dataset) -> Result<Map<String, Value>> {
    let asked = |metric| args.metrics.contains(&metric);
    let encoded = encoder.encode(dataset)?;
    if let Some(text) = encoded.report.warning() {
        warn(text);
    }
    let mut measured = Map::new();
    if asked(Metric::Loss) || asked(Metric::Perplexity) {
        let bar = rows_bar(encoded.examples.len(), "rows");
        let loss = evaluate_loss(&session.model, &session.ctx, &encoded.examples, args.batch_size, || {
            bar.inc(1);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        let loss = loss.map_err(|e| e.context(quoted(&args.data)))?;
        if asked(Metric::Loss) {
            measured.insert("loss".into(), loss.mean.into());
        }
        if asked(Metric::Perplexity) {
            measured.insert("perplexity".into(), loss.perplexity().into());
        }
    }
    if asked(Metric::ExactMatch) {
        measured.insert("exact_match".into(), answers(args, session, encoder, dataset)?.into());
    }
    measured.insert("rows".into(), encoded.report.rows.into());
    measured.insert("tokens".into(), encoded.report.target_tokens.into());
    Ok(measured)
}

/// The share of rows whose greedy answer is theirs.
fn answers(args: &EvalArgs, session: &Session, encoder: &Encoder<'_>, dataset: &Dataset) -> Result<f64> {
    let named = |line: usize, e: Error| e.context(format!("{}: line {line}", args.data.display()));
    let prompts = dataset.rows().iter().map(|row| encoder.prompt(row).map_err(|e| named(row.line, e)));
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    let stop: Vec<i32> = encoder.stop_ids()?.into_iter().map(|id| id as i32).collect();
    let how = Answering { tokenizer: &session.base.tokenizer, stop: &stop, max_new_tokens: args.max_new_tokens };
    let bar = rows_bar(prompts.len(), "answers");
    let share = exact_match(&session.model, &session.ctx, &prompts, &how, |_| {
        bar.inc(1);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    share.map_err(|e| e.context(args.data.display()))
}
