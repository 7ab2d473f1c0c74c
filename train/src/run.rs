//! The one training loop.

use crate::base::Base;
use crate::budget;
use crate::checkpoint::{self, Checkpoint, Identity};
use crate::eval::evaluate_loss;
use crate::learner::Learner;
use crate::log::Log;
use crate::output::{Contents, Output};
use crate::plan::plan;
use crate::report::{EvalRow, Plan, Reporter, StepRow};
use crate::rows::{Rows, encode};
use crate::settings::{Quant, Settings};
use kinglet_data::{Example, Renderer, TokenBatch};
use kinglet_optim::Schedule;
use kinglet_tensor::{Device, Error, Result};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What to do about a run that is in OUTPUT already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Start {
    /// Refuse.
    #[default]
    New,
    /// Go on from its newest checkpoint.
    Resume,
    /// Delete it.
    Overwrite,
}

/// How a run is started and ended.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions<'a> {
    /// What to do about a run that is in OUTPUT already.
    pub start: Start,
    /// Stop before step 1, and write nothing.
    pub dry_run: bool,
    /// Once it is set, the run saves a checkpoint after the current step and returns.
    pub stop: &'a AtomicBool,
    /// Compiles and runs the chat template in a process of its own; else it is done in this one.
    pub renderer: Option<&'a Renderer>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done and the result is saved.
    Finished,
    /// It was asked to stop; it can be resumed.
    Stopped,
    /// It was a dry run.
    Planned,
    /// There was nothing left to do: the run in OUTPUT is finished.
    AlreadyFinished,
}

/// What [`run`] did.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Optimiser steps done, those before a resume among them.
    pub steps: u64,
    /// The loss of the last step that was made now.
    pub loss: Option<f64>,
    /// The last evaluation that was made now.
    pub eval_loss: Option<f64>,
}

/// Runs `settings` on `device`: loads base and data, trains, evaluates, saves.
///
/// # Errors
/// When the settings, the model, the data or OUTPUT are at fault, before anything is written; `is_non_finite` when a
/// loss or gradient is no number: the error names the op, the layer and the rows.
pub fn run(
    settings: &Settings,
    device: &Device,
    options: RunOptions<'_>,
    reporter: &mut dyn Reporter,
) -> Result<Outcome> {
    settings.validate()?;
    let output = Output::new(&settings.output);
    let resuming = check_output(&output, settings, options.start)?;
    let held = if options.dry_run { None } else { output.lock()? };
    if resuming && output.is_whole()? {
        let steps = output.checkpoints()?.first().copied().unwrap_or(0);
        return Ok(Outcome { end: End::AlreadyFinished, steps, loss: None, eval_loss: None });
    }
    let base = Base::of(settings, options.renderer)?;
    check_requantisation(settings, &base, reporter)?;
    let rows = Rows::new(settings, &base)?;
    if let Some(text) = rows.report.warning() {
        reporter.warning(&text);
    }
    if resuming && !options.dry_run {
        output.recover()?;
    }
    let (longest, positions) = (rows.longest(), base.source.config.max_positions);
    if longest > positions {
        reporter.warning(&format!("a row has {longest} tokens, more than the {positions} that the model was made for"));
    }
    let checkpoint = if resuming { output.newest(|e| reporter.warning(&e.to_string()))? } else { None };
    let eval = settings.eval_data.as_deref().map(|path| encode(path, settings, &base)).transpose()?;
    let identity = Identity::new(settings, &base, device)?;
    let checkpoint =
        checkpoint.map(|step| Checkpoint::open(output.checkpoint(step), settings, &identity)).transpose()?;
    if options.stop.load(Ordering::Relaxed) {
        return Ok(stopped(0));
    }
    // A run goes on with the adapter of its checkpoint: the one that it began with may have changed since, or be gone.
    let adapter = checkpoint.as_ref().map(|c| c.path.as_path()).or(settings.init_adapter.as_deref());
    let eval = eval.map(|e| e.examples);
    let peak = budget::check(settings, &base, (&rows, eval.as_deref().unwrap_or_default()), adapter, device)?;
    let _reserved = budget::reserve(settings, peak, device)?; // until the run ends
    let model = base.model(settings, device)?;
    if let Some(text) = base.unused_warning(&model) {
        reporter.warning(&text);
    }
    let mut learner = Learner::new(model, settings, adapter)?;
    let done = checkpoint.as_ref().map_or(Ok(0), |c| c.restore(&mut learner, settings))?;
    let plan = plan(settings, &rows, &learner, peak)?;
    if options.start == Start::Resume {
        reporter.resumed(done);
    }
    reporter.planned(&plan);
    if options.dry_run {
        return Ok(Outcome { end: End::Planned, steps: done, loss: None, eval_loss: None });
    }
    if options.stop.load(Ordering::Relaxed) {
        return Ok(stopped(done));
    }
    if options.start == Start::Overwrite {
        output.clear()?;
    }
    if !resuming || checkpoint.is_none() {
        output.begin(settings)?;
    }
    let _held = held.map_or_else(|| output.lock(), |held| Ok(Some(held)))?; // until the run ends
    let log = Log::open(&output.path, done)?;
    let schedule = settings.schedule(rows.steps);
    let mut run = Run { settings, base, rows: &rows, eval, identity, learner, output, log, plan, schedule, reporter };
    run.go(done, options.stop)
}

/// A run that was asked to stop before its first step.
fn stopped(done: u64) -> Outcome {
    Outcome { end: End::Stopped, steps: done, loss: None, eval_loss: None }
}

/// Whether OUTPUT holds a run to go on with.
fn check_output(output: &Output, settings: &Settings, start: Start) -> Result<bool> {
    let shown = settings.output.display();
    Settings::check_not_lost(&settings.output)?;
    match (output.contents()?, start) {
        (Contents::Foreign(name), _) => Err(Error::invalid(format!(
            "{shown}: holds {name:?}, which is no part of a run: choose another folder for --output"
        ))),
        (Contents::Run, Start::New) => {
            let lost =
                if output.checkpoints()?.is_empty() { ", which loses nothing: it has no checkpoint yet" } else { "" };
            Err(Error::invalid(format!(
                "{shown}: holds a run already: go on with it by --resume, or replace it by --overwrite{lost}"
            )))
        }
        (Contents::Run, Start::Resume) => {
            Settings::read(&settings.output)?.check_resumable_as(settings)?;
            Ok(true)
        }
        (Contents::Run, Start::Overwrite) => check_inputs_outside(settings).map(|()| false),
        (Contents::Nothing, _) => Ok(false),
    }
}

/// Refuses to replace a folder that holds something which the run reads.
fn check_inputs_outside(settings: &Settings) -> Result<()> {
    let Ok(output) = std::fs::canonicalize(&settings.output) else { return Ok(()) };
    let optional = [&settings.eval_data, &settings.init_adapter, &settings.chat_template];
    let inputs = [&settings.model, &settings.data].into_iter().chain(optional.into_iter().flatten());
    for input in inputs {
        if std::fs::canonicalize(input).is_ok_and(|path| path.starts_with(&output)) {
            let what =
                format!("{}: is read by this run and lies in --output, which --overwrite deletes", input.display());
            return Err(Error::invalid(format!("{what}: choose another folder for --output")));
        }
    }
    Ok(())
}

/// Quantising what is quantised already loses more than either alone.
fn check_requantisation(settings: &Settings, base: &Base, reporter: &mut dyn Reporter) -> Result<()> {
    if !base.is_quantized() || settings.quant.is_none_or(|q| q == Quant::None) {
        return Ok(());
    }
    if base.source.gguf.is_none() {
        let shown = base.source.path.display();
        return Err(Error::invalid(format!(
            "{shown}: is in 4 bits already: leave out --quant, or give the original model"
        )));
    }
    reporter.warning("the base is quantised already: --quant rounds its decoded weights a second time");
    Ok(())
}

/// A run in progress.
struct Run<'a> {
    settings: &'a Settings,
    base: Base,
    rows: &'a Rows,
    eval: Option<Vec<Example>>,
    identity: Identity,
    learner: Learner,
    output: Output,
    log: Log,
    plan: Plan,
    schedule: Schedule,
    reporter: &'a mut dyn Reporter,
}

impl Run<'_> {
    /// All steps after `done`, and the saves between them.
    fn go(&mut self, done: u64, stop: &AtomicBool) -> Result<Outcome> {
        let rows = self.rows;
        let mut feed = rows.feed();
        let mut outcome = Outcome { end: End::Finished, steps: done, loss: None, eval_loss: None };
        if self.is_evaluation_due(done) && !self.log.has_evaluation(done)? {
            // The run was stopped between the checkpoint and the evaluation that belongs to it.
            match self.evaluate(done, stop)? {
                Some(loss) => outcome.eval_loss = Some(loss),
                None => return Ok(stopped(done)),
            }
        }
        while outcome.steps < rows.steps {
            let step = outcome.steps + 1;
            outcome.loss = Some(self.step(&feed.step(step - 1)?, step)?);
            outcome.steps = step;
            let last = step == rows.steps;
            let mut stopped = stop.load(Ordering::Relaxed) && !last;
            let due = self.settings.save_steps > 0 && step.is_multiple_of(self.settings.save_steps);
            let saved = due || last || stopped;
            if saved {
                self.save(step)?;
            }
            if !stopped && self.is_evaluation_due(step) {
                match self.evaluate(step, stop)? {
                    Some(loss) => outcome.eval_loss = Some(loss),
                    None => stopped = true,
                }
            }
            if stopped {
                if !saved {
                    self.save(step)?;
                }
                outcome.end = End::Stopped;
                return Ok(outcome);
            }
        }
        self.output.publish(rows.steps)?;
        self.reporter.saved(&self.output.path);
        Ok(outcome)
    }

    /// One optimiser step and its row of the log; the loss.
    fn step(&mut self, micro: &[TokenBatch], step: u64) -> Result<f64> {
        let start = Instant::now();
        if (step - 1).is_multiple_of(self.rows.steps_per_epoch) {
            self.base.check_unchanged()?;
        }
        let rate = self.schedule.rate(step as usize - 1);
        let result = self.learner.step(micro, step, rate)?;
        if !(result.loss.is_finite() && result.grad_norm.is_finite()) {
            return Err(self.learner.explain(micro, step));
        }
        let tokens: usize = micro.iter().map(|b| b.ids.len()).sum();
        let row = StepRow {
            step,
            loss: result.loss,
            learning_rate: rate,
            grad_norm: result.grad_norm,
            tokens_per_second: tokens as f64 / start.elapsed().as_secs_f64().max(1e-9),
            epoch: self.rows.epochs(step),
        };
        self.log.step(&row)?;
        self.reporter.stepped(&row, &self.plan);
        Ok(row.loss)
    }

    /// Whether the evaluation rows, if there are any, are looked at after `step`.
    fn is_evaluation_due(&self, step: u64) -> bool {
        let by_steps = self.settings.eval_steps.is_some_and(|n| step.is_multiple_of(n));
        self.eval.is_some() && step > 0 && (step == self.rows.steps || by_steps)
    }

    /// The loss over the evaluation rows; `None` when `stop` was set before their end.
    fn evaluate(&mut self, step: u64, stop: &AtomicBool) -> Result<Option<f64>> {
        let rows = self.eval.as_deref().unwrap_or_default();
        let mut broken_off = false;
        let go_on = || {
            broken_off |= stop.load(Ordering::Relaxed);
            if broken_off { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let ctx = self.learner.eval_ctx();
        let batch_size = self.settings.per_device_train_batch_size;
        let loss = evaluate_loss(&self.learner.model, &ctx, rows, batch_size, go_on);
        if broken_off {
            return Ok(None);
        }
        let loss = loss.map_err(|e| self.explain_evaluation(e, step))?;
        let row = EvalRow { step, eval_loss: loss.mean, epoch: self.rows.epochs(step) };
        self.log.eval(&row)?;
        self.reporter.evaluated(&row);
        Ok(Some(row.eval_loss))
    }

    /// Names the file, and what may help where training spoilt the weights.
    fn explain_evaluation(&self, error: Error, step: u64) -> Error {
        let file = self.settings.eval_data.as_deref().unwrap_or(Path::new(""));
        let error = error.context(format!("{}: evaluation after step {step}", file.display()));
        match error.is_non_finite() {
            true => Error::non_finite(format!("{error}: try a lower --learning-rate")),
            false => error,
        }
    }

    fn save(&mut self, step: u64) -> Result<()> {
        self.base.check_unchanged()?;
        self.log.sync()?;
        let path = self.output.checkpoint(step);
        checkpoint::save(&path, step, &self.learner, self.settings, &self.base, &self.identity)?;
        if let Some(limit) = self.settings.save_total_limit {
            self.output.rotate(limit)?;
        }
        self.reporter.saved(&path);
        Ok(())
    }
}
