//! What the commands share: a device, a model on it, and the context to run it in.

use crate::args::{DeviceArgs, Dtype, ModelArgs, Quant};
use crate::console::{quoted, warn};
use crate::device;
use crate::render::renderer;
use kinglet_models::{Ctx, Decoder, LoadOptions, QuantOptions};
use kinglet_peft::Adapter;
use kinglet_quant::nf4::Format;
use kinglet_tensor::{DType, Error, Result};
use kinglet_train::{Base, OpenOptions, Settings};
use std::path::{Path, PathBuf};

/// A loaded model.
pub(crate) struct Session {
    pub(crate) base: Base,
    pub(crate) model: Decoder,
    /// With the adapter in force, if one was asked for.
    pub(crate) ctx: Ctx,
}

impl Session {
    pub(crate) fn open(args: &ModelArgs) -> Result<Self> {
        let device = device::open(&device::Choice {
            name: args.device.device.as_deref(),
            threads: args.device.threads,
            kernels: args.device.kernels.as_deref(),
        })?;
        let kept = args.adapter.as_deref().and_then(kept_template);
        let renderer = renderer()?;
        let options = OpenOptions {
            chat_template: args.chat_template.as_deref().or(kept.as_deref()),
            raw: args.raw,
            renderer: Some(&renderer),
            no_mmap: args.no_mmap,
            ..OpenOptions::default()
        };
        if args.no_double_quant && matches!(args.quant, None | Some(Quant::None)) {
            return Err(Error::invalid("--no-double-quant has no effect without --quant nf4 or fp4: leave it out"));
        }
        if args.raw && args.chat_template.is_some() {
            return Err(Error::invalid("--raw uses no chat template: leave out --chat-template"));
        }
        let base = Base::open(&args.model, options)?;
        let quant = quantization(args.quant, !args.no_double_quant);
        if quant.is_some() {
            check_requantisation(&base)?;
        }
        let model = base.load(&LoadOptions { device, quant })?;
        warn_of_unused(&base, &model);
        let mut ctx = Ctx::eval(compute_dtype(&args.device));
        if let Some(folder) = &args.adapter {
            ctx = ctx.with_adapters(adapter(folder, &model)?.set());
        }
        Ok(Session { base, model, ctx })
    }
}

impl ModelArgs {
    /// The options that name the model, for the next command.
    pub(crate) fn shown(&self) -> String {
        let mut shown = format!("--model {}", quoted(&self.model));
        if let Some(folder) = &self.adapter {
            shown += &format!(" --adapter {}", quoted(folder));
        }
        match self.quant {
            Some(Quant::Nf4) => shown += " --quant nf4",
            Some(Quant::Fp4) => shown += " --quant fp4",
            Some(Quant::None) | None => {}
        }
        if self.raw {
            shown += " --raw";
        }
        if let Some(file) = &self.chat_template {
            shown += &format!(" --chat-template {}", quoted(file));
        }
        shown
    }
}

/// Warns of stored tensors that the model does not have.
pub(crate) fn warn_of_unused(base: &Base, model: &Decoder) {
    if let Some(text) = base.unused_warning(model) {
        warn(text);
    }
}

/// Quantising what is quantised already loses more than either alone.
///
/// # Errors
/// When the base is in bitsandbytes' blocks, which stay as they are.
pub(crate) fn check_requantisation(base: &Base) -> Result<()> {
    if !base.is_quantized() {
        return Ok(());
    }
    let shown = base.source.path.display();
    if base.source.gguf.is_none() {
        return Err(Error::invalid(format!(
            "{shown}: is in 4 bits already: leave out --quant, or give the original model"
        )));
    }
    warn(format!("{shown}: is quantised already: its decoded weights are rounded a second time"));
    Ok(())
}

/// The chat template that an adapter was trained with: kept in its folder, it goes before the base's own.
pub(crate) fn kept_template(adapter: &Path) -> Option<PathBuf> {
    Some(adapter.join("chat_template.jinja")).filter(|path| path.is_file())
}

/// The adapter in a PEFT folder, a checkpoint or the output of a run.
///
/// # Errors
/// When there is none, or it does not fit the model.
pub(crate) fn adapter(folder: &Path, model: &Decoder) -> Result<Adapter> {
    check_is_adapter(folder)?;
    Adapter::load(folder, model)
}

/// Says of a folder without an adapter what it is instead.
///
/// # Errors
/// When it is a whole model, or a run that is not finished.
pub(crate) fn check_is_adapter(folder: &Path) -> Result<()> {
    let has = |name: &str| folder.join(name).exists();
    if !has(kinglet_peft::CONFIG_FILE) {
        let shown = folder.display();
        if has("config.json") {
            return Err(Error::invalid(format!("{shown}: a whole model, not an adapter: give it as --model")));
        }
        if has(Settings::FILE) {
            let what = "the run is not finished: give one of its checkpoint-N folders";
            return Err(Error::invalid(format!("{shown}: {what}, or go on with finetune --resume --output {shown}")));
        }
    }
    Ok(())
}

/// How `--quant` and `--no-double-quant` ask the linear layers to be held.
pub(crate) fn quantization(quant: Option<Quant>, double: bool) -> Option<QuantOptions> {
    let format = match quant? {
        Quant::Nf4 => Format::Nf4,
        Quant::Fp4 => Format::Fp4,
        Quant::None => return None,
    };
    Some(QuantOptions { format, double })
}

fn compute_dtype(args: &DeviceArgs) -> DType {
    match args.dtype {
        Some(Dtype::Bf16) => DType::BF16,
        Some(Dtype::F32) | None => DType::F32,
    }
}
