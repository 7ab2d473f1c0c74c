//! The built-in demo, what `kinglet` does without any option: a small Llama that kinglet pretrained learns to name the
//! archive section of a software package, by QLoRA, in about a minute. On the virtual GPU a short part of it.

use crate::args::{DeviceArgs, EvalArgs, Metric, ModelArgs, Quant};
use crate::console::{in_quotes, next, note, out};
use crate::settings::make_absolute;
use crate::{eval, finetune};
use kinglet_data::{Dataset, RowContent};
use kinglet_models::fs::{Disk, is_temporary, read_text, recover_inside, verify_manifest, write_folder_atomic};
use kinglet_tensor::{Error, Result};
use kinglet_train::{Settings, Start};
use std::path::{Path, PathBuf};

/// Where the demo writes; a second run replaces it.
const FOLDER: &str = "kinglet-demo";

/// Base and data, made by `scripts/make-demo-model` and `scripts/split-data`.
macro_rules! embedded {
    ($($name:literal: $path:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../examples/", $path)))),*]
    };
}
const MODEL: &[(&str, &[u8])] = embedded! {
    "config.json": "demo-model/config.json",
    "model.safetensors": "demo-model/model.safetensors",
    "tokenizer.json": "demo-model/tokenizer.json",
    "tokenizer_config.json": "demo-model/tokenizer_config.json",
    "chat_template.jinja": "demo-model/chat_template.jinja",
};
const DATA: &[(&str, &[u8])] = embedded! {
    "train.jsonl": "data/section-train.jsonl",
    "valid.jsonl": "data/section-valid.jsonl",
};

/// Where the short runs go, beside the demo's adapter.
const EMULATED: &str = "emulated";
const BESIDE: &str = "emulated-beside-cpu";

/// Ten sections, evenly spread over the rows.
const GUESSING: f64 = 10.0;

/// # Errors
/// When `./kinglet-demo` holds something that no demo wrote, or cannot be written.
pub(crate) fn run(device: DeviceArgs) -> Result<()> {
    let folder = PathBuf::from(FOLDER);
    check_own(&folder)?;
    let (model, data, adapter) = (folder.join("model"), folder.join("data"), folder.join("adapter"));
    note("the built-in demo: a small Llama learns to name the section of a software package from its description");
    unpack(&model, MODEL)?;
    unpack(&data, DATA)?;
    let mut settings = Settings {
        learning_rate: 3e-3,
        max_steps: Some(180),
        max_length: 384,
        logging_steps: 20,
        save_steps: 0,
        seed: 1,
        device: device.device.clone().unwrap_or_else(|| "cpu".into()),
        threads: device.threads,
        kernels: device.kernels.clone(),
        ..Settings::new(&model, data.join("train.jsonl"), &adapter)
    };
    make_absolute(&mut settings); // as those of any run, so that it can be resumed like any
    if settings.device == "emulated" {
        return run_emulated(settings);
    }
    let before = exact_match(&model, None, &data, &device)?;
    if !finetune::train_settings(&settings, Start::Overwrite, false)? {
        return Ok(());
    }
    let after = exact_match(&model, Some(&adapter), &data, &device)?;
    out(format!(
        "exact match on {} unseen descriptions: {before:.0}% before, {after:.0}% after fine-tuning (guessing: \
         {GUESSING:.0}%)",
        rows("valid.jsonl")?.rows().len()
    ))?;
    note("on your own data: kinglet finetune --model M --data F.jsonl --output DIR");
    next(format!(
        "generate --model {FOLDER}/model --adapter {FOLDER}/adapter --quant nf4 --prompt {}",
        in_quotes(&question()?)
    ));
    Ok(())
}

/// What the virtual GPU does of the demo in about a minute: two steps of one row, and the same two on the CPU.
fn run_emulated(settings: Settings) -> Result<()> {
    note(
        "on the virtual GPU, which checks every access of every thread, two steps of one row; then the same on the CPU",
    );
    let short = Settings { max_steps: Some(2), per_device_train_batch_size: 1, logging_steps: 1, ..settings };
    let mut losses = Vec::new();
    for (device, output) in [("emulated", EMULATED), ("cpu", BESIDE)] {
        note(format!("--device {device}"));
        let kernels = short.kernels.clone().filter(|_| device == "emulated");
        let output = Path::new(FOLDER).join(output);
        let run = Settings { device: device.into(), kernels, output, ..short.clone() };
        if !finetune::train_settings(&run, Start::Overwrite, false)? {
            return Ok(());
        }
        losses.push(losses_of(&run.output)?);
    }
    let apart = losses[0].iter().zip(&losses[1]).map(|(a, b)| (a - b).abs() / b.abs());
    let gap = apart.fold(0.0, |gap: f64, next| if next > gap || next.is_nan() { next } else { gap });
    let shown = |losses: &[f64]| losses.iter().map(|l| format!("{l:.6}")).collect::<Vec<_>>().join(" ");
    out(format!("losses on the virtual GPU {}, on the CPU {}: {gap:.1e} apart", shown(&losses[0]), shown(&losses[1])))?;
    match losses.iter().all(|l| l.len() == 2) && gap <= CLOSE {
        true => Ok(()),
        false => Err(Error::invalid("the virtual GPU and the CPU do not agree: a kernel is wrong")),
    }
}

/// How far losses of two devices may be apart in f32, relative.
const CLOSE: f64 = 1e-5;

/// The loss of each step of the run in `output`.
fn losses_of(output: &Path) -> Result<Vec<f64>> {
    let path = output.join("log.jsonl");
    let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["loss"].as_f64();
    Ok(read_text(&path, "the log")?.lines().filter_map(loss).collect())
}

/// The user's text of the first unseen row.
fn question() -> Result<String> {
    match rows("valid.jsonl")?.rows().first().map(|row| &row.content) {
        Some(RowContent::Pair { prompt, .. }) => Ok(prompt.clone()),
        _ => Err(Error::invalid("valid.jsonl: the first row has no prompt")),
    }
}

fn rows(name: &str) -> Result<Dataset> {
    Dataset::from_bytes(&read(DATA, name)?, name)
}

fn read(files: &[(&str, &[u8])], name: &str) -> Result<Vec<u8>> {
    let found = files.iter().find(|(known, _)| *known == name);
    found.map(|(_, bytes)| bytes.to_vec()).ok_or_else(|| Error::invalid(format!("{name} is not embedded")))
}

/// The share of right answers in percent, on rows that are not in the training data.
fn exact_match(model: &Path, adapter: Option<&Path>, data: &Path, device: &DeviceArgs) -> Result<f64> {
    let args = EvalArgs {
        model: ModelArgs {
            model: model.into(),
            adapter: adapter.map(Into::into),
            quant: Some(Quant::Nf4),
            no_double_quant: false,
            chat_template: None,
            raw: false,
            no_mmap: false,
            device: device.clone(),
        },
        data: data.join("valid.jsonl"),
        metrics: vec![Metric::ExactMatch],
        max_length: 1024,
        batch_size: 8,
        max_new_tokens: 8,
        json: false,
    };
    let measured = eval::measured(&args)?;
    let share = measured.get("exact_match").and_then(serde_json::Value::as_f64);
    Ok(100.0 * share.ok_or_else(|| Error::invalid("the evaluation gave no exact match"))?)
}

fn unpack(folder: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    write_folder_atomic(&Disk, folder, true, |folder| {
        files.iter().try_for_each(|(name, bytes)| folder.write_bytes(name, bytes))
    })
}

/// Refuses a folder with contents of which no demo is the author. A demo that was killed before its model was whole has
/// left a temporary at most.
fn check_own(folder: &Path) -> Result<()> {
    let names: Vec<String> = match std::fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()
            .map_err(|e| Error::io(folder.display(), e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Err(foreign(folder)),
        Err(e) => return Err(Error::io(folder.display(), e)),
    };
    if names.iter().all(|name| is_temporary(name)) {
        return recover_inside(&Disk, folder).map(drop);
    }
    let known =
        |name: &String| is_temporary(name) || ["model", "data", "adapter", EMULATED, BESIDE].contains(&name.as_str());
    if names.iter().all(known) && verify_manifest(&Disk, &folder.join("model")).is_ok() {
        return recover_inside(&Disk, folder).map(drop);
    }
    Err(foreign(folder))
}

fn foreign(folder: &Path) -> Error {
    let shown = folder.display();
    Error::invalid(format!("./{shown} is not the demo's: move it away, or run the demo in another folder"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_description_is_in_both_sets() {
        let prompts = |name: &str| -> Vec<String> {
            let prompt = |row: &kinglet_data::Row| match &row.content {
                RowContent::Pair { prompt, .. } => prompt.clone(),
                other => panic!("{name}: {other:?}"),
            };
            rows(name).unwrap().rows().iter().map(prompt).collect()
        };
        let (seen, unseen) = (prompts("train.jsonl"), prompts("valid.jsonl"));
        let seen: HashSet<&String> = seen.iter().collect();
        assert!(unseen.len() >= 100 && !unseen.iter().any(|prompt| seen.contains(prompt)));
    }

    #[test]
    fn the_model_and_its_tokenizer_are_small() {
        let bytes: usize = MODEL.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= 3_000_000, "{bytes} bytes");
    }
}
