//! A step of QLoRA training, timed whole.

use crate::job::median;
use kinglet::autograd::{Grads, Tape};
use kinglet::models::{Batch, Config, Ctx, Decoder, LoadOptions, QuantOptions};
use kinglet::optim::{AdamW, AdamWOptions};
use kinglet::peft::{Adapter, LoraConfig};
use kinglet::quant::nf4;
use kinglet::tensor::ops::Targets;
use kinglet::tensor::philox::Key;
use kinglet::{DType, Device, Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Instant;

/// How often a step of which size is run.
#[derive(Deserialize)]
pub(crate) struct Step {
    rows: usize,
    length: usize,
    rank: usize,
    warmup: usize,
    steps: usize,
}

/// Tokens a second of QLoRA steps, and the memory that they take.
pub(crate) fn step(how: &Step, model: &Map<String, Value>, device: &Device) -> Result<Value> {
    let Step { rows, length, rank, warmup, steps } = *how;
    let config = Config::from_json(model.clone())?;
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
