//! What a run of the training loop takes of a GPU: the chunk that was planned, whatever the order of its rows, and nothing else.

use crate::support::fixtures;
use kinglet::tensor::EmulatorOptions;
use kinglet::{Device, Result};
use kinglet_cuda::MemoryUse;
use kinglet_train::{ByteSize, Method, Outcome, Plan, Reporter, RunOptions, Settings, Start, StepRow, run};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A virtual GPU with `memory_bytes` of memory that runs nothing.
pub(crate) fn idle(memory_bytes: u64) -> Device {
    Device::emulated(EmulatorOptions { memory_bytes, idle: true, ..EmulatorOptions::default() }).unwrap()
}

/// One that runs everything, with as much for chunks, and what modules need beside them.
fn emulated(memory_bytes: u64) -> Device {
    let memory_bytes = memory_bytes + (1 << 20);
    Device::emulated(EmulatorOptions { memory_bytes, ..EmulatorOptions::default() }).unwrap()
}

fn memory(device: &Device) -> MemoryUse {
    device.as_cuda().unwrap().memory()
}

/// Looks at the device after every step, and stops the run after one.
struct Watch<'a> {
    device: &'a Device,
    stop: &'a AtomicBool,
    last: u64,
    planned: u64,
    held: Vec<u64>,
}

impl Reporter for Watch<'_> {
    fn planned(&mut self, plan: &Plan) {
        self.planned = plan.peak_bytes as u64;
    }
    fn stepped(&mut self, row: &StepRow, _: &Plan) {
        self.held.push(memory(self.device).held);
        self.stop.store(row.step == self.last, Ordering::Relaxed);
    }
}

/// Runs until step `last`, or plans only; what was planned, and what was held after each step.
fn watched(settings: &Settings, start: Start, last: u64, device: &Device) -> Result<(Outcome, u64, Vec<u64>)> {
    let stop = AtomicBool::new(false);
    let mut watch = Watch { device, stop: &stop, last, planned: 0, held: Vec::new() };
    let options = RunOptions { start, dry_run: last == 0, stop: &stop, renderer: None };
    let outcome = run(settings, device, options, &mut watch)?;
    Ok((outcome, watch.planned, watch.held))
}

/// What a run would take, found without one.
fn planned(settings: &Settings) -> u64 {
    watched(settings, Start::New, 0, &idle(64 << 30)).unwrap().1
}

fn output(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("memory").join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

/// Training of the demo's model on rows of 4 to 250 words.
fn demo(name: &str) -> Settings {
    demo_of(name, 250)
}

/// On rows of 4 to so many words.
fn demo_of(name: &str, words: usize) -> Settings {
    let (model, output) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo-model"), output(name));
    let data = output.with_extension("jsonl");
    let mut state = 7u64;
    let row = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let words = "one two ".repeat(2 + (state >> 40) as usize % (words / 2 - 1));
        format!("{{\"prompt\": \"{words}\", \"completion\": \"five six\"}}\n")
    };
    std::fs::write(&data, (0..90).map(row).collect::<String>()).unwrap();
    let mut settings = Settings::new(model, data, output);
    (settings.save_steps, settings.max_length, settings.raw) = (0, 512, true);
    settings
}

#[test]
fn no_order_of_rows_takes_more_than_was_planned() {
    type Change = fn(&mut Settings);
    let cases: [(&str, Change); 6] = [
        ("short-packed", |s| {
            (s.packing, s.gradient_checkpointing) = (true, true);
            (s.per_device_train_batch_size, s.gradient_accumulation_steps) = (1, 4);
        }),
        ("lora", |s| (s.method, s.per_device_train_batch_size, s.gradient_accumulation_steps) = (Method::Lora, 4, 2)),
        ("lora-alone", |s| {
            (s.method, s.per_device_train_batch_size, s.gradient_accumulation_steps) = (Method::Lora, 1, 3)
        }),
        ("qlora", |s| (s.per_device_train_batch_size, s.gradient_checkpointing) = (8, true)),
        ("qlora-packed", |s| (s.packing, s.per_device_train_batch_size, s.gradient_accumulation_steps) = (true, 2, 2)),
        ("full", |s| (s.method, s.per_device_train_batch_size, s.gradient_accumulation_steps) = (Method::Full, 4, 1)),
    ];
    for (name, change) in cases {
        for seed in 0..4 {
            let mut settings = demo_of(&format!("{name}-{seed}"), if name == "short-packed" { 12 } else { 250 });
            (settings.seed, settings.max_steps) = (seed, Some(40));
            change(&mut settings);
            let peak = planned(&settings);
            settings.memory_budget = Some(ByteSize(peak));
            // Once the device ends with the budget, once it has more than may be had.
            let gpu = idle(if seed % 2 == 0 { peak } else { 8 << 30 });
            let (outcome, again, held) = watched(&settings, Start::New, u64::MAX, &gpu).unwrap();
            assert_eq!((outcome.steps, again), (40, peak), "{name} {seed}");
            assert!(held.iter().all(|&held| held == peak), "{name} {seed}: {held:?} of {peak}");
            assert_eq!(gpu.as_cuda().unwrap().counts().driver_allocations, 1, "{name} {seed}");
            assert!(peak > 8 << 20, "{name} {seed}: {peak} is no more than a few blocks");
            settings.memory_budget = Some(ByteSize(peak - 1));
            let refused = watched(&settings, Start::Overwrite, 0, &idle(8 << 30)).unwrap_err().to_string();
            assert!(refused.contains("--memory-budget is"), "{refused}");
        }
    }
}

/// An evaluation of longer rows than those that are trained on, and a save of the whole model, are part of the plan.
#[test]
fn evaluations_and_saves_take_no_more_than_was_planned() {
    let mut settings = demo("evaluation");
    let rows = std::fs::read_to_string(&settings.data).unwrap();
    let eval = settings.data.with_extension("eval.jsonl");
    std::fs::write(&eval, rows.replace("one two ", "one two three four ")).unwrap();
    let mut short: Vec<&str> = rows.lines().collect();
    short.sort_by_key(|row| row.len());
    std::fs::write(&settings.data, short[..9].join("\n")).unwrap();
    (settings.method, settings.per_device_train_batch_size, settings.max_steps) = (Method::Full, 9, Some(6));
    let alone = planned(&settings);
    (settings.eval_data, settings.eval_steps, settings.save_steps) = (Some(eval), Some(2), 2);
    let peak = planned(&settings);
    assert!(peak > alone, "{peak} with an evaluation, {alone} without");
    let gpu = idle(peak);
    assert_eq!(watched(&settings, Start::New, u64::MAX, &gpu).unwrap().0.steps, 6);
    assert_eq!((memory(&gpu).held, gpu.as_cuda().unwrap().counts().driver_allocations), (peak, 1));
}

/// Training of a small model that the virtual GPU really runs.
fn small(name: &str) -> Settings {
    let fixtures = fixtures("train");
    let mut settings =
        Settings::new(fixtures.join("base-qwen2"), fixtures.join("qwen2-qlora/data.jsonl"), output(name));
    (settings.max_steps, settings.save_steps, settings.max_length) = (Some(3), 0, 48);
    (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) = (2, 2);
    settings
}

#[test]
fn a_real_run_stays_within_its_budget() {
    let mut settings = small("real");
    (settings.packing, settings.gradient_checkpointing) = (true, true);
    let peak = planned(&settings);
    settings.memory_budget = Some(ByteSize(peak));
    let gpu = emulated(peak);
    let (outcome, again, held) = watched(&settings, Start::New, u64::MAX, &gpu).unwrap();
    assert_eq!((outcome.steps, again, held), (3, peak, vec![peak; 3]));
    assert_eq!(gpu.as_cuda().unwrap().counts().driver_allocations, 1);
}

/// Memory of a run from start to end, and of its second half alone, on devices of the size that was planned.
#[test]
fn a_resumed_run_takes_what_the_first_took() {
    let rows_of_one_length = |settings: &Settings| {
        let row = "{\"prompt\": \"one two three\", \"completion\": \"five six\"}\n";
        let data = settings.output.with_extension("rows.jsonl");
        std::fs::write(&data, row.repeat(20)).unwrap();
        data
    };
    type Case = (fn(u64) -> Device, fn(&str) -> Settings);
    let cases: [Case; 2] = [(idle, demo), (emulated, small)];
    for method in [Method::Full, Method::Lora] {
        for (device, settings) in cases {
            let new = |name: &str| {
                let mut settings = settings(&format!("resume-{name}-{method:?}"));
                (settings.data, settings.method, settings.raw) = (rows_of_one_length(&settings), method, true);
                (settings.max_steps, settings.per_device_train_batch_size) = (Some(3), 2);
                settings
            };
            let (whole, cut) = (new("whole"), new("cut"));
            let peak = planned(&whole);
            let through = device(peak);
            watched(&whole, Start::New, u64::MAX, &through).unwrap();
            assert_eq!(watched(&cut, Start::New, 1, &device(peak)).unwrap().0.steps, 1);
            let resumed = device(peak);
            let (outcome, again, held) = watched(&cut, Start::Resume, u64::MAX, &resumed).unwrap();
            assert_eq!((outcome.steps, again, held), (3, peak, vec![peak; 2]), "{method:?}");
            assert_eq!(memory(&resumed), memory(&through), "{method:?}");
            // No guess far above what is needed: a tenth of it lies idle at most.
            let most = memory(&through).peak;
            assert!(peak as f64 <= 1.1 * most as f64 + (2 << 20) as f64, "{method:?}: {most} of {peak}");
            assert_eq!(resumed.as_cuda().unwrap().counts().driver_allocations, 1, "{method:?}");
        }
    }
}
