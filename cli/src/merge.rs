//! `kinglet merge`.

use crate::args::{Dtype, MergeArgs};
use crate::console::{next, note, out, quoted, warn};
use crate::device;
use crate::render::renderer;
use crate::session::{adapter, kept_template, warn_of_unused};
use crate::target::Target;
use kinglet_models::fs::Folder;
use kinglet_models::{Ctx, LoadOptions};
use kinglet_peft::{MergeOptions, logit_gap, merge};
use kinglet_tensor::{DType, Device, Error, Result};
use kinglet_train::{Base, OpenOptions};

/// The text on which the merged model is compared; enough for every layer to have its say.
const PROBE: &str = "The kinglet is a very small bird that wears a crown. What else is known about it?";

/// # Errors
/// When the input is at fault.
pub(crate) fn run(args: &MergeArgs) -> Result<()> {
    let target = Target::new(&args.output, args.overwrite, &[&args.model, &args.adapter])?;
    let device = device::open(&device::Choice { threads: args.threads, ..device::Choice::default() })?;
    let load = LoadOptions { device: device.clone(), quant: None };
    let template = kept_template(&args.adapter);
    let renderer = renderer()?;
    let open = OpenOptions { renderer: Some(&renderer), ..OpenOptions::default() };
    let base = Base::open(&args.model, OpenOptions { chat_template: template.as_deref(), ..open })?;
    if base.source.gguf.is_some() && base.is_quantized() {
        let shown = args.model.display();
        warn(format!("{shown}: is quantised: the adapter is merged into its decoded weights, not the original ones"));
    }
    let model = base.load(&load)?;
    warn_of_unused(&base, &model);
    let trained = adapter(&args.adapter, &model)?.set();
    let dtype = args.dtype.map(|dtype| match dtype {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
    });
    let options = MergeOptions { dtype, dequantize: args.dequantize, ..MergeOptions::default() };
    target.write(|folder| {
        merge(&model, &trained, &options, folder)?;
        write_companions(&base, folder)?;
        base.check_unchanged()
    })?;
    note(format!("saved {}", args.output.display()));
    let gap = gap_after_reload(args, &device, (&base, open), (&model, &Ctx::eval(DType::F32).with_adapters(trained)))?;
    let rounded =
        if dtype == Some(DType::F32) { "" } else { ", from rounding the weights; --dtype f32 keeps them whole" };
    out(format!("largest logit gap to base and adapter: {gap:.3e}{rounded}"))?;
    next(format!("generate --model {} --prompt 'Hello'", quoted(&args.output)));
    Ok(())
}

/// Reads the written folder again and compares it with what it was made from.
fn gap_after_reload(
    args: &MergeArgs,
    device: &Device,
    (base, open): (&Base, OpenOptions<'_>),
    expected: (&kinglet_models::Decoder, &Ctx),
) -> Result<f32> {
    let merged = Base::open(&args.output, open)?;
    let model = merged.load(&LoadOptions { device: device.clone(), quant: None })?;
    let ids: Vec<i32> = base.tokenizer.encode(PROBE, true)?.into_iter().map(|id| id as i32).collect();
    let gap = logit_gap(expected, (&model, &Ctx::eval(DType::F32)), &ids)?;
    if gap.is_finite() { Ok(gap) } else { Err(Error::non_finite(format!("{}: the logits are", args.output.display()))) }
}

/// The files of a model folder beside configuration and weights.
///
/// # Errors
/// When the file system fails.
pub(crate) fn write_companions(base: &Base, folder: &mut Folder<'_>) -> Result<()> {
    if let Some(path) = &base.source.files.generation_config {
        folder.copy("generation_config.json", path)?;
    }
    base.tokenizer.files().iter().try_for_each(|(name, bytes)| folder.write_bytes(name, bytes))
}
