//! What a run tells its caller: the command line draws bars from it, a library user may store it.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// What is known before step 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Rows of the data file.
    pub rows: usize,
    /// Rows that were longer than `max-length` and lost their end.
    pub rows_cut: usize,
    /// Rows left out because their answer was wholly cut off.
    pub rows_left_out: usize,
    /// Tokens of one epoch.
    pub tokens: usize,
    /// Tokens of one epoch that are learnt.
    pub target_tokens: usize,
    /// Elements of all weights, trained or not.
    pub parameters: usize,
    /// Elements that are trained.
    pub trainable: usize,
    /// Optimiser steps of the whole run.
    pub steps: u64,
    /// Optimiser steps of one epoch.
    pub steps_per_epoch: u64,
    /// Steps of the warm-up.
    pub warmup_steps: u64,
    /// The most bytes that the run is expected to need at once: what steps on its batches allocate on a device that only counts
    /// ([`Device::planner`](kinglet_tensor::Device::planner)). On a CPU the mapped pages of the model are included; on a GPU it is
    /// the chunk that the run takes of the driver, before its first step and for all of them.
    pub peak_bytes: usize,
}

impl Plan {
    /// The share of all weights that is trained, 0 to 1.
    #[must_use]
    pub fn trainable_share(&self) -> f64 {
        self.trainable as f64 / self.parameters.max(1) as f64
    }
}

/// One optimiser step: a row of `log.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Counted from 1.
    pub step: u64,
    /// Before the update: the mean over all target tokens of the step.
    pub loss: f64,
    /// The rate of the update.
    pub learning_rate: f64,
    /// The norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Input tokens (none is padding) over the wall time of the step.
    pub tokens_per_second: f64,
    /// Epochs done after this step.
    pub epoch: f64,
}

/// One evaluation during a run: a row of `log.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// Optimiser steps done.
    pub step: u64,
    /// The mean over all target tokens of the evaluation file.
    pub eval_loss: f64,
    /// Epochs done.
    pub epoch: f64,
}

/// Hears what happens in a run. Every method does nothing by default.
pub trait Reporter {
    /// Something that the user should know and that does not stop the run.
    fn warning(&mut self, text: &str) {
        let _ = text;
    }

    /// Everything is loaded; step 1 is next (or the end, with a dry run).
    fn planned(&mut self, plan: &Plan) {
        let _ = plan;
    }

    /// An interrupted run goes on after `done` steps; 0 when it had no checkpoint yet and starts over.
    fn resumed(&mut self, done: u64) {
        let _ = done;
    }

    /// A step is done.
    fn stepped(&mut self, row: &StepRow, plan: &Plan) {
        let _ = (row, plan);
    }

    /// An evaluation is done.
    fn evaluated(&mut self, row: &EvalRow) {
        let _ = row;
    }

    /// A checkpoint, or the result of the run, is on disk.
    fn saved(&mut self, path: &Path) {
        let _ = path;
    }
}

/// A reporter that keeps quiet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Reporter for Silent {}
