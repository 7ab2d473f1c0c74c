//! `kinglet finetune`.

use crate::args::{DeviceArgs, FinetuneArgs, FinetuneOptions};
use crate::console::{next, note, out, quoted};
use crate::demo;
use crate::device::{self, Choice};
use crate::options::gather;
use crate::progress::{Progress, describe};
use crate::render::renderer;
use crate::settings::{settings, start};
use crate::signals::Caught;
use kinglet_models::QuantOptions;
use kinglet_quant::nf4::Format;
use kinglet_tensor::Result;
use kinglet_train::{Base, End, Method, Outcome, RunOptions, Settings, Start, run as train};

/// # Errors
/// When the input is at fault.
pub(crate) fn run(args: FinetuneArgs) -> Result<()> {
    if let Some(device) = args.demo() {
        return demo::run(device);
    }
    let options = gather(args)?;
    let settings = settings(&options)?;
    train_settings(&settings, start(&options), options.dry_run == Some(true)).map(drop)
}

/// Runs `settings`, reports on the way and says what may come next. Returns whether the run is complete.
///
/// # Errors
/// When the input is at fault.
pub(crate) fn train_settings(settings: &Settings, start: Start, dry_run: bool) -> Result<bool> {
    let choice =
        Choice { name: Some(&settings.device), threads: settings.threads, kernels: settings.kernels.as_deref() };
    let device = device::open(&choice)?;
    let caught = Caught::new()?;
    caught.tell(
        "stopping after this step, which is saved; again ends at once, and what came after the last checkpoint is lost",
    );
    let mut progress = Progress::new(settings, dry_run);
    let renderer = renderer()?;
    let options = RunOptions { start, dry_run, stop: caught.asked(), renderer: Some(&renderer) };
    let outcome = train(settings, &device, options, &mut progress);
    progress.finish();
    let outcome = outcome?;
    report(&outcome, settings, &progress)?;
    Ok(matches!(outcome.end, End::Finished | End::AlreadyFinished))
}

impl FinetuneArgs {
    /// The device of the built-in demo, where nothing but that is asked for.
    fn demo(&self) -> Option<DeviceArgs> {
        let FinetuneOptions { device, threads, kernels, .. } = self.options.clone();
        let only_device =
            FinetuneOptions { device: device.clone(), threads, kernels: kernels.clone(), ..FinetuneOptions::default() };
        let asked = device.is_some() || self.options == FinetuneOptions::default();
        let device = DeviceArgs { device, threads, kernels, dtype: None };
        (self.config.is_none() && self.options == only_device && asked).then_some(device)
    }
}

/// Says how the run ended and what may come next.
fn report(outcome: &Outcome, settings: &Settings, progress: &Progress) -> Result<()> {
    let output = quoted(&settings.output);
    let model = quoted(&settings.model);
    match outcome.end {
        End::Planned => {
            out(progress.plan.as_ref().map(describe).unwrap_or_default())?;
            note("a dry run: nothing was trained or written; next: the same command without --dry-run");
            return Ok(());
        }
        End::Stopped if outcome.steps == 0 => {
            out("stopped before step 1; nothing is saved")?;
            return Ok(());
        }
        End::Stopped => {
            out(format!("stopped after step {}; it is saved in {}", outcome.steps, settings.output.display()))?;
            next(format!("finetune --resume --output {output}"));
            return Ok(());
        }
        End::AlreadyFinished => out(format!("the run in {} is finished: nothing to do", settings.output.display()))?,
        End::Finished => out(finished(outcome, settings))?,
    }
    let trained = match settings.method {
        Method::Full => format!("--model {output}"),
        Method::Lora | Method::Qlora => format!("--model {model} --adapter {output}{}", quantized(settings)),
    };
    let trained = trained + if settings.raw { " --raw" } else { "" };
    match &settings.eval_data {
        Some(rows) => next(format!("eval {trained} --data {} --metrics loss,exact-match", quoted(rows))),
        None => next(format!("generate {trained} --prompt 'Hello'")),
    }
    Ok(())
}

/// The options by which generate and eval hold the base as the run did.
fn quantized(settings: &Settings) -> String {
    // The base was opened a moment ago; should it be gone by now, that is no fault of the run.
    let base = renderer().and_then(|renderer| Base::of(settings, Some(&renderer)));
    let quant = base.ok().and_then(|base| base.quant(settings));
    let kind = match quant {
        None => return String::new(),
        Some(QuantOptions { format: Format::Nf4, .. }) => " --quant nf4",
        Some(QuantOptions { format: Format::Fp4, .. }) => " --quant fp4",
    };
    format!("{kind}{}", if settings.no_double_quant { " --no-double-quant" } else { "" })
}

fn finished(outcome: &Outcome, settings: &Settings) -> String {
    let mut text = format!("{} steps done", outcome.steps);
    if let Some(loss) = outcome.loss {
        text += &format!(", loss {loss:.4}");
    }
    if let Some(loss) = outcome.eval_loss {
        text += &format!(", eval loss {loss:.4}");
    }
    text + &format!("; the result is in {}", settings.output.display())
}
