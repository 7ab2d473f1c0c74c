//! Loads a model and continues a text, with the library alone.
//!
//! ```text
//! cargo run --release --features train --example generate -- MODEL "The capital of France"
//! ```
//!
//! MODEL is a Hugging Face folder or a .gguf file; without arguments, the small model of the built-in demo.

use kinglet::models::{Ctx, LoadOptions, Request, Sampling, generate};
use kinglet::train::{Base, OpenOptions};
use kinglet::{CpuOptions, DType, Device, Result};
use std::ops::ControlFlow;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo-model").into());
    let text = args.next().unwrap_or_else(|| "This package contains".into());

    let device = Device::cpu(CpuOptions::default())?;
    let base = Base::open(path.as_ref(), OpenOptions::default())?;
    let model = base.load(&LoadOptions { device, quant: None })?; // weights stay in the mapped file

    let prompt: Vec<i32> = base.tokenizer.encode(&text, true)?.into_iter().map(|id| id as i32).collect();
    let stop: Vec<i32> = base.tokenizer.eos_ids().iter().map(|&id| id as i32).collect();
    let request = Request { prompt: &prompt, max_new_tokens: 60, stop: &stop, sampling: Sampling::default() };
    let made = generate(&model, &request, &Ctx::eval(DType::F32), |_| ControlFlow::Continue(()))?;

    let ids: Vec<u32> = made.tokens.iter().map(|&id| id as u32).collect();
    println!("{text}{}", base.tokenizer.decode(&ids, true)?);
    Ok(())
}
