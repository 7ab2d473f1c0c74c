//! The rows of a run, and which of them each optimiser step takes.

use crate::base::Base;
use crate::settings::Settings;
use kinglet_data::{BatchOptions, Batches, Dataset, EncodeReport, Encoded, Epoch, TokenBatch};
use kinglet_tensor::{Error, Result};
use std::path::Path;

/// Training rows in batches, and the count of steps over them.
pub(crate) struct Rows {
    pub(crate) batches: Batches,
    pub(crate) report: EncodeReport,
    accumulation: usize,
    /// Optimiser steps of one epoch: the last one may have fewer micro-batches.
    pub(crate) steps_per_epoch: u64,
    /// Optimiser steps of the run.
    pub(crate) steps: u64,
}

impl Rows {
    pub(crate) fn new(settings: &Settings, base: &Base) -> Result<Self> {
        let encoded = encode(&settings.data, settings, base)?;
        let options = BatchOptions {
            batch_size: settings.per_device_train_batch_size,
            pack_to: settings.packing.then_some(settings.max_length),
            shuffle: !settings.no_shuffle,
            seed: settings.seed,
        };
        let batches = Batches::new(encoded.examples, options)?;
        let accumulation = settings.gradient_accumulation_steps;
        let steps_per_epoch = batches.batches_per_epoch().div_ceil(accumulation) as u64;
        let by_epochs = (settings.num_train_epochs * steps_per_epoch as f64).ceil() as u64;
        Ok(Rows {
            batches,
            report: encoded.report,
            accumulation,
            steps_per_epoch,
            steps: settings.max_steps.unwrap_or(by_epochs.max(1)),
        })
    }

    /// Tokens of the longest row.
    pub(crate) fn longest(&self) -> usize {
        self.batches.examples().iter().map(|e| e.ids.len()).max().unwrap_or(0)
    }

    /// Reads steps in order.
    pub(crate) fn feed(&self) -> Feed<'_> {
        Feed { rows: self, epoch: None }
    }

    /// Epochs done after `steps` steps.
    pub(crate) fn epochs(&self, steps: u64) -> f64 {
        steps as f64 / self.steps_per_epoch as f64
    }
}

/// Gives the micro-batches of any step; a step's rows depend on nothing but its number.
pub(crate) struct Feed<'a> {
    rows: &'a Rows,
    /// The order of the epoch that was asked for last.
    epoch: Option<(u64, Epoch<'a>)>,
}

impl Feed<'_> {
    /// The micro-batches of the step that follows `done` finished ones.
    pub(crate) fn step(&mut self, done: u64) -> Result<Vec<TokenBatch>> {
        let (number, place) = (done / self.rows.steps_per_epoch, done % self.rows.steps_per_epoch);
        let epoch = match self.epoch.take() {
            Some((n, epoch)) if n == number => epoch,
            _ => self.rows.batches.epoch(number),
        };
        let first = place as usize * self.rows.accumulation;
        let end = (first + self.rows.accumulation).min(self.rows.batches.batches_per_epoch());
        let batches = (first..end).map(|i| epoch.batch(i)).collect();
        self.epoch = Some((number, epoch));
        batches
    }
}

/// Reads and encodes the rows of a file as this run does.
pub(crate) fn encode(path: &Path, settings: &Settings, base: &Base) -> Result<Encoded> {
    let dataset = Dataset::from_file(path)?;
    let encoded = base.encoder(settings.max_length)?.encode(&dataset)?;
    match encoded.examples.iter().find_map(|e| e.ids.iter().find(|&&id| id as usize >= base.source.config.vocab)) {
        Some(id) => Err(Error::invalid(format!("{}: token {id} is outside of the model's vocabulary", path.display()))),
        None => Ok(encoded),
    }
}
