//! Decoding: tokens a second over a KV cache after a short prompt, the likeliest token each time.
//!
//! ```text
//! cargo bench --bench decode_step -- --model SmolLM2.gguf [--nf4] [--f32] [--threads N] [--tokens N] [--trace]
//! ```
//!
//! Prints one JSON line: tokens_per_second (of the tokens after the first) and the peak of the resident memory; with --trace,
//! the time of each kernel too.
#![forbid(unsafe_code)]

use kinglet::models::mmap::Mapped;
use kinglet::models::{Ctx, Decoder, LoadOptions, QuantOptions, Request, Sampling, Source, generate};
use kinglet::quant::nf4::Format;
use kinglet::{CpuOptions, DType, Device, Error, Result};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

struct Options {
    model: PathBuf,
    nf4: bool,
    dtype: DType,
    trace: bool,
    threads: Option<usize>,
    tokens: usize,
}

fn main() -> Result<()> {
    match options()? {
        Some(options) => bench(&options),
        None => {
            println!("decode_step: skipped, no --model given");
            Ok(())
        }
    }
}

fn bench(o: &Options) -> Result<()> {
    let device = Device::cpu(CpuOptions { threads: o.threads, ..CpuOptions::default() })?;
    let source = Source::open(&o.model, Mapped::open)?;
    let quant = o.nf4.then_some(QuantOptions { format: Format::Nf4, double: true });
    let model = Decoder::load(&source, &LoadOptions { device: device.clone(), quant })?;
    let ctx = Ctx::eval(o.dtype);
    let prompt: Vec<i32> = (1..=16).collect();
    let request = Request { prompt: &prompt, max_new_tokens: o.tokens, stop: &[], sampling: Sampling::default() };

    let times: Arc<Mutex<BTreeMap<&'static str, (usize, Duration)>>> = Arc::default();
    let mut at = Vec::new();
    let generation = generate(&model, &request, &ctx, |_| {
        if o.trace && at.is_empty() {
            let times = times.clone();
            device.hooks().listen(move |launch| {
                if let Ok(mut times) = times.lock() {
                    let entry = times.entry(launch.kernel).or_default();
                    *entry = (entry.0 + 1, entry.1 + launch.time);
                }
            });
        }
        at.push(Instant::now());
        ControlFlow::Continue(())
    })?;
    let mut steps: Vec<f64> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    steps.sort_by(f64::total_cmp);
    let median = *steps.get(steps.len() / 2).ok_or_else(|| Error::invalid("a step is needed"))?;
    println!(
        "{{\"bench\": \"decode_step\", \"nf4\": {}, \"dtype\": \"{}\", \"threads\": {}, \"tokens_per_second\": {:.1}, \
         \"best\": {:.1}, \"peak_mib\": {}, \"last\": {:?}}}",
        o.nf4,
        o.dtype,
        device.as_cpu()?.threads(),
        1.0 / median,
        1.0 / steps[0],
        peak_mib(),
        generation.tokens.last(),
    );
    let mut rows: Vec<_> = times.lock().map(|t| t.clone()).unwrap_or_default().into_iter().collect();
    rows.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
    for (kernel, (count, time)) in rows {
        let steps = steps.len() as f64;
        let (count, time) = (count as f64 / steps, time.as_secs_f64() * 1e3 / steps);
        println!("{kernel:24} {count:6.1} launches {time:9.4} ms a token");
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
    let (model, dtype) = (PathBuf::new(), DType::BF16);
    let mut o = Options { model, nf4: false, dtype, trace: false, threads: None, tokens: 128 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Error::invalid(format!("{arg} needs a value")));
        let number = |text: String| text.parse::<usize>().map_err(|_| Error::invalid(format!("{text}: not a number")));
        match arg.as_str() {
            "--model" => o.model = value()?.into(),
            "--threads" => o.threads = Some(number(value()?)?),
            "--tokens" => o.tokens = number(value()?)?.max(2),
            "--nf4" => o.nf4 = true,
            "--f32" => o.dtype = DType::F32,
            "--trace" => o.trace = true,
            "--bench" => {}
            other => return Err(Error::invalid(format!("unknown option {other}"))),
        }
    }
    Ok(Some(o).filter(|o| !o.model.as_os_str().is_empty()))
}
