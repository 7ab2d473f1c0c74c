//! A model with what is trained of it, and one optimiser step.

use crate::settings::{Method, Settings};
use kinglet_autograd::{Grads, Options, ParamSet, Tape};
use kinglet_data::TokenBatch;
use kinglet_models::{AdapterMap, AdapterSet, Batch, Ctx, Decoder};
use kinglet_optim::AdamW;
use kinglet_peft::{Adapter, LoraConfig, Targets, full};
use kinglet_tensor::ops::{self, Reduce};
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Error, Result, Tensor};
use std::path::Path;
use std::sync::Arc;

/// A model in training: what a run makes its steps with, for benchmarks too.
pub struct Learner {
    pub(crate) model: Decoder,
    pub(crate) params: Arc<ParamSet>,
    pub(crate) map: Arc<AdapterMap>,
    /// The adapter's settings as PEFT has them; `None` in full fine-tuning.
    pub(crate) adapter_config: Option<serde_json::Value>,
    pub(crate) adamw: AdamW,
    grads: Grads,
    dtype: DType,
    checkpoint: bool,
    seed: u64,
}

/// A micro-batch on the device.
pub(crate) struct Input {
    batch: Batch,
    targets: ops::Targets,
}

/// What a step that was launched will have found.
pub(crate) struct Launched {
    /// The losses of its micro-batches, each its share of the step's: `[micro-batches]`, f32.
    losses: Tensor,
    /// The norm of the gradient before clipping: one element, f32.
    norm: Tensor,
}

/// What a step found. When one of the two is not finite, nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// The mean over the step's target tokens, before the update.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
}

impl Learner {
    /// `model` with what the settings train of it. An adapter is read from the folder `adapter`, or is a new one.
    ///
    /// # Errors
    /// When the adapter cannot be read or does not fit the model, or memory runs out.
    pub fn new(model: Decoder, settings: &Settings, adapter: Option<&Path>) -> Result<Self> {
        let (params, map, adapter_config) = match settings.method {
            Method::Full => {
                let (params, map) = full(&model)?;
                (Arc::new(params), Arc::new(map), None)
            }
            Method::Lora | Method::Qlora => {
                let adapter = match adapter {
                    Some(folder) => Adapter::load(folder, &model)?,
                    None => Adapter::new(lora_config(settings), &model, settings.seed)?,
                };
                let config = adapter.config_json();
                (adapter.params, adapter.map, Some(config))
            }
        };
        let model = model.forget(&map)?; // before there are moments and gradients
        let adamw = AdamW::new(&params, settings.adamw())?;
        let grads = Grads::new(&params)?;
        Ok(Learner {
            model,
            params,
            map,
            adapter_config,
            adamw,
            grads,
            dtype: settings.dtype.into(),
            checkpoint: settings.gradient_checkpointing,
            seed: settings.seed,
        })
    }

    /// The context of an evaluation.
    pub(crate) fn eval_ctx(&self) -> Ctx {
        Ctx::eval(self.dtype).with_adapters(self.adapters())
    }

    /// What is trained, for a forward pass or a merge. To be dropped before the next step.
    pub(crate) fn adapters(&self) -> AdapterSet {
        AdapterSet { map: self.map.clone(), params: self.params.clone() }
    }

    /// The context of micro-batch `micro` of step `step`: everything random in it hangs on these two numbers.
    fn train_ctx(&self, step: u64, micro: usize) -> Ctx {
        Ctx {
            train: true,
            key: Key::derive(&[self.seed, step, micro as u64]),
            checkpoint: self.checkpoint,
            ..self.eval_ctx()
        }
    }

    /// Step number `step` (from 1) at learning rate `rate` over all of `micro`. The device's threads are entered once. Batches
    /// and numbers go to the device first; then nothing waits for it until the step is done.
    ///
    /// # Errors
    /// When a batch does not fit the model, or memory runs out.
    pub fn step(&mut self, micro: &[TokenBatch], step: u64, rate: f64) -> Result<StepResult> {
        let device = self.model.device().clone();
        device.enter(|| {
            let inputs = self.upload(micro)?;
            self.adamw.begin(rate)?;
            self.launch(&inputs, step)?.read()
        })
    }

    /// The batches of a step where kernels read them.
    pub(crate) fn upload(&self, micro: &[TokenBatch]) -> Result<Vec<Input>> {
        let device = self.model.device();
        let input = |batch: &TokenBatch| {
            let targets = ops::Targets::new(&batch.targets, device)?;
            Ok(Input { batch: Batch::new(&batch.ids, &batch.segments, device)?, targets })
        };
        micro.iter().map(input).collect()
    }

    /// All kernels of a step, whose numbers AdamW has. Neither reads from the device nor writes to it.
    pub(crate) fn launch(&mut self, inputs: &[Input], step: u64) -> Result<Launched> {
        let tape = Options { record: true, recompute: true, check: false };
        let losses = self.accumulate(inputs, step, tape).map_err(|(_, e)| e)?;
        self.update(losses)
    }

    /// One step of the optimiser by what `grads` hold, whose losses, one a micro-batch, were `losses`. A loss can overflow
    /// where its gradient does not, so both are looked at before anything is changed.
    fn update(&mut self, losses: Tensor) -> Result<Launched> {
        let loss = ops::reduce(Reduce::Sum, &losses, &[0], false)?;
        let params = Arc::get_mut(&mut self.params).ok_or_else(held)?;
        let norm = self.adamw.apply(params, &self.grads, Some(&loss))?;
        Ok(Launched { losses, norm })
    }

    /// The losses `[micro-batches]` and, in `grads`, the gradient of the mean over all target tokens of `inputs`. An error
    /// comes with the micro-batch that it arose in.
    fn accumulate(&mut self, inputs: &[Input], step: u64, options: Options) -> Result<Tensor, (usize, Error)> {
        self.grads.zero().map_err(|e| (0, e))?;
        let targets: usize = inputs.iter().map(|input| input.targets.count()).sum();
        // They have their place before anything else: what a micro-batch leaves behind would lie in the middle of the memory
        // that the next one needs.
        let mut losses = Tensor::zeros(&[inputs.len()], DType::F32, self.model.device()).map_err(|e| (0, e))?;
        for (i, input) in inputs.iter().enumerate() {
            let ctx = self.train_ctx(step, i);
            let loss = self.backward(input, targets, &ctx, options).map_err(|e| (i, e))?;
            let place = losses.as_mut().ok_or_else(held).and_then(|all| all.into_part(i, loss.shape()));
            place.and_then(|place| ops::copy_into(&loss, place)).map_err(|e| (i, e))?;
        }
        Ok(losses)
    }

    /// Adds one micro-batch's gradient; returns its share of the loss.
    fn backward(&mut self, input: &Input, divisor: usize, ctx: &Ctx, options: Options) -> Result<Tensor> {
        let tape = Tape::with(options);
        let loss = self.model.loss(&tape, &input.batch, &input.targets, divisor as f32, ctx)?;
        tape.backward(&loss, &mut self.grads)?;
        Ok(loss.value().clone())
    }

    /// Why a step was not finite: runs it again with a look at every value and gradient. Nothing was updated since, so
    /// the same numbers come.
    pub(crate) fn explain(&mut self, micro: &[TokenBatch], step: u64) -> Error {
        let tape = Options { record: true, recompute: true, check: true };
        const ADVICE: &str = "try a lower --learning-rate, or look at these rows";
        let inputs = match self.upload(micro) {
            Ok(inputs) => inputs,
            Err(error) => return error,
        };
        let Err((i, error)) = self.accumulate(&inputs, step, tape) else {
            return Error::non_finite(format!(
                "step {step}: the loss or the norm of the gradient is not finite, its parts are: {ADVICE}"
            ));
        };
        if !error.is_non_finite() {
            return error;
        }
        let mut lines = micro[i].lines.clone();
        lines.sort_unstable();
        let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
        let place = format!("step {step}, micro-batch {}, data lines {}", i + 1, lines.join(", "));
        Error::non_finite(format!("{place}: {error}: {ADVICE}"))
    }
}

impl Launched {
    /// Waits until the step is done.
    pub(crate) fn read(&self) -> Result<StepResult> {
        if self.norm.device().is_meta() {
            return Ok(StepResult { loss: 0.0, grad_norm: 0.0 });
        }
        let loss = self.losses.to_vec::<f32>()?.into_iter().map(f64::from).sum();
        Ok(StepResult { loss, grad_norm: self.norm.item()?.into() })
    }
}

fn held() -> Error {
    Error::aliased("the parameters are held elsewhere")
}

/// The adapter that the settings ask for.
fn lora_config(settings: &Settings) -> LoraConfig {
    LoraConfig {
        r: settings.lora_r,
        lora_alpha: settings.lora_alpha,
        lora_dropout: settings.lora_dropout,
        target_modules: Targets::parse(&settings.target_modules),
        use_rslora: settings.use_rslora,
        modules_to_save: settings.modules_to_save.clone(),
        base_model_name_or_path: Some(settings.model.display().to_string()),
        ..LoraConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Base;
    use crate::rows::Rows;
    use kinglet_tensor::{CpuOptions, Device};

    #[test]
    fn a_loss_that_is_not_finite_changes_nothing() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/train");
        let settings =
            Settings::new(fixtures.join("base-llama"), fixtures.join("llama-lora/data.jsonl"), fixtures.join("none"));
        let base = Base::of(&settings, None).unwrap();
        let device = Device::cpu(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let mut learner = Learner::new(base.model(&settings, &device).unwrap(), &settings, None).unwrap();
        let rows = Rows::new(&settings, &base).unwrap();
        let inputs = learner.upload(&rows.feed().step(0).unwrap()).unwrap();
        let tape = Options { record: true, recompute: true, check: false };
        let losses = learner.accumulate(&inputs, 1, tape).map_err(|(_, e)| e).unwrap();
        let state = |l: &Learner| {
            let [m, v] = l.adamw.moments();
            [l.params.values(), m, v].map(|t| t.to_vec::<f32>().unwrap())
        };
        let before = state(&learner);
        learner.adamw.begin(0.1).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let result = learner.update(Tensor::full(bad, &[1], DType::F32, &device).unwrap()).unwrap().read().unwrap();
            assert!(result.grad_norm > 0.0 && result.grad_norm.is_finite(), "the gradient alone is no reason to stop");
            assert_eq!(state(&learner), before);
        }
        learner.update(losses).unwrap();
        assert_ne!(state(&learner), before);
    }
}
