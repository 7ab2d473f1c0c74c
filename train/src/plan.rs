//! What is known before step 1.

use crate::budget::ByteSize;
use crate::learner::Learner;
use crate::report::Plan;
use crate::rows::Rows;
use crate::settings::Settings;
use kinglet_peft::count_parameters;
use kinglet_tensor::Result;

/// The plan of a run that trains `learner` on `rows` and takes at most `peak` bytes.
pub(crate) fn plan(settings: &Settings, rows: &Rows, learner: &Learner, peak: ByteSize) -> Result<Plan> {
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
        peak_bytes: peak.0 as usize,
    })
}
