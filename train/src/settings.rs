//! Every option of a run, under the names of the command line.

use crate::budget::ByteSize;
use crate::log::LOG;
use kinglet_models::fs::read_text;
use kinglet_optim::{AdamWOptions, Schedule, ScheduleKind};
use kinglet_tensor::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// LoRA adapters on a base quantised to 4 bits.
    Qlora,
    /// LoRA adapters on the base as it is stored.
    Lora,
    /// Every weight.
    Full,
}

/// How the linear layers of the base are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quant {
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit float.
    Fp4,
    /// As they are stored.
    None,
}

/// The learning rate over time: see [`ScheduleKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// To 0 in a straight line.
    Linear,
    /// To 0 along half a cosine.
    Cosine,
    /// Stays.
    Constant,
    /// Stays, then falls along half a cosine in the last tenth of the steps.
    WarmupStableDecay,
}

/// The dtype of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeName {
    /// 32 bits.
    F32,
    /// The upper half of an f32.
    Bf16,
}

impl From<DtypeName> for DType {
    fn from(name: DtypeName) -> Self {
        match name {
            DtypeName::F32 => DType::F32,
            DtypeName::Bf16 => DType::BF16,
        }
    }
}

/// The settings of a run. [`Settings::new`] has the defaults of the command line. Written to OUTPUT as
/// [`Settings::FILE`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// The base: a Hugging Face folder or a .gguf file.
    pub model: PathBuf,
    /// Training rows.
    pub data: PathBuf,
    /// The folder to write.
    pub output: PathBuf,
    /// What is trained.
    pub method: Method,
    /// Rank of the adapters.
    pub lora_r: usize,
    /// Scale of the adapters: alpha / r.
    pub lora_alpha: f64,
    /// Dropout before the adapters.
    pub lora_dropout: f32,
    /// `all-linear`, names separated by commas, or a regular expression.
    pub target_modules: String,
    /// Scale by alpha / sqrt(r).
    pub use_rslora: bool,
    /// Modules to train in full and save beside the adapter.
    pub modules_to_save: Vec<String>,
    /// How the base is held. `None`: NF4 under qlora unless the base is quantised already, else as stored.
    pub quant: Option<Quant>,
    /// Keep block scales in f32.
    pub no_double_quant: bool,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// The learning rate over time.
    pub lr_scheduler_type: SchedulerType,
    /// Share of the steps that warm up.
    pub warmup_ratio: f64,
    /// Steps that warm up; above 0 it beats the ratio.
    pub warmup_steps: u64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are clipped to this norm; 0 does not clip.
    pub max_grad_norm: f64,
    /// Passes over the data.
    pub num_train_epochs: f64,
    /// Optimiser steps; beats epochs and wraps round the data.
    pub max_steps: Option<u64>,
    /// Rows (or packs) of a micro-batch.
    pub per_device_train_batch_size: usize,
    /// Micro-batches of an optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Tokens of a row.
    pub max_length: usize,
    /// Put several rows into one sequence of at most `max-length`.
    pub packing: bool,
    /// Take rows in the order of the file.
    pub no_shuffle: bool,
    /// Run each block again in the backward pass.
    pub gradient_checkpointing: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// The dtype of activations.
    pub dtype: DtypeName,
    /// `cpu`, `cuda:N` or `emulated`.
    pub device: String,
    /// Threads of the CPU device; `None` is one a core.
    pub threads: Option<usize>,
    /// A folder of CUDA kernels to run instead of built-in ones.
    pub kernels: Option<PathBuf>,
    /// Refuse a run that needs more memory on its device; `None` is all that a GPU has, and no limit on a CPU.
    #[serde(default)]
    pub memory_budget: Option<ByteSize>,
    /// Rows to evaluate on.
    pub eval_data: Option<PathBuf>,
    /// Evaluate every so many steps; `None` only at the end.
    pub eval_steps: Option<u64>,
    /// Save a checkpoint every so many steps; 0 only at the end.
    pub save_steps: u64,
    /// Keep only the newest checkpoints.
    pub save_total_limit: Option<usize>,
    /// Show every so many steps; the log has every step.
    pub logging_steps: u64,
    /// Start from this adapter instead of a new one: its own configuration then stands for `lora-*`, `target-modules`,
    /// `use-rslora` and `modules-to-save`. Read before step 1 alone: a resumed run has all of it in its checkpoint.
    pub init_adapter: Option<PathBuf>,
    /// No chat template.
    pub raw: bool,
    /// A chat template instead of the model's.
    pub chat_template: Option<PathBuf>,
    /// Random weights for the model that config.json describes.
    pub from_scratch: bool,
    /// Read weight files into memory instead of mapping them.
    pub no_mmap: bool,
}

/// Settings that a resumed run may change: no number of the result depends on them.
const FREE: [&str; 7] =
    ["threads", "memory-budget", "logging-steps", "save-steps", "save-total-limit", "no-mmap", "output"];

impl Settings {
    /// The file of OUTPUT that holds the settings: it makes a folder a run's.
    pub const FILE: &'static str = "kinglet_settings.json";

    /// The defaults of the command line.
    #[must_use]
    pub fn new(model: impl Into<PathBuf>, data: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Settings {
            model: model.into(),
            data: data.into(),
            output: output.into(),
            method: Method::Qlora,
            lora_r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: "all-linear".into(),
            use_rslora: false,
            modules_to_save: Vec::new(),
            quant: None,
            no_double_quant: false,
            learning_rate: 2e-4,
            lr_scheduler_type: SchedulerType::Linear,
            warmup_ratio: 0.0,
            warmup_steps: 0,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            num_train_epochs: 1.0,
            max_steps: None,
            per_device_train_batch_size: 8,
            gradient_accumulation_steps: 1,
            max_length: 1024,
            packing: false,
            no_shuffle: false,
            gradient_checkpointing: false,
            seed: 42,
            dtype: DtypeName::F32,
            device: "cpu".into(),
            threads: None,
            kernels: None,
            memory_budget: None,
            eval_data: None,
            eval_steps: None,
            save_steps: 50,
            save_total_limit: None,
            logging_steps: 1,
            init_adapter: None,
            raw: false,
            chat_template: None,
            from_scratch: false,
            no_mmap: false,
        }
    }

    /// The settings of the run in `output`.
    ///
    /// # Errors
    /// When the folder holds no run, or its settings cannot be read.
    pub fn read(output: &Path) -> Result<Self> {
        let path = output.join(Self::FILE);
        let advice = "restore the file, or start anew with --overwrite";
        let text = read_text(&path, &format!("the settings of the run ({advice})"))?;
        let mut settings: Settings =
            serde_json::from_str(&text).map_err(|e| Error::invalid(format!("{}: {e}: {advice}", path.display())))?;
        settings.output = output.into();
        Ok(settings)
    }

    /// An error where `output` holds what a run leaves but not its settings.
    ///
    /// # Errors
    /// When that is so: the error says what to do.
    pub fn check_not_lost(output: &Path) -> Result<()> {
        let is_checkpoint = |name: &str| name.starts_with("checkpoint-");
        let entries = std::fs::read_dir(output).into_iter().flatten().flatten();
        let is_runs = entries.into_iter().any(|e| e.file_name().to_str().is_some_and(|n| n == LOG || is_checkpoint(n)));
        if is_runs && !output.join(Self::FILE).exists() {
            let what = format!("{}: holds a run without its {}", output.display(), Self::FILE);
            return Err(Error::invalid(format!("{what}: restore that file, or choose another folder for --output")));
        }
        Ok(())
    }

    /// Refuses values that have no sense, and pairs that exclude each other.
    ///
    /// # Errors
    /// When there is one: the error names the option.
    pub fn validate(&self) -> Result<()> {
        self.check_numbers()?;
        self.check_pairs()
    }

    fn check_numbers(&self) -> Result<()> {
        for (name, value) in [
            ("lora-r", self.lora_r),
            ("per-device-train-batch-size", self.per_device_train_batch_size),
            ("gradient-accumulation-steps", self.gradient_accumulation_steps),
            ("logging-steps", self.logging_steps as usize),
            ("max-steps", self.max_steps.map_or(1, |n| n as usize)),
            ("eval-steps", self.eval_steps.map_or(1, |n| n as usize)),
            ("threads", self.threads.unwrap_or(1)),
            ("save-total-limit", self.save_total_limit.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(Error::invalid(format!("--{name} must be at least 1")));
            }
        }
        if self.max_length < 2 {
            return Err(Error::invalid("--max-length must be at least 2"));
        }
        for (name, value) in [
            ("learning-rate", self.learning_rate),
            ("weight-decay", self.weight_decay),
            ("max-grad-norm", self.max_grad_norm),
        ] {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::invalid(format!("--{name} must be a number of at least 0, not {value}")));
            }
        }
        for (name, value) in [("lora-alpha", self.lora_alpha), ("num-train-epochs", self.num_train_epochs)] {
            if !value.is_finite() || value <= 0.0 {
                return Err(Error::invalid(format!("--{name} must be above 0, not {value}")));
            }
        }
        if !(0.0..=1.0).contains(&self.warmup_ratio) {
            return Err(Error::invalid(format!("--warmup-ratio must be from 0 to 1, not {}", self.warmup_ratio)));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::invalid(format!("--lora-dropout must be from 0 to below 1, not {}", self.lora_dropout)));
        }
        Ok(())
    }

    fn check_pairs(&self) -> Result<()> {
        let full = self.method == Method::Full;
        let excluded = [
            (
                full && self.quant.is_some_and(|q| q != Quant::None),
                "--method full trains every weight: leave out --quant",
            ),
            (full && self.init_adapter.is_some(), "--method full has no adapter: leave out --init-adapter"),
            (
                full && !self.modules_to_save.is_empty(),
                "--method full trains every module: leave out --modules-to-save",
            ),
            (
                self.no_double_quant && self.is_surely_unquantised(),
                "--no-double-quant has no effect on a base that is not quantised: give --quant nf4 or fp4, or leave it out",
            ),
            (!full && self.from_scratch, "--from-scratch needs --method full: an adapter needs a trained base"),
            (self.raw && self.chat_template.is_some(), "--raw uses no chat template: leave out --chat-template"),
            (self.eval_steps.is_some() && self.eval_data.is_none(), "--eval-steps needs --eval-data"),
        ];
        match excluded.iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(Error::invalid(what)),
            None => Ok(()),
        }
    }

    /// Whether no base at all would be quantised.
    fn is_surely_unquantised(&self) -> bool {
        match self.quant {
            Some(quant) => quant == Quant::None,
            None => self.method != Method::Qlora,
        }
    }

    /// The first setting, by name, in which a resumed run disagrees with this one.
    ///
    /// # Errors
    /// When there is one: the error names it and both values.
    pub fn check_resumable_as(&self, other: &Settings) -> Result<()> {
        let json = |s: &Settings| serde_json::to_value(s).map_err(|e| Error::invalid(format!("settings: {e}")));
        let (ours, theirs) = (json(self)?, json(other)?);
        for (name, value) in ours.as_object().into_iter().flatten() {
            if !FREE.contains(&name.as_str()) && theirs[name] != *value {
                let what = format!("--{name} is {}, but the run to resume has {value}", theirs[name]);
                return Err(Error::invalid(format!("{what}: leave it out, or start anew with --overwrite")));
            }
        }
        Ok(())
    }

    /// How many of `total` steps warm up, as transformers counts them.
    #[must_use]
    pub fn warmup(&self, total: u64) -> u64 {
        if self.warmup_steps > 0 { self.warmup_steps } else { (total as f64 * self.warmup_ratio).ceil() as u64 }
    }

    /// The learning rate over `total` steps.
    #[must_use]
    pub fn schedule(&self, total: u64) -> Schedule {
        let kind = match self.lr_scheduler_type {
            SchedulerType::Linear => ScheduleKind::Linear,
            SchedulerType::Cosine => ScheduleKind::Cosine,
            SchedulerType::Constant => ScheduleKind::Constant,
            SchedulerType::WarmupStableDecay => ScheduleKind::WarmupStableDecay { decay: total.div_ceil(10) as usize },
        };
        Schedule { kind, peak: self.learning_rate, warmup: self.warmup(total) as usize, total: total as usize }
    }

    /// The optimiser's settings.
    #[must_use]
    pub fn adamw(&self) -> AdamWOptions {
        AdamWOptions { weight_decay: self.weight_decay, max_grad_norm: self.max_grad_norm, ..AdamWOptions::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new("base", "rows.jsonl", "out")
    }

    #[test]
    fn the_defaults_are_valid_and_survive_json() {
        let settings = settings();
        settings.validate().unwrap();
        let json = serde_json::to_value(&settings).unwrap();
        assert_eq!(json["per-device-train-batch-size"], 8);
        assert_eq!(json["lr-scheduler-type"], "linear");
        assert_eq!(serde_json::from_value::<Settings>(json).unwrap(), settings);
    }

    #[test]
    fn what_has_no_sense_is_named() {
        type Case = (&'static str, fn(&mut Settings));
        let cases: [Case; 10] = [
            ("--no-double-quant", |s| (s.method, s.no_double_quant) = (Method::Lora, true)),
            ("--lora-r", |s| s.lora_r = 0),
            ("--learning-rate", |s| s.learning_rate = f64::NAN),
            ("--warmup-ratio", |s| s.warmup_ratio = 1.5),
            ("--lora-dropout", |s| s.lora_dropout = 1.0),
            ("--max-steps", |s| s.max_steps = Some(0)),
            ("--quant", |s| (s.method, s.quant) = (Method::Full, Some(Quant::Nf4))),
            ("--from-scratch", |s| s.from_scratch = true),
            ("--eval-data", |s| s.eval_steps = Some(3)),
            ("--max-length", |s| s.max_length = 1),
        ];
        for (name, break_it) in cases {
            let mut broken = settings();
            break_it(&mut broken);
            assert!(broken.validate().unwrap_err().to_string().contains(name), "{name}");
        }
    }

    #[test]
    fn a_resumed_run_may_change_only_what_changes_no_number() {
        let run = settings();
        let mut free = settings();
        (free.threads, free.save_steps, free.logging_steps) = (Some(7), 3, 9);
        (free.save_total_limit, free.no_mmap) = (Some(2), true);
        run.check_resumable_as(&free).unwrap();
        let other = Settings { seed: 43, ..settings() };
        let error = run.check_resumable_as(&other).unwrap_err().to_string();
        assert!(error.contains("--seed is 43") && error.contains("42"), "{error}");
    }

    #[test]
    fn warmup_steps_beat_the_ratio() {
        let with = |warmup_ratio, warmup_steps| Settings { warmup_ratio, warmup_steps, ..settings() }.warmup(15);
        assert_eq!((with(0.1, 0), with(0.1, 5), with(0.0, 0)), (2, 5, 0));
    }
}
