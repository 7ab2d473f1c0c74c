//! LoRA in a loop of your own: adapters on a decoder, accumulated gradients, AdamW, and PEFT's files at the end.
//!
//! ```text
//! cargo run --release --example lora -- [MODEL] [OUTPUT]
//! ```
//!
//! Without arguments the small model of the built-in demo learns one sequence of tokens by heart.

use kinglet::autograd::{Grads, Tape};
use kinglet::models::fs::{Disk, write_folder_atomic};
use kinglet::models::mmap::Mapped;
use kinglet::models::{Batch, Ctx, Decoder, LoadOptions, Source};
use kinglet::optim::{AdamW, AdamWOptions};
use kinglet::peft::{Adapter, LoraConfig};
use kinglet::tensor::ops::Targets;
use kinglet::tensor::philox::Key;
use kinglet::{CpuOptions, DType, Device, Error, Result};
use std::sync::Arc;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model").into());
    let output = args.next();

    let device = Device::cpu(CpuOptions::default())?;
    let source = Source::open(path.as_ref(), Mapped::open)?;
    let model = Decoder::load(&source, &LoadOptions { device: device.clone(), quant: None })?;
    let mut adapter = Adapter::new(LoraConfig { r: 8, lora_dropout: 0.05, ..LoraConfig::default() }, &model, 0)?;
    let mut grads = Grads::new(&adapter.params)?;
    let mut optimiser = AdamW::new(&adapter.params, AdamWOptions::default())?;

    // Two rows end to end, never padded; each token's target is the next one, -1 where a row ends.
    let rows: [Vec<i32>; 2] = [(100..140).collect(), (300..320).collect()];
    let ids = rows.concat();
    let batch = Batch::new(&ids, &[0, rows[0].len(), ids.len()], &device)?;
    let targets: Vec<i32> = rows.iter().flat_map(|r| r[1..].iter().copied().chain([-1])).collect();
    let targets = Targets::new(&targets, &device)?;

    for step in 0..40u64 {
        // The model never changes; what varies from step to step is in the context.
        let ctx = Ctx { train: true, key: Key::derive(&[42, step]), ..Ctx::eval(DType::F32) };
        let ctx = ctx.with_adapters(adapter.set());
        let tape = Tape::new();
        let loss = model.loss(&tape, &batch, &targets, targets.count() as f32, &ctx)?;
        grads.zero()?;
        tape.backward(&loss, &mut grads)?;
        let value = loss.value().item()?;
        drop(loss);
        drop((tape, ctx)); // parameters change in place, so nobody may hold them
        let params = Arc::get_mut(&mut adapter.params).ok_or_else(|| Error::aliased("the adapter is still in use"))?;
        optimiser.step(params, &grads, 3e-3)?;
        if step % 10 == 9 {
            println!("step {}: loss {value:.4}", step + 1);
        }
    }
    if let Some(output) = output {
        write_folder_atomic(&Disk, output.as_ref(), false, |folder| adapter.save(folder))?;
        println!("saved in {output}: PEFT loads it");
    }
    Ok(())
}
