//! What a run says while it goes: a bar on a terminal, plain lines elsewhere. All of it on standard error.

use crate::console::{bytes, clock, grouped, note};
use indicatif::{ProgressBar, ProgressStyle};
use kinglet_train::{EvalRow, Plan, Reporter, Settings, StepRow};
use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

/// Shows a training run.
pub(crate) struct Progress {
    /// The plan goes to standard output in the end instead, being the result.
    dry_run: bool,
    /// Plain lines come every so many steps.
    every: u64,
    bar: Option<ProgressBar>,
    /// Steps done before this process.
    done: u64,
    start: Instant,
    /// What was planned, once it is known.
    pub(crate) plan: Option<Plan>,
}

impl Progress {
    pub(crate) fn new(settings: &Settings, dry_run: bool) -> Self {
        Progress { dry_run, every: settings.logging_steps, bar: None, done: 0, start: Instant::now(), plan: None }
    }

    /// Takes the bar away; lines stay.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }

    /// Prints a line above the bar.
    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// The time that the steps after `step` will take if they go as those before.
    fn left(&self, step: u64, plan: &Plan) -> String {
        let made = step.saturating_sub(self.done).max(1) as f64;
        clock(self.start.elapsed().as_secs_f64() / made * plan.steps.saturating_sub(step) as f64)
    }
}

impl Reporter for Progress {
    fn warning(&mut self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    fn resumed(&mut self, done: u64) {
        self.done = done;
        self.line(&match done {
            0 => "there is no checkpoint yet: starting at step 1".to_string(),
            n => format!("going on after step {n}"),
        });
    }

    fn planned(&mut self, plan: &Plan) {
        if !self.dry_run {
            self.line(&describe(plan));
            self.bar = bar(plan, self.done);
        }
        self.plan = Some(plan.clone());
        self.start = Instant::now();
    }

    fn stepped(&mut self, row: &StepRow, plan: &Plan) {
        let left = self.left(row.step, plan);
        match &self.bar {
            Some(bar) => {
                bar.set_position(row.step);
                bar.set_message(format!("loss {:.4}, {:.0} tokens/s, {left} left", row.loss, row.tokens_per_second));
            }
            None if row.step.is_multiple_of(self.every) || row.step == plan.steps => note(format!(
                "step {}/{}: loss {:.4}, learning rate {:.3e}, gradient norm {:.3}, {:.0} tokens/s, {left} left",
                row.step, plan.steps, row.loss, row.learning_rate, row.grad_norm, row.tokens_per_second
            )),
            None => {}
        }
    }

    fn evaluated(&mut self, row: &EvalRow) {
        self.line(&format!("step {}: eval loss {:.4}", row.step, row.eval_loss));
    }

    fn saved(&mut self, path: &Path) {
        self.line(&format!("saved {}", path.display()));
    }
}

/// A bar, when somebody sees it.
fn bar(plan: &Plan, done: u64) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let style = ProgressStyle::with_template("{bar:30} step {pos}/{len} {msg}").expect("the template is a constant");
    Some(ProgressBar::new(plan.steps).with_style(style).with_position(done))
}

/// A bar over the rows of an evaluation.
pub(crate) fn rows_bar(rows: usize, what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {msg} {pos}/{len}, {eta} left").expect("as above");
    ProgressBar::new(rows as u64).with_style(style).with_message(what)
}

/// The plan as lines.
pub(crate) fn describe(plan: &Plan) -> String {
    let cut = match (plan.rows_cut, plan.rows_left_out) {
        (0, 0) => "none cut".to_string(),
        (cut, 0) => format!("{} cut to the maximum length", grouped(cut)),
        (cut, out) => format!("{} cut to the maximum length, {} of them left out", grouped(cut), grouped(out)),
    };
    [
        format!("rows: {} ({cut})", grouped(plan.rows)),
        format!("target tokens: {} of {} an epoch", grouped(plan.target_tokens), grouped(plan.tokens)),
        format!(
            "trainable parameters: {} of {} ({:.2}%)",
            grouped(plan.trainable),
            grouped(plan.parameters),
            100.0 * plan.trainable_share()
        ),
        format!("steps: {} ({} an epoch, {} of warm-up)", plan.steps, plan.steps_per_epoch, plan.warmup_steps),
        format!("expected peak memory: {}", bytes(plan.peak_bytes)),
    ]
    .join("\n")
}
