//! What the tests share: fixtures, folders to write, devices, logs.

use kinglet_tensor::{Device, Result};
use kinglet_train::{Outcome, Reporter, RunOptions, Settings, Silent, Start, run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/train")
}

/// A folder for one test, which does not exist yet.
pub(crate) fn output(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("train").join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).unwrap();
    }
    path
}

pub(crate) fn device(threads: usize) -> Device {
    kinglet_oracle::device(threads)
}

/// The settings of a case of the fixtures.
pub(crate) fn case(name: &str, output: &Path) -> (Settings, Value) {
    let folder = fixtures().join(name);
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap()).unwrap();
    let mut settings =
        Settings::new(fixtures().join(golden["base"].as_str().unwrap()), folder.join("data.jsonl"), output);
    settings.method = serde_json::from_value(golden["method"].clone()).unwrap();
    settings.init_adapter = Some(folder.join("adapter-init"));
    settings.learning_rate = golden["learning_rate"].as_f64().unwrap();
    settings.lr_scheduler_type = serde_json::from_value(golden["scheduler"].clone()).unwrap();
    settings.warmup_steps = golden["warmup_steps"].as_u64().unwrap();
    settings.weight_decay = golden["weight_decay"].as_f64().unwrap();
    settings.gradient_accumulation_steps = golden["accumulation"].as_u64().unwrap() as usize;
    settings.per_device_train_batch_size = golden["batch"].as_u64().unwrap() as usize;
    settings.max_grad_norm = golden["max_grad_norm"].as_f64().unwrap();
    settings.max_steps = golden["max_steps"].as_u64();
    settings.no_shuffle = true;
    settings.save_steps = 0;
    (settings, golden)
}

pub(crate) fn train(settings: &Settings, start: Start, threads: usize) -> Result<Outcome> {
    train_with(settings, start, threads, &mut Silent)
}

pub(crate) fn train_with(
    settings: &Settings,
    start: Start,
    threads: usize,
    reporter: &mut dyn Reporter,
) -> Result<Outcome> {
    let stop = AtomicBool::new(false);
    run(settings, &device(threads), RunOptions { start, dry_run: false, stop: &stop, renderer: None }, reporter)
}

/// The rows of a run's log.
pub(crate) fn log(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The log without what depends on the clock.
pub(crate) fn timeless_log(output: &Path) -> Vec<Value> {
    let mut rows = log(output);
    for row in &mut rows {
        row.as_object_mut().unwrap().remove("tokens_per_second");
    }
    rows
}
