//! Whole models on the virtual GPU: they train and generate there as on the CPU.

use crate::memory::idle;
use crate::support::{NF4, adapter, batch, bits, fixtures, ids, load, source, training};
use kinglet::autograd::{Grads, Param, Tape};
use kinglet::models::{AdapterSet, Batch, Ctx, Decoder, Finish, LoadOptions, Request, Sampling, generate};
use kinglet::optim::{AdamW, AdamWOptions};
use kinglet::peft::full;
use kinglet::tensor::ops::{self, Reduce, Targets};
use kinglet::{DType, Device, Result, Tensor};
use kinglet_oracle::{device, gpu_or_emulated};
use kinglet_train::{Method, Plan, Reporter, RunOptions, Settings, Start, StepRow};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// How far two vectors are apart, relative to the second: the norm of their difference over its norm.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let gap = got.iter().zip(want).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>().sqrt();
    gap / norm(want).max(f64::MIN_POSITIVE)
}

/// A fixture; or, of the architecture of fixture X for the name `aligned X`, a model of random weights whose widths are
/// multiples of 16: only such a one multiplies 16-bit numbers and attends on tensor cores without copies and widening.
fn model(name: &str, four_bit: bool, device: &Device) -> Decoder {
    let quant = four_bit.then_some(NF4);
    let Some(fixture) = name.strip_prefix("aligned ") else { return load(name, quant, device) };
    let mut config = source(fixture).config;
    (config.hidden, config.intermediate, config.head_dim, config.vocab) = (64, 96, 16, 144);
    // Scores of the order of one: a mask and a maximum then matter.
    let json = config.json.as_mut().expect("a fixture with config.json");
    json.insert("initializer_range".into(), 0.2.into());
    Decoder::random_as(config, 1, DType::F32, &LoadOptions { device: device.clone(), quant }).unwrap()
}

/// What runs attention on tensor cores.
const CORES: [&str; 2] = ["attention_cores", "attention_cores_backward"];

/// Those that a model of this name runs: in 16 bits, where heads are multiples of 8.
fn cores_of(name: &str, dtype: DType) -> &'static [&'static str] {
    let whole = name.starts_with("aligned") || ["llama3", "gguf-llama"].contains(&name);
    if whole && dtype != DType::F32 { &CORES } else { &[] }
}

/// Kernels of all these modules have run on the device: a module is loaded at its first launch.
fn has_run(device: &Device, modules: &[&str], what: &str) {
    for module in modules {
        assert!(device.as_cuda().unwrap().has_module(module), "{what}: no kernel of {module} has run");
    }
}

/// Loss and gradients of all adapters of one pass over packed rows.
fn pass(name: &str, four_bit: bool, dtype: DType, checkpoint: bool, device: &Device) -> Result<(f32, Vec<f32>)> {
    let model = model(name, four_bit, device);
    let adapter = adapter(&model, 0.1);
    let (batch, targets, count) = batch(&[ids(9, 90, 1), ids(70, 90, 2), ids(4, 90, 3)], device);
    let ctx = Ctx { dtype, checkpoint, ..training(&adapter) };
    let (tape, mut grads) = (Tape::new(), Grads::new(&adapter.params)?);
    let loss = model.loss(&tape, &batch, &targets, count, &ctx)?;
    tape.backward(&loss, &mut grads)?;
    Ok((loss.value().item()?, grads.flat()?.to_vec()?))
}

#[test]
fn gradients() {
    type How = (bool, DType, bool);
    let anyhow: &[How] = &[(false, DType::F32, false), (true, DType::F32, true), (true, DType::BF16, true)];
    let on_cores: &[How] = &[(true, DType::BF16, true), (false, DType::BF16, false)];
    let fixtures = ["llama", "qwen2", "qwen3"].map(|name| (name, anyhow));
    let aligned = [("aligned llama", 0), ("aligned qwen2", 1), ("aligned qwen3", 0), ("llama3", 1)];
    let aligned = aligned.map(|(name, how)| (name, &on_cores[how..=how]));
    for (name, how) in fixtures.into_iter().chain(aligned) {
        for &(four_bit, dtype, checkpoint) in how {
            let gpu = gpu_or_emulated(80, 1);
            let want = pass(name, four_bit, dtype, checkpoint, &device(2)).unwrap();
            let got = pass(name, four_bit, dtype, checkpoint, &gpu).unwrap();
            has_run(&gpu, cores_of(name, dtype), name);
            let what = format!("{name} {four_bit} {dtype} {checkpoint}");
            let (apart, allowed) = (distance(&[got.0], &[want.0]), loss_tolerance(dtype, layers(name), 80));
            assert!(apart <= allowed, "{what}: losses are {apart} apart, not {allowed}");
            let (apart, allowed) = (distance(&got.1, &want.1), tolerance(dtype, 3));
            assert!(apart <= allowed, "{what}: gradients are {apart} apart, not {allowed}");
        }
    }
}

/// Roundings on the way through a layer; independent ones add up as their square root: two norms (2 each), seven linear layers,
/// RoPE (2), scores and their scale, exponential (2), its sum, what it weights, merging of tiles, quotient, silu (2), its product,
/// two residuals.
const FORWARD: usize = 26;
/// And back: those but for the softmax's (20), the scores once more (4), and from the weights' gradients to the queries' ten: dP,
/// the row's sum of dy · out (2), their difference, its products with P and the scale, dQ, and RoPE's turn (3).
const BACKWARD: usize = 34;

/// How far gradients of two devices may be apart behind so many layers, relative: the oracle's slack times eps(dtype) times the
/// square root of the roundings on the way.
fn tolerance(dtype: DType, layers: usize) -> f64 {
    2.0 * dtype.epsilon().unwrap() * (((FORWARD + BACKWARD) * layers) as f64).sqrt()
}

/// How far losses may be. A loss is the mean over `targets` positions whose roundings are independent, with a deviation of
/// eps(dtype) / √3 each, as for numbers between two neighbours: it has the square root of their number fewer. Two such numbers
/// are themselves added up and rounded in f32.
fn loss_tolerance(dtype: DType, layers: usize, targets: usize) -> f64 {
    let deviation = dtype.epsilon().unwrap() / 3f64.sqrt();
    2.0 * deviation * ((FORWARD * layers) as f64 / targets as f64).sqrt() + 4.0 * DType::F32.epsilon().unwrap()
}

fn layers(name: &str) -> usize {
    source(name.trim_start_matches("aligned ")).config.layers.len()
}

/// The gradient of each parameter, by name.
type Gradients = Vec<(String, Vec<f32>)>;

/// Losses of three steps of two micro-batches each, and the gradients of the first step.
fn three_steps(mut run: Run, (dtype, checkpoint): (DType, bool), device: &Device) -> Result<(Vec<f32>, Gradients)> {
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for step in 0..3 {
        let micro = micro_batches(7, device);
        run.adamw.begin(1e-3)?;
        let (loss, norm) = run.launch(&micro, dtype, checkpoint)?;
        losses.extend([loss.item()?, norm.item()?]);
        if step == 0 {
            let params = run.trained.params.params().iter().enumerate();
            let gradient = |(id, p): (usize, &Param)| Ok((p.name.clone(), run.grads.tensor(id)?.to_vec()?));
            gradients = params.map(gradient).collect::<Result<_>>()?;
        }
    }
    Ok((losses, gradients))
}

#[test]
fn steps_are_those_of_the_cpu() {
    let anyhow: &[How] =
        &[(Method::Lora, DType::F32, true), (Method::Qlora, DType::BF16, true), (Method::Full, DType::F32, false)];
    let on_cores: &[How] = &[(Method::Qlora, DType::BF16, true), (Method::Full, DType::BF16, false)];
    let fixtures = ["llama", "qwen2", "qwen3"].map(|name| (name, anyhow));
    let aligned = [("aligned llama", 0), ("aligned qwen2", 1), ("aligned qwen3", 0)];
    let aligned = aligned.map(|(name, how)| (name, &on_cores[how..=how]));
    for (name, methods) in fixtures.into_iter().chain(aligned) {
        for &(method, dtype, checkpoint) in methods {
            let gpu = gpu_or_emulated(90, 3);
            let [want, got] = [&device(2), &gpu].map(|device| {
                three_steps(Run::new(name, method, device).unwrap(), (dtype, checkpoint), device).unwrap()
            });
            has_run(&gpu, cores_of(name, dtype), name);
            let (of_losses, allowed) = (loss_tolerance(dtype, layers(name), 46), tolerance(dtype, 3));
            for (step, (got, want)) in got.0.chunks(2).zip(want.0.chunks(2)).enumerate() {
                // Where signs of gradients differ, and with them AdamW's first steps, the loss is flat.
                let apart = distance(&got[..1], &want[..1]);
                assert!(apart <= of_losses, "{name} {method:?}, step {step}: losses {apart}, {of_losses}");
                let apart = distance(&got[1..], &want[1..]);
                assert!(apart <= allowed, "{name} {method:?}, step {step}: norms {apart}, {allowed}");
            }
            let largest = want.1.iter().map(|(_, gradient)| norm(gradient)).fold(0.0, f64::max);
            for ((param, got), (_, want)) in got.1.iter().zip(&want.1) {
                // What almost cancels (the gradient of a key's bias does) is held to a tenth of the largest.
                let apart = distance(got, want) * norm(want) / norm(want).max(0.1 * largest);
                assert!(apart <= allowed, "{name} {method:?}, {param}: {apart}, {allowed}");
            }
            assert!(got.0[4] < got.0[0], "{name} {method:?} learns: {:?}", got.0);
        }
    }
}

fn continued(name: &str, prompt: usize, dtype: DType, device: &Device) -> Vec<i32> {
    let model = model(name, false, device);
    let request =
        Request { prompt: &ids(prompt, 100, 1), max_new_tokens: 12, stop: &[], sampling: Sampling::default() };
    let made = generate(&model, &request, &Ctx::eval(dtype), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(made.finish, Finish::Length);
    made.tokens
}

#[test]
fn generated_tokens() {
    let anyhow = ["llama", "qwen2", "qwen3", "gguf-llama"].map(|name| (name, 20));
    // After so many tokens one query's keys are split.
    let aligned = [("aligned llama", 20), ("aligned qwen2", 20), ("aligned qwen3", 260)];
    for (name, prompt) in anyhow.into_iter().chain(aligned) {
        for dtype in [DType::F32, DType::BF16] {
            let gpu = gpu_or_emulated(80, 1);
            let want = continued(name, prompt, dtype, &device(2));
            assert_eq!(continued(name, prompt, dtype, &gpu), want, "{name} {dtype}");
            has_run(&gpu, cores_of(name, dtype).get(..1).unwrap_or_default(), name);
            has_run(&gpu, if prompt > 256 { &["attention_decode"] } else { &[] }, name);
        }
    }
}

/// The state of a training loop.
struct Run {
    model: Decoder,
    trained: AdapterSet,
    adamw: AdamW,
    grads: Grads,
}

impl Run {
    fn new(name: &str, method: Method, device: &Device) -> Result<Self> {
        let model = model(name, method == Method::Qlora, device);
        let trained = match method {
            Method::Lora | Method::Qlora => adapter(&model, 0.0).set(),
            Method::Full => {
                let (params, map) = full(&model)?;
                AdapterSet { map: Arc::new(map), params: Arc::new(params) }
            }
        };
        let adamw = AdamW::new(&trained.params, AdamWOptions::default())?;
        let grads = Grads::new(&trained.params)?;
        Ok(Run { model, trained, adamw, grads })
    }

    /// What a step launches: micro-batches, then the optimiser. Loss and norm.
    fn launch(&mut self, micro: &[(Batch, Targets)], dtype: DType, checkpoint: bool) -> Result<(Tensor, Tensor)> {
        self.grads.zero()?;
        let count: usize = micro.iter().map(|(_, targets)| targets.count()).sum();
        let mut losses = Vec::new();
        for (batch, targets) in micro {
            let ctx = Ctx { checkpoint, train: true, ..Ctx::eval(dtype).with_adapters(self.trained.clone()) };
            let tape = Tape::new();
            let loss = self.model.loss(&tape, batch, targets, count as f32, &ctx)?;
            tape.backward(&loss, &mut self.grads)?;
            losses.push(loss.value().clone());
        }
        let loss = ops::reduce(Reduce::Sum, &ops::stack(&losses.iter().collect::<Vec<_>>(), 0)?, &[0], false)?;
        let params = Arc::get_mut(&mut self.trained.params).expect("no tape holds them");
        let norm = self.adamw.apply(params, &self.grads, Some(&loss))?;
        Ok((loss, norm))
    }
}

/// Two micro-batches of packed rows, others for each seed.
fn micro_batches(seed: u64, device: &Device) -> Vec<(Batch, Targets)> {
    let rows = |s: u64| [ids(9, 100, s), ids(13, 100, s + 1), ids(4, 100, s + 2)];
    let one = |s| {
        let (batch, targets, _) = batch(&rows(s), device);
        (batch, targets)
    };
    vec![one(seed), one(seed + 10)]
}

/// What is trained, in which dtype, and whether with checkpoints.
type How = (Method, DType, bool);

const HOW: [How; 6] = [
    (Method::Lora, DType::F32, false),
    (Method::Qlora, DType::F32, true),
    (Method::Qlora, DType::BF16, false),
    (Method::Lora, DType::BF16, true),
    (Method::Full, DType::F32, true),
    (Method::Full, DType::BF16, false),
];

#[test]
fn a_step_waits_for_nothing() {
    for (method, dtype, checkpoint) in HOW {
        let name = if dtype == DType::BF16 { "aligned qwen2" } else { "qwen2" };
        let gpu = gpu_or_emulated(80, 1);
        let mut run = Run::new(name, method, &gpu).unwrap();
        let micro = micro_batches(1, &gpu);
        run.adamw.begin(1e-3).unwrap();
        let before = gpu.as_cuda().unwrap().counts();
        run.launch(&micro, dtype, checkpoint).unwrap();
        let after = gpu.as_cuda().unwrap().counts();
        assert_eq!(after.synchronisations, before.synchronisations, "{method:?} {dtype} {checkpoint}");
        assert!(after.launches > before.launches + 100);
        has_run(&gpu, cores_of(name, dtype), name);
    }
}

/// Bytes at each stage of a run: after loading, and of each of two steps.
fn memory_of(name: &str, (method, dtype, checkpoint): How, device: &Device) -> Result<Vec<[u64; 3]>> {
    let cuda = device.as_cuda()?;
    let mut stages = Vec::new();
    let mut stage = || {
        let memory = cuda.memory();
        stages.push([memory.live, memory.peak, memory.held]);
        cuda.reset_peak();
    };
    let mut run = Run::new(name, method, device)?;
    stage();
    for seed in [1, 50] {
        let micro = micro_batches(seed, device);
        run.adamw.begin(1e-3)?;
        let (loss, norm) = run.launch(&micro, dtype, checkpoint)?;
        for result in [loss, norm] {
            result.to_vec::<f32>()?;
        }
        stage();
    }
    Ok(stages)
}

/// A chunk of what was planned is what a run takes: with a grain less it would need another.
#[test]
fn memory_is_planned_to_the_byte() {
    let others = [
        ("llama", HOW[1]),
        ("qwen3", HOW[3]),
        ("gguf-llama", HOW[0]),
        ("llama", HOW[4]),
        ("qwen3", HOW[5]),
        ("aligned llama", HOW[3]),
        ("aligned qwen2", HOW[2]),
        ("aligned qwen3", HOW[5]),
    ];
    for (name, how) in HOW[..4].iter().map(|&how| ("qwen2", how)).chain(others) {
        let gpu = gpu_or_emulated(80, 1);
        let planned = memory_of(name, how, &gpu.planner()).unwrap();
        let held = planned.iter().map(|stage| stage[2]).max().unwrap();
        // What lives, at most and now, at each stage; and chunks of the driver.
        let measured = |device: &Device, reserved: u64| {
            let cuda = device.as_cuda().unwrap();
            let before = cuda.counts().driver_allocations;
            cuda.reserve(reserved).unwrap();
            let stages = memory_of(name, how, device).unwrap();
            let lives: Vec<_> = stages.into_iter().map(|[live, peak, _]| [live, peak]).collect();
            (lives, cuda.counts().driver_allocations - before)
        };
        let want: Vec<_> = planned.into_iter().map(|[live, peak, _]| [live, peak]).collect();
        assert_eq!(measured(&gpu, held), (want.clone(), 1), "{name} {how:?}");
        assert_eq!((gpu.as_cuda().unwrap().memory().live, gpu.as_cuda().unwrap().memory().held), (0, held));
        assert_eq!(measured(&idle(4 << 30), held), (want.clone(), 1), "{name} {how:?}: an idle device");
        assert_eq!(measured(&idle(4 << 30), held - 256), (want, 2), "{name} {how:?}: a grain less");
        has_run(&gpu, cores_of(name, how.1), name);
    }
}

/// Loss, norm and parameters of three steps; from the second on by the graph of a captured step, if so asked.
fn steps(name: &str, (method, dtype, checkpoint): How, device: &Device, captured: bool) -> Result<Vec<Vec<u32>>> {
    let mut run = Run::new(name, method, device)?;
    let mut micro = micro_batches(1, device);
    let mut seen = Vec::new();
    let mut graph = None;
    for (step, seed) in [1u64, 30, 60].into_iter().enumerate() {
        for ((batch, targets), (next, next_targets)) in micro.iter_mut().zip(micro_batches(seed, device)) {
            batch.ids.write(&next.ids.to_vec::<i32>()?)?;
            targets.replace(&next_targets)?;
        }
        run.adamw.begin(1e-2 / (step + 1) as f64)?;
        let (loss, norm) = match (&graph, captured && step > 0) {
            (_, false) => run.launch(&micro, dtype, checkpoint)?,
            (None, true) => {
                let (made, results) = device.capture(|| run.launch(&micro, dtype, checkpoint))?;
                let (made, results) = graph.insert((made, results));
                made.launch()?;
                results.clone()
            }
            (Some((made, results)), true) => {
                made.launch()?;
                results.clone()
            }
        };
        seen.extend([&loss, &norm, run.trained.params.values()].map(bits));
    }
    Ok(seen)
}

#[test]
fn a_captured_step_is_the_step() {
    for (name, how) in [("qwen2", HOW[1]), ("qwen2", HOW[4]), ("aligned qwen3", HOW[2]), ("aligned qwen2", HOW[5])] {
        let gpu = gpu_or_emulated(80, 1);
        let want = steps(name, how, &gpu, false).unwrap();
        let launches = gpu.as_cuda().unwrap().counts().launches;
        assert!(steps(name, how, &gpu, true).unwrap() == want, "{name} {how:?}");
        let saved = gpu.as_cuda().unwrap().counts().launches - launches;
        assert!(saved < launches, "the third step launched nothing one by one: {saved} of {launches}");
        has_run(&gpu, cores_of(name, how.1), name);
        assert_eq!(gpu.as_cuda().unwrap().memory().live, 0, "the graph's memory is the device's again");
        gpu.release_cache();
        assert_eq!(gpu.as_cuda().unwrap().memory().held, 0);
    }
}

/// The rows of the log of a run of `kinglet_train` over fixtures, which was saved and resumed after its first step.
fn logged(case: &str, device: &Device, change: impl Fn(&mut Settings)) -> Vec<[f64; 2]> {
    let fixtures = fixtures("train");
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated-{case}-{}", device.as_cuda().is_ok()));
    let _ = std::fs::remove_dir_all(&output);
    let base = if case.starts_with("llama") { "base-llama" } else { "base-qwen2" };
    let mut settings = Settings::new(fixtures.join(base), fixtures.join(case).join("data.jsonl"), &output);
    (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) = (2, 2);
    (settings.save_steps, settings.max_steps, settings.max_length) = (1, Some(2), 48);
    change(&mut settings);
    let chunks = || device.as_cuda().map_or(0, |cuda| cuda.counts().driver_allocations);
    let (mut peak, before) = (0, chunks());
    for (start, steps) in [(Start::New, 1), (Start::Resume, 2)] {
        let stop = AtomicBool::new(false);
        let options = RunOptions { start, dry_run: false, stop: &stop, renderer: None };
        let mut reporter = Stopping { stop: &stop, after: steps, peak: 0 };
        let outcome = kinglet_train::run(&settings, device, options, &mut reporter).unwrap();
        assert_eq!(outcome.steps, steps);
        peak = reporter.peak;
    }
    if let Ok(cuda) = device.as_cuda() {
        assert_eq!(cuda.memory().held, peak as u64, "{case}");
        assert_eq!(chunks() - before, 2, "{case}: one chunk for each of the two runs");
    }
    let log = std::fs::read_to_string(output.join("log.jsonl")).unwrap();
    let row = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        ["loss", "grad_norm"].map(|key| row[key].as_f64().unwrap())
    };
    log.lines().map(row).collect()
}

/// Asks a run to stop after so many steps, which its last ends with anyway, and keeps the announced peak.
struct Stopping<'a> {
    stop: &'a AtomicBool,
    after: u64,
    peak: usize,
}

impl Reporter for Stopping<'_> {
    fn planned(&mut self, plan: &Plan) {
        self.peak = plan.peak_bytes;
    }
    fn stepped(&mut self, row: &StepRow, _: &Plan) {
        self.stop.store(row.step == self.after, Ordering::Relaxed);
    }
}

#[test]
fn runs_of_the_training_loop_are_those_of_the_cpu() {
    type Change = fn(&mut Settings);
    let cases: [(&str, Change); 3] = [
        ("llama-lora", |s| (s.method, s.packing) = (Method::Lora, true)),
        ("qwen2-qlora", |s| (s.gradient_checkpointing, s.lora_dropout) = (true, 0.1)),
        ("qwen2-rslora", |s| s.method = Method::Full),
    ];
    for (case, change) in cases {
        let [want, got] = [device(2), gpu_or_emulated(80, 1)].map(|device| logged(case, &device, change));
        assert_eq!(want.len(), 2);
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            assert!((got - want).abs() <= tolerance(DType::F32, 2) * want.abs(), "{case}: {got} for {want}");
        }
    }
}

#[test]
fn tf32_is_for_those_who_ask() {
    let gpu = gpu_or_emulated(80, 1);
    let product = |device: &Device| {
        let a = ops::normal(&[70, 96], 1.0, kinglet::tensor::philox::Key::derive(&[1]), device).unwrap();
        let b = ops::normal(&[96, 80], 1.0, kinglet::tensor::philox::Key::derive(&[2]), device).unwrap();
        ops::matmul(&a, &b).unwrap().to_vec::<f32>().unwrap()
    };
    let want = product(&device(1));
    assert!(product(&gpu) == want);
    gpu.set_tf32(true);
    let rounded = distance(&product(&gpu), &want);
    assert!(rounded > 1e-6 && rounded < 2f64.powi(-10), "{rounded}");
    gpu.set_tf32(false);
    assert!(product(&gpu) == want);
}
