//! Times of ops and of a QLoRA step on a GPU, the twin of `benches/pytorch/gpu.py`: the same shapes, the same names, one JSON object.
//!
//! ```sh
//! cargo run --release --features cuda,emulator --example gpu_times -- [--device cuda:0|emulated] [--small] [--shapes FILE]
//! ```
//!
//! An op's time is that between two events of the device around as many launches as fill 5 ms, so that the host's own part hides behind
//! work that is queued; the median of rounds, in each of which every op has its turn. The step is wall time from a
//! synchronised device to a synchronised device: forward, backward, clipping, AdamW; NF4 with nested scales, LoRA on every linear layer
//! of the blocks, bf16, checkpointing. With `--device emulated --small` the times are those of the virtual GPU and mean nothing, but the path is known to run.
//! It has not run on a real GPU yet.

use kinglet::autograd::{Grads, Tape};
use kinglet::models::{Batch, Config, Ctx, Decoder, LoadOptions, QuantOptions};
use kinglet::optim::kernels::{ADAMW, AdamwArgs};
use kinglet::optim::{AdamW, AdamWOptions};
use kinglet::peft::{Adapter, LoraConfig};
use kinglet::quant::{FourBit, nf4};
use kinglet::tensor::ops::{self, KvView, Mask, Segments, Targets};
use kinglet::tensor::philox::Key;
use kinglet::tensor::{EmulatorOptions, TensorMut};
use kinglet::{DType, Device, Error, Result, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What is timed; `benches/shapes`.
#[derive(Deserialize)]
struct Shapes {
    matmul: Vec<[usize; 3]>,
    attention: Attention,
    nf4: [usize; 2],
    adamw: usize,
    rms_norm: [usize; 2],
    swiglu: [usize; 2],
    /// Bytes.
    copy: usize,
    step: Step,
    /// As in config.json.
    model: Map<String, Value>,
}

#[derive(Deserialize)]
struct Attention {
    rows: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

#[derive(Deserialize)]
struct Step {
    rows: usize,
    length: usize,
    rank: usize,
    warmup: usize,
    steps: usize,
}

/// An op, what it must move and compute, and how it is started once.
struct Job {
    op: String,
    bytes: usize,
    flops: usize,
    start: Box<dyn FnMut() -> Result<()>>,
}

impl Job {
    fn new(op: String, bytes: usize, flops: usize, start: impl FnMut() -> Result<()> + 'static) -> Self {
        Job { op, bytes, flops, start: Box::new(start) }
    }
}

fn normal(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let seed = shape.iter().fold(1, |seed, &size| seed * 31 + size as u64);
    ops::normal(shape, 1.0, Key::derive(&[seed]), device)?.to_dtype(dtype)
}

fn place(x: &mut Tensor) -> Result<TensorMut<'_>> {
    x.as_mut().ok_or_else(|| Error::aliased("a tensor is held elsewhere"))
}

fn jobs(shapes: &Shapes, device: &Device) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    let words = shapes.copy / 4;
    let x = normal(&[words], DType::F32, device)?;
    jobs.push(Job::new(format!("copy {words} f32"), 8 * words, 0, move || ops::copy(&x, DType::F32).map(drop)));
    for &[m, n, k] in &shapes.matmul {
        let (a, b) = (normal(&[m, k], DType::BF16, device)?, normal(&[n, k], DType::BF16, device)?.transpose(0, 1)?);
        let bytes = 2 * (m * k + n * k + m * n);
        jobs.push(Job::new(format!("matmul bf16 {m}x{n}x{k}"), bytes, 2 * m * n * k, move || {
            ops::matmul(&a, &b).map(drop)
        }));
    }
    jobs.extend(attention(&shapes.attention, device)?);
    let [rows, width] = shapes.nf4;
    let blocks = FourBit::quantize(&normal(&[rows, width], DType::BF16, device)?, nf4::Format::Nf4, 64, true)?;
    let bytes = blocks.bytes() + 2 * rows * width;
    jobs.push(Job::new(format!("NF4 dequantise {rows}x{width}"), bytes, 0, move || {
        blocks.dequantize(DType::BF16).map(drop)
    }));
    jobs.push(adamw(shapes.adamw, device)?);
    let [rows, width] = shapes.rms_norm;
    let (x, weight) = (normal(&[rows, width], DType::BF16, device)?, normal(&[width], DType::F32, device)?);
    jobs.push(Job::new(format!("RMSNorm bf16 {rows}x{width}"), 4 * rows * width, 0, move || {
        ops::rms_norm(&x, &weight, 1e-5).map(drop)
    }));
    let [rows, width] = shapes.swiglu;
    let (gate, up) = (normal(&[rows, width], DType::BF16, device)?, normal(&[rows, width], DType::BF16, device)?);
    jobs.push(Job::new(format!("SwiGLU bf16 {rows}x{width}"), 6 * rows * width, 0, move || {
        ops::swiglu(&gate, &up).map(drop)
    }));
    Ok(jobs)
}

/// Causal attention over packed rows, and its gradients.
fn attention(a: &Attention, device: &Device) -> Result<[Job; 2]> {
    let (tokens, scale) = (a.rows * a.length, 1.0 / (a.head_dim as f32).sqrt());
    let q = normal(&[tokens, a.heads, a.head_dim], DType::BF16, device)?;
    let [k, v] = [
        normal(&[tokens, a.kv_heads, a.head_dim], DType::BF16, device)?,
        normal(&[tokens, a.kv_heads, a.head_dim], DType::BF16, device)?,
    ];
    let segments = Segments::packed(&(0..=a.rows).map(|row| row * a.length).collect::<Vec<_>>())?;
    segments.to_device(device)?;
    let (out, lse) = ops::attention(&q, KvView { k: &k, v: &v }, &segments, Mask::Causal, scale)?;
    let name = |what: &str| {
        format!("attention {what} bf16 {}x{}, {}/{} heads of {}", a.rows, a.length, a.heads, a.kv_heads, a.head_dim)
    };
    let (wide, narrow) = (2 * tokens * a.heads * a.head_dim, 2 * tokens * a.kv_heads * a.head_dim);
    // Half of the square: two products forward, five backward.
    let product = a.rows * a.length * a.length * a.heads * a.head_dim;
    let forward = {
        let (q, k, v, segments) = (q.clone(), k.clone(), v.clone(), segments.clone());
        move || ops::attention(&q, KvView { k: &k, v: &v }, &segments, Mask::Causal, scale).map(drop)
    };
    let backward = move || {
        ops::attention_backward(&out, &q, KvView { k: &k, v: &v }, &out, &lse, &segments, Mask::Causal, scale).map(drop)
    };
    Ok([
        Job::new(name("forward"), 2 * (wide + narrow), 2 * product, forward),
        Job::new(name("backward"), 4 * (wide + narrow), 5 * product, backward),
    ])
}

/// One step over so many parameters.
fn adamw(len: usize, device: &Device) -> Result<Job> {
    let full = |value: f32, len: usize| Tensor::full(value, &[len], DType::F32, device);
    let (mut p, mut m, mut v, gradient) = (full(0.5, len)?, full(0.1, len)?, full(0.2, len)?, full(0.3, len)?);
    let (norm, loss) = (full(1.0, 1)?, full(1.0, 1)?);
    let numbers = Tensor::from_slice(&[0.1f32, 0.999, 0.001, 1.0, 1e-3, 0.9, 1e-8], &[7], device)?;
    let device = device.clone();
    Ok(Job::new(format!("AdamW {len}"), 28 * len, 0, move || {
        let (p, m, v) = (place(&mut p)?, place(&mut m)?, place(&mut v)?);
        device.run(
            &ADAMW,
            AdamwArgs { numbers: &numbers, max_norm: 0.0, norm: &norm, loss: &loss, p, m, v, gradient: &gradient },
        )
    }))
}

/// Milliseconds of each of `count` starts in a row.
fn time(job: &mut Job, count: usize, device: &Device) -> Result<f64> {
    let cuda = device.as_cuda()?;
    let start = cuda.record()?;
    for _ in 0..count {
        (job.start)()?;
    }
    Ok(f64::from(start.elapsed(&cuda.record()?)?) / count as f64)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The medians of all ops, each of which has its turn in every round.
fn times(jobs: &mut [Job], rounds: usize, device: &Device) -> Result<Vec<Value>> {
    let mut counts = Vec::new();
    for job in &mut *jobs {
        time(job, 1, device)?;
        counts.push((5.0 / time(job, 1, device)?).clamp(1.0, 100.0) as usize);
    }
    let mut samples = vec![Vec::new(); jobs.len()];
    for _ in 0..rounds {
        for ((job, &count), samples) in jobs.iter_mut().zip(&counts).zip(&mut samples) {
            samples.push(time(job, count, device)?);
        }
    }
    let row = |(job, samples): (&Job, &mut Vec<f64>)| json!({ "op": job.op, "milliseconds": median(samples), "bytes": job.bytes, "flops": job.flops });
    Ok(jobs.iter().zip(&mut samples).map(row).collect())
}

/// Tokens a second of QLoRA steps, and the memory that they take.
fn step(shapes: &Shapes, device: &Device) -> Result<Value> {
    let Step { rows, length, rank, warmup, steps } = shapes.step;
    let config = Config::from_json(shapes.model.clone())?;
    let vocab = config.vocab as u32;
    let quant = Some(QuantOptions { format: nf4::Format::Nf4, double: true });
    let model = Decoder::random_as(config, 1, DType::BF16, &LoadOptions { device: device.clone(), quant })?;
    let config = LoraConfig { r: rank, lora_alpha: 2.0 * rank as f64, ..LoraConfig::default() };
    let mut adapter = Adapter::new(config, &model, 0)?;
    let mut optimiser = AdamW::new(&adapter.params, AdamWOptions::default())?;
    let mut grads = Grads::new(&adapter.params)?;
    let ids: Vec<i32> = (0..rows * length).map(|i| (Key::derive(&[1]).words(i as u64)[0] % vocab) as i32).collect();
    let batch = Batch::new(&ids, &(0..=rows).map(|row| row * length).collect::<Vec<_>>(), device)?;
    let next = |i: usize| if (i + 1).is_multiple_of(length) { -1 } else { ids[i + 1] };
    let targets = Targets::new(&(0..ids.len()).map(next).collect::<Vec<_>>(), device)?;
    // Peak and pool are those of the steps, not of the loading.
    device.release_cache();
    device.as_cuda()?.reset_peak();
    let (mut seconds, mut last) = (Vec::new(), 0.0);
    for _ in 0..warmup + steps {
        device.synchronize()?;
        let start = Instant::now();
        grads.zero()?;
        let loss = {
            let ctx = Ctx { train: true, checkpoint: true, ..Ctx::eval(DType::BF16) }.with_adapters(adapter.set());
            let tape = Tape::new();
            let loss = model.loss(&tape, &batch, &targets, targets.count() as f32, &ctx)?;
            tape.backward(&loss, &mut grads)?;
            loss.value().clone()
        };
        let params = Arc::get_mut(&mut adapter.params).ok_or_else(|| Error::aliased("parameters are still held"))?;
        optimiser.step(params, &grads, 2e-4)?;
        device.synchronize()?;
        seconds.push(start.elapsed().as_secs_f64());
        last = loss.item()?;
    }
    let memory = device.as_cuda()?.memory();
    let mib = |bytes: u64| bytes >> 20;
    Ok(json!({
        "rows": rows, "length": length, "seconds": median(&mut seconds[warmup..]), "loss": last,
        "peak_mib": mib(memory.peak), "held_mib": mib(memory.held),
    }))
}

struct Options {
    device: Device,
    shapes: PathBuf,
    rounds: usize,
}

fn options() -> Result<Options> {
    let folder = Path::new("benches/shapes");
    let (mut name, mut shapes, mut rounds) = ("cuda:0".to_owned(), folder.join("gpu.json"), 9);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Error::invalid(format!("{arg} needs a value")));
        match arg.as_str() {
            "--device" => name = value()?,
            "--shapes" => shapes = value()?.into(),
            "--small" => (shapes, rounds) = (folder.join("small.json"), 1),
            other => return Err(Error::invalid(format!("unknown option {other}"))),
        }
    }
    let device = match name.strip_prefix("cuda:").map(str::parse) {
        Some(Ok(index)) => Device::cuda(index)?,
        None if name == "emulated" => Device::emulated(EmulatorOptions::default())?,
        _ => return Err(Error::invalid(format!("{name} is neither cuda:N nor emulated"))),
    };
    Ok(Options { device, shapes, rounds })
}

fn main() -> Result<()> {
    let Options { device, shapes, rounds } = options()?;
    let text = std::fs::read_to_string(&shapes).map_err(|e| Error::io(shapes.display().to_string(), e))?;
    let invalid = |e: serde_json::Error| Error::invalid(format!("{}: {e}", shapes.display()));
    let shapes: Shapes = serde_json::from_str(&text).map_err(invalid)?;
    let ops = times(&mut jobs(&shapes, &device)?, rounds, &device)?;
    let step = step(&shapes, &device)?;
    let name = &device.as_cuda()?.info().name;
    println!("{}", json!({ "what": "kinglet", "device": name, "ops": ops, "qlora_step": step }));
    Ok(())
}
