//! A run that was stopped and resumed, on another number of threads, ends with the bytes of one that was not.

use crate::common::{case, device, fixtures, output, timeless_log, train};
use kinglet_train::{End, Method, Plan, Reporter, RunOptions, Settings, Start, StepRow, run};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Everything at once: shuffle, dropout, accumulation, packing, warm-up, an epoch boundary, decay.
fn settings(method: Method, output: &Path) -> Settings {
    let (mut settings, _) = case("llama-lora", output);
    settings.method = method;
    settings.init_adapter = None;
    settings.lora_r = 4;
    settings.lora_dropout = 0.1;
    settings.no_shuffle = false;
    settings.packing = true;
    settings.max_length = 96;
    settings.gradient_accumulation_steps = 2;
    settings.warmup_steps = 3;
    settings.weight_decay = 0.01;
    settings.max_steps = Some(9);
    settings.save_steps = 4;
    settings.save_total_limit = Some(2);
    settings
}

/// Sets the flag after a number of steps, as a signal would.
struct StopAfter<'a>(u64, &'a AtomicBool);

impl Reporter for StopAfter<'_> {
    fn stepped(&mut self, row: &StepRow, _: &Plan) {
        if row.step == self.0 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // The log has the clock in it, and settings name their folder.
        if path.is_file()
            && !["log.jsonl", "kinglet_settings.json", "kinglet_state.json", "manifest.json"].contains(&&*name)
        {
            files.push((name, std::fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

fn resumes_bit_for_bit(method: Method, name: &str) {
    goes_on_bit_for_bit(name, |output| settings(method, output), || ());
}

/// A run of `settings` that stops after three steps goes on to the bytes of one that does not, whatever `meanwhile` does.
fn goes_on_bit_for_bit(name: &str, settings: impl Fn(&Path) -> Settings, meanwhile: impl FnOnce()) {
    let (whole, cut) = (output(&format!("whole-{name}")), output(&format!("cut-{name}")));
    let outcome = train(&settings(&whole), Start::New, 2).unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Finished, 9));

    let stop = AtomicBool::new(false);
    let options = RunOptions { start: Start::New, dry_run: false, stop: &stop, renderer: None };
    let outcome = run(&settings(&cut), &device(1), options, &mut StopAfter(3, &stop)).unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Stopped, 3));
    assert!(!cut.join("adapter_config.json").exists() && !cut.join("config.json").exists());
    meanwhile();
    let outcome = train(&settings(&cut), Start::Resume, 3).unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Finished, 9));

    assert_eq!(timeless_log(&whole), timeless_log(&cut));
    assert_eq!(files(&whole), files(&cut));
    assert_eq!(files(&whole.join("checkpoint-9")), files(&cut.join("checkpoint-9")));
    assert!(files(&whole.join("checkpoint-9")).iter().any(|f| f.0 == "kinglet_state.safetensors"));
}

#[test]
fn lora() {
    resumes_bit_for_bit(Method::Lora, "lora");
}

#[test]
fn qlora() {
    resumes_bit_for_bit(Method::Qlora, "qlora");
}

#[test]
fn full() {
    resumes_bit_for_bit(Method::Full, "full");
}

/// The state goes into the buffers that the run has anyway. (Of an adapter it would not show beside what a step takes.)
#[test]
fn a_resumed_run_takes_no_more_memory() {
    let new = |name: &str| {
        let mut settings = settings(Method::Full, &output(&format!("memory-{name}")));
        // One short row a step: parameters are most of what there is, and all steps take as much.
        settings.data = output(&format!("memory-{name}-rows")).with_extension("jsonl");
        std::fs::write(&settings.data, "{\"prompt\": \"a\", \"completion\": \"b\"}\n".repeat(4)).unwrap();
        (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) = (1, 1);
        (settings.max_steps, settings.packing, settings.raw) = (Some(3), false, true);
        settings
    };
    let peak = |settings: &Settings, start, last| {
        let (device, stop) = (device(2), AtomicBool::new(false));
        let options = RunOptions { start, dry_run: false, stop: &stop, renderer: None };
        let outcome = run(settings, &device, options, &mut StopAfter(last, &stop)).unwrap();
        (outcome.steps, device.memory().peak)
    };
    let (whole, cut) = (new("whole"), new("cut"));
    let (_, through) = peak(&whole, Start::New, 9);
    assert_eq!(peak(&cut, Start::New, 1), (1, through));
    assert_eq!(peak(&cut, Start::Resume, 9), (3, through));
}

/// A copy of the adapter that the fixtures start from, with scales of their own in two modules.
fn init_adapter(name: &str) -> PathBuf {
    let (from, to) = (fixtures().join("llama-lora/adapter-init"), output(name));
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors")).unwrap();
    std::fs::copy(from.join("adapter_config.json"), to.join("adapter_config.json")).unwrap();
    set_alphas(&to, json!({"layers.0.self_attn.q_proj": 5, "layers.1.mlp.up_proj": 0.75}));
    to
}

fn set_alphas(folder: &Path, alphas: Value) {
    let path = folder.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["alpha_pattern"] = alphas;
    std::fs::write(path, config.to_string()).unwrap();
}

fn from_adapter(init: &Path, output: &Path) -> Settings {
    Settings { init_adapter: Some(init.into()), ..settings(Method::Lora, output) }
}

#[test]
fn the_adapter_that_a_run_began_with_is_not_needed_again() {
    let init = init_adapter("init-gone");
    goes_on_bit_for_bit(
        "init-gone-run",
        |output| from_adapter(&init, output),
        || {
            std::fs::remove_dir_all(&init).unwrap();
        },
    );
}

#[test]
fn other_scales_in_the_adapter_that_a_run_began_with_change_nothing() {
    let init = init_adapter("init-changed");
    goes_on_bit_for_bit(
        "init-changed-run",
        |output| from_adapter(&init, output),
        || {
            set_alphas(&init, json!({"q_proj": 64}));
        },
    );
}

#[test]
fn rows_after_the_checkpoint_are_made_again() {
    let (whole, cut) = (output("rows-whole"), output("rows-cut"));
    train(&settings(Method::Lora, &whole), Start::New, 1).unwrap();
    train(&settings(Method::Lora, &cut), Start::New, 1).unwrap();
    // As if the process had been killed after step 9 was logged and before it was saved, in the middle of a row.
    std::fs::remove_dir_all(cut.join("checkpoint-9")).unwrap();
    std::fs::remove_file(cut.join("adapter_config.json")).unwrap();
    let log = std::fs::read_to_string(cut.join("log.jsonl")).unwrap();
    std::fs::write(cut.join("log.jsonl"), &log[..log.len() - 20]).unwrap();
    let outcome = train(&settings(Method::Lora, &cut), Start::Resume, 1).unwrap();
    assert_eq!(outcome.end, End::Finished);
    assert_eq!(timeless_log(&whole), timeless_log(&cut));
    assert_eq!(files(&whole), files(&cut));
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    #[derive(Default)]
    struct Hears(Vec<String>, Option<u64>);
    impl Reporter for Hears {
        fn warning(&mut self, text: &str) {
            self.0.push(text.into());
        }
        fn resumed(&mut self, done: u64) {
            self.1 = Some(done);
        }
    }
    let folder = output("damaged");
    let mut all = settings(Method::Lora, &folder);
    all.save_total_limit = None;
    train(&all, Start::New, 1).unwrap();
    let state = folder.join("checkpoint-9/kinglet_state.safetensors");
    let mut bytes = std::fs::read(&state).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&state, bytes).unwrap();
    std::fs::remove_file(folder.join("adapter_config.json")).unwrap(); // as before the end of the run
    let mut hears = Hears::default();
    crate::common::train_with(&all, Start::Resume, 1, &mut hears).unwrap();
    assert_eq!(hears.1, Some(8));
    assert!(hears.0.iter().any(|w| w.contains("checkpoint-9") && w.contains("CRC-32")), "{:?}", hears.0);
}

/// Asks a run to stop once it has made a step.
struct StopAfterOne<'a>(&'a AtomicBool);

impl Reporter for StopAfterOne<'_> {
    fn stepped(&mut self, _: &StepRow, _: &Plan) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_changed_is_refused_by_name() {
    let folder = output("changed");
    let data = folder.with_extension("jsonl");
    std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
    let mut run = settings(Method::Lora, &folder);
    std::fs::copy(&run.data, &data).unwrap();
    run.data = data.clone();
    run.max_steps = Some(2);
    let stop = AtomicBool::new(true);
    let options = RunOptions { start: Start::New, dry_run: false, stop: &stop, renderer: None };
    let outcome = kinglet_train::run(&run, &device(1), options, &mut kinglet_train::Silent).unwrap();
    assert_eq!((outcome.end, outcome.steps, folder.exists()), (End::Stopped, 0, false), "before step 1");
    stop.store(false, Ordering::Relaxed);
    let outcome = kinglet_train::run(&run, &device(1), options, &mut StopAfterOne(&stop)).unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Stopped, 1));

    let mut other = run.clone();
    other.learning_rate = 0.5;
    let error = train(&other, Start::Resume, 1).unwrap_err().to_string();
    assert!(error.contains("--learning-rate"), "{error}");

    let text = std::fs::read_to_string(&data).unwrap();
    std::fs::write(&data, text.replacen("Synopsis?", "Synopsis!", 1)).unwrap();
    let error = train(&run, Start::Resume, 1).unwrap_err().to_string();
    assert!(error.contains("changed") && error.contains(&*data.display().to_string()), "{error}");
}
