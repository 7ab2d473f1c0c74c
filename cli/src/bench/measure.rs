//! `kinglet bench measure`, which other processes of kinglet call: one job, whose peak memory and time from the start of
//! the process are its own.

use crate::args::{DeviceArgs, Dtype, Method, ModelArgs, Quant};
use crate::bench::machine;
use crate::console::out;
use crate::device::{self, Choice};
use crate::render::renderer;
use crate::session::Session;
use kinglet_data::TokenBatch;
use kinglet_models::{Config, Decoder, LoadOptions, QuantOptions, Request, Sampling, generate};
use kinglet_quant::nf4::Format;
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Device, Error, Result};
use kinglet_train::{Base, DtypeName, Learner, Settings};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::report::median;

/// A job, as kinglet and benches/pytorch/worker.py read it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "lowercase")]
pub(crate) enum Job {
    Step(StepJob),
    Decode(DecodeJob),
}

/// Training steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StepJob {
    pub(crate) model: Option<PathBuf>,
    /// The config.json of a model with random weights, where there is no `model`.
    pub(crate) config: Option<Map<String, Value>>,
    pub(crate) method: Method,
    pub(crate) dtype: Dtype,
    pub(crate) batch: usize,
    pub(crate) length: usize,
    pub(crate) checkpointing: bool,
    pub(crate) lora_r: usize,
    /// Timed steps, after one that is not.
    pub(crate) steps: usize,
    pub(crate) threads: usize,
    /// When the process was started, in seconds since 1970.
    pub(crate) spawned: f64,
    /// Of PyTorch: default, tuned or autocast.
    pub(crate) mode: String,
    /// Of kinglet: time each kernel.
    pub(crate) trace: bool,
}

/// Reading a prompt and writing text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DecodeJob {
    pub(crate) model: PathBuf,
    pub(crate) quant: Quant,
    pub(crate) dtype: Dtype,
    pub(crate) prompt_tokens: usize,
    pub(crate) new_tokens: usize,
    pub(crate) threads: usize,
    /// When the process was started, in seconds since 1970.
    pub(crate) spawned: f64,
}

/// # Errors
/// When there is no job on standard input, or it fails.
pub(crate) fn run() -> Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|e| Error::io("standard input", e))?;
    let job: Job = serde_json::from_str(&line).map_err(|e| Error::invalid(format!("standard input: {e}")))?;
    out(match job {
        Job::Step(job) => step(&job)?,
        Job::Decode(job) => decode(&job)?,
    })
}

/// Random ids below `vocabulary`: the same for everybody.
fn ids(count: usize, vocabulary: usize) -> Vec<i32> {
    (0..count).map(|i| (Key::derive(&[1]).words(i as u64)[0] % vocabulary as u32) as i32).collect()
}

/// A row of random tokens after another, each token but the last of a row with the next one as its target.
fn batch(rows: usize, length: usize, vocabulary: usize) -> TokenBatch {
    let ids = ids(rows * length, vocabulary);
    let is_last = |i: usize| (i + 1).is_multiple_of(length);
    TokenBatch {
        positions: (0..ids.len()).map(|i| (i % length) as i32).collect(),
        segments: (0..=rows).map(|row| row * length).collect(),
        targets: (0..ids.len()).map(|i| if is_last(i) { -1 } else { ids[i + 1] }).collect(),
        lines: (1..=rows).collect(),
        ids,
    }
}

fn settings(job: &StepJob) -> Settings {
    Settings {
        method: job.method.into(),
        dtype: DtypeName::from(job.dtype),
        gradient_checkpointing: job.checkpointing,
        lora_r: job.lora_r,
        lora_alpha: 2.0 * job.lora_r as f64,
        ..Settings::new(job.model.clone().unwrap_or_default(), "", "")
    }
}

/// The model of a job: a stored one as a run opens it, or one of random bf16 weights.
fn model(job: &StepJob, settings: &Settings, device: &Device) -> Result<Decoder> {
    let Some(config) = &job.config else {
        return Base::of(settings, Some(&renderer()?))?.model(settings, device);
    };
    let quant = (job.method == Method::Qlora).then_some(QuantOptions { format: Format::Nf4, double: true });
    let options = LoadOptions { device: device.clone(), quant };
    let model = Decoder::random_as(Config::from_json(config.clone())?, 0, DType::BF16, &options)?;
    // To invent weights takes more memory than to read them: that is no part of what is measured.
    device.release_cache();
    machine::reset_peak();
    Ok(model)
}

fn step(job: &StepJob) -> Result<Value> {
    let device = device::open(&Choice { threads: Some(job.threads), ..Choice::default() })?;
    let settings = settings(job);
    let model = model(job, &settings, &device)?;
    let micro = [batch(job.batch, job.length, model.config().vocab)];
    let mut learner = Learner::new(model, &settings, None)?;
    // To invent weights takes other time than to read them.
    let ready = job.model.is_some().then(|| machine::unix_time() - job.spawned);
    let mut loss = learner.step(&micro, 1, settings.learning_rate)?.loss;
    let times = Times::default();
    if job.trace {
        times.listen(&device);
    }
    let mut seconds = Vec::new();
    for step in 0..job.steps {
        let start = Instant::now();
        loss = learner.step(&micro, step as u64 + 2, settings.learning_rate)?.loss;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let tokens = (job.batch * job.length) as f64;
    Ok(json!({
        "tokens_per_second": tokens / median(&seconds),
        "peak_mib": machine::peak_mib("self"),
        "ready_seconds": ready,
        "loss": loss,
        "kernels": times.json(job.steps),
        "step_ms": 1e3 * seconds.iter().sum::<f64>() / job.steps as f64,
    }))
}

/// How often each kernel ran, and for how long.
#[derive(Default)]
struct Times(Arc<Mutex<BTreeMap<&'static str, (usize, Duration)>>>);

impl Times {
    fn listen(&self, device: &Device) {
        let times = self.0.clone();
        device.hooks().listen(move |launch| {
            let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
            let (count, time) = times.entry(launch.kernel).or_default();
            (*count, *time) = (*count + 1, *time + launch.time);
        });
    }

    /// Launches and milliseconds a step, the longest first.
    fn json(&self, steps: usize) -> Value {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows: Vec<_> = times.iter().collect();
        rows.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
        let row = |(name, (count, time)): (&&str, &(usize, Duration))| json!({"kernel": name, "launches": count / steps, "ms": time.as_secs_f64() * 1e3 / steps as f64});
        rows.into_iter().map(row).collect()
    }
}

/// Tokens of the first, short prompt, and how often the long one is read.
const FIRST_PROMPT: usize = 8;
const REPEATS: usize = 3;

fn decode(job: &DecodeJob) -> Result<Value> {
    let session = Session::open(&model_args(job))?;
    let vocabulary = session.model.config().vocab;
    run_prompt(&session, &ids(FIRST_PROMPT, vocabulary), 1)?;
    let first_token = machine::unix_time() - job.spawned;
    let prompt = ids(job.prompt_tokens, vocabulary);
    let (mut prefill, mut each) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        let (first, rest) = run_prompt(&session, &prompt, job.new_tokens)?;
        prefill.push(first);
        each.push(rest / (job.new_tokens - 1) as f64);
    }
    Ok(json!({
        "prefill_tokens_per_second": job.prompt_tokens as f64 / median(&prefill),
        "decode_tokens_per_second": 1.0 / median(&each),
        "first_token_seconds": first_token,
        "peak_mib": machine::peak_mib("self"),
    }))
}

/// As `kinglet generate` opens the model.
fn model_args(job: &DecodeJob) -> ModelArgs {
    ModelArgs {
        model: job.model.clone(),
        adapter: None,
        quant: Some(job.quant),
        no_double_quant: false,
        chat_template: None,
        raw: false,
        no_mmap: false,
        device: DeviceArgs { threads: Some(job.threads), dtype: Some(job.dtype), ..DeviceArgs::default() },
    }
}

/// Seconds until the first new token, and from there to the last.
fn run_prompt(session: &Session, prompt: &[i32], new_tokens: usize) -> Result<(f64, f64)> {
    let request = Request { prompt, max_new_tokens: new_tokens, stop: &[], sampling: Sampling::default() };
    let start = Instant::now();
    let mut first = None;
    let made = generate(&session.model, &request, &session.ctx, |_| {
        first.get_or_insert_with(Instant::now);
        ControlFlow::Continue(())
    })?;
    match first {
        Some(first) if made.tokens.len() == new_tokens => {
            Ok(((first - start).as_secs_f64(), first.elapsed().as_secs_f64()))
        }
        _ => {
            let made = made.tokens.len();
            Err(Error::invalid(format!("{made} of {new_tokens} tokens came: the model has no more positions")))
        }
    }
}

/// Starts this program as a process that measures.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start() -> Result<super::process::Process> {
    let program = std::env::current_exe().map_err(|e| Error::io("cannot find kinglet itself", e))?;
    let mut command = std::process::Command::new(program);
    super::process::Process::start("kinglet", command.args(["bench", "measure"]))
}

/// The name of a model in a table.
pub(crate) fn model_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::RandomShape;

    /// On a device that counts bytes and runs nothing.
    #[test]
    fn a_qlora_step_of_7b_needs_less_than_8_gib() {
        let job = StepJob {
            model: None,
            config: Some(RandomShape::Qwen2_7b.config()),
            method: Method::Qlora,
            dtype: Dtype::Bf16,
            batch: 1,
            length: 512,
            checkpointing: true,
            lora_r: 16,
            steps: 1,
            threads: 2,
            spawned: 0.0,
            mode: String::new(),
            trace: false,
        };
        let (device, settings) = (Device::meta(), settings(&job));
        let model = model(&job, &settings, &device).unwrap();
        device.reset_peak();
        let mut learner = Learner::new(model, &settings, None).unwrap();
        learner.step(&[batch(job.batch, job.length, 152_064)], 1, 1e-4).unwrap();
        let peak = device.memory().peak;
        // The base alone takes 5.6 GB: 6.5 billion weights in NF4, two tables of 152064 x 3584 in bf16.
        assert!((5_600_000_000..8 << 30).contains(&peak), "{peak}");
    }
}
