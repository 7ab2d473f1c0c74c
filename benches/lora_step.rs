//! One LoRA or QLoRA training step (forward, backward, clipping, AdamW), the twin of `benches/pytorch/lora_step.py`:
//!
//! ```text
//! cargo bench --bench lora_step -- --model SmolLM2.gguf [--qlora] [--bf16] [--checkpointing] [--threads N] [--trace]
//! ```
//!
//! Rank 16 on every linear layer, random ids, every position a target. Prints one JSON line: tokens_per_second (median
//! over the steps after warm-up) and the peak of the resident memory; with --trace, the time of each kernel too.
#![forbid(unsafe_code)]

use kinglet::autograd::{Grads, Tape};
use kinglet::models::mmap::Mapped;
use kinglet::models::{Batch, Ctx, Decoder, LoadOptions, QuantOptions, Source};
use kinglet::optim::{AdamW, AdamWOptions};
use kinglet::peft::{Adapter, LoraConfig};
use kinglet::quant::nf4::Format;
use kinglet::tensor::ops::Targets;
use kinglet::tensor::philox::Key;
use kinglet::{CpuOptions, DType, Device, Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

struct Options {
    model: PathBuf,
    qlora: bool,
    dtype: DType,
    checkpointing: bool,
    trace: bool,
    threads: Option<usize>,
    batch: usize,
    length: usize,
    steps: usize,
}

fn main() -> Result<()> {
    match options()? {
        Some(options) => bench(&options),
        None => {
            println!("lora_step: skipped, no --model given");
            Ok(())
        }
    }
}

fn bench(o: &Options) -> Result<()> {
    let device = Device::cpu(CpuOptions { threads: o.threads, ..CpuOptions::default() })?;
    let source = Source::open(&o.model, Mapped::open)?;
    let quant = o.qlora.then_some(QuantOptions { format: Format::Nf4, double: true });
    let model = Arc::new(Decoder::load(&source, &LoadOptions { device: device.clone(), quant })?);
    let mut adapter = Adapter::new(LoraConfig::default(), &model, 0)?;
    let mut optimiser = AdamW::new(&adapter.params, AdamWOptions::default())?;
    let mut grads = Grads::new(&adapter.params)?;

    let tokens = o.batch * o.length;
    let vocab = model.config().vocab as u32;
    let ids: Vec<i32> = (0..tokens).map(|i| (Key::derive(&[1]).words(i as u64)[0] % vocab) as i32).collect();
    let offsets: Vec<usize> = (0..=o.batch).map(|i| i * o.length).collect();
    let batch = Batch::new(&ids, &offsets, &device)?;
    let last = |i: usize| (i + 1).is_multiple_of(o.length);
    let targets: Vec<i32> = (0..tokens).map(|i| if last(i) { -1 } else { ids[i + 1] }).collect();
    let targets = Targets::new(&targets, &device)?;
    let divisor = targets.count() as f32;

    let times: Arc<Mutex<BTreeMap<&'static str, (usize, Duration)>>> = Arc::default();
    let mut seconds = Vec::new();
    let mut loss = 0.0;
    for step in 0..o.steps + 2 {
        if o.trace && step == 2 {
            let times = times.clone();
            device.hooks().listen(move |launch| {
                if let Ok(mut times) = times.lock() {
                    let entry = times.entry(launch.kernel).or_default();
                    *entry = (entry.0 + 1, entry.1 + launch.time);
                }
            });
        }
        let start = Instant::now();
        loss = device.enter(|| -> Result<f32> {
            grads.zero()?;
            let ctx = Ctx { train: true, checkpoint: o.checkpointing, ..Ctx::eval(o.dtype) };
            let ctx = ctx.with_adapters(adapter.set());
            let tape = Tape::new();
            let loss = model.loss(&tape, &batch, &targets, divisor, &ctx)?;
            tape.backward(&loss, &mut grads)?;
            loss.value().item()
        })?;
        let params = Arc::get_mut(&mut adapter.params).ok_or_else(|| Error::aliased("parameters are still held"))?;
        optimiser.step(params, &grads, 2e-4)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let timed = &mut seconds[2..];
    timed.sort_by(f64::total_cmp);
    println!(
        "{{\"bench\": \"lora_step\", \"qlora\": {}, \"dtype\": \"{}\", \"threads\": {}, \"batch\": {}, \"length\": {}, \
         \"tokens_per_second\": {:.1}, \"peak_mib\": {}, \"loss\": {loss}}}",
        o.qlora,
        o.dtype,
        device.as_cpu()?.threads(),
        o.batch,
        o.length,
        tokens as f64 / timed[timed.len() / 2],
        peak_mib()
    );
    let mut rows: Vec<_> = times.lock().map(|t| t.clone()).unwrap_or_default().into_iter().collect();
    rows.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
    for (kernel, (count, time)) in rows {
        println!(
            "{kernel:24} {:6} launches {:9.2} ms a step",
            count / o.steps,
            time.as_secs_f64() * 1e3 / o.steps as f64
        );
    }
    Ok(())
}

/// The most memory that the process had resident, from Linux's VmHWM; 0 elsewhere.
fn peak_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) / 1024
}

/// `None` when there is no model: `cargo test --benches` and `cargo bench` without arguments have nothing to measure.
fn options() -> Result<Option<Options>> {
    let mut o = Options {
        model: PathBuf::new(),
        qlora: false,
        dtype: DType::F32,
        checkpointing: false,
        trace: false,
        threads: None,
        batch: 1,
        length: 512,
        steps: 7,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Error::invalid(format!("{arg} needs a value")));
        let number = |text: String| text.parse::<usize>().map_err(|_| Error::invalid(format!("{text}: not a number")));
        match arg.as_str() {
            "--model" => o.model = value()?.into(),
            "--threads" => o.threads = Some(number(value()?)?),
            "--batch" => o.batch = number(value()?)?,
            "--length" => o.length = number(value()?)?,
            "--steps" => o.steps = number(value()?)?.max(1),
            "--qlora" => o.qlora = true,
            "--bf16" => o.dtype = DType::BF16,
            "--checkpointing" => o.checkpointing = true,
            "--trace" => o.trace = true,
            "--bench" => {}
            other => return Err(Error::invalid(format!("unknown option {other}"))),
        }
    }
    Ok(Some(o).filter(|o| !o.model.as_os_str().is_empty()))
}
