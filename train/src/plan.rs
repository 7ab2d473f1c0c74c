//! What is known before step 1, the peak of memory among it.

use crate::base::Base;
use crate::learner::Learner;
use crate::report::Plan;
use crate::rows::Rows;
use crate::settings::Settings;
use kinglet_peft::count_parameters;
use kinglet_tensor::{Device, Result};
use std::path::Path;

/// The plan of a run that trains `learner`, whose adapter came from the folder `adapter`, on `rows`.
pub(crate) fn plan(
    settings: &Settings,
    base: &Base,
    rows: &Rows,
    learner: &Learner,
    adapter: Option<&Path>,
) -> Result<Plan> {
    let report = &rows.report;
    Ok(Plan {
        rows: report.rows,
        rows_cut: report.rows_cut,
        rows_left_out: report.rows_left_out,
        tokens: report.tokens,
        target_tokens: report.target_tokens,
        parameters: count_parameters(&learner.model)?,
        trainable: learner.params.len(),
        steps: rows.steps,
        steps_per_epoch: rows.steps_per_epoch,
        warmup_steps: settings.warmup(rows.steps),
        peak_bytes: peak_bytes(settings, base, rows, adapter)?,
    })
}

/// The most bytes at once: one step on the largest batch on a device that runs nothing and counts bytes, beside the
/// pages of the weight files.
fn peak_bytes(settings: &Settings, base: &Base, rows: &Rows, adapter: Option<&Path>) -> Result<usize> {
    let device = Device::meta();
    let mut learner = Learner::new(base.model(settings, &device)?, settings, adapter)?;
    learner.step(&[rows.batches.largest()], 1, settings.learning_rate)?;
    let mapped: usize = base.source.weights.entries.values().map(|e| e.range.len()).sum();
    Ok(device.memory().peak + mapped)
}
