//! The logits of a text of token ids, as a safetensors file: to compare kinglet with other programs, number by number.
//!
//! ```text
//! cargo run --release --example logits -- MODEL IDS.json OUT.safetensors [--adapter FOLDER] [--nf4]
//! ```
//!
//! IDS.json is a list of rows of ids; OUT gets one tensor [tokens, vocab] of f32 a row, called by the row's index.

use kinglet::autograd::Tape;
use kinglet::models::mmap::Mapped;
use kinglet::models::{Batch, Ctx, Decoder, LoadOptions, QuantOptions, Source};
use kinglet::peft::Adapter;
use kinglet::quant::nf4::Format;
use kinglet::{CpuOptions, DType, Device};
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let (mut adapter, mut quant, mut paths) = (None, None, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--adapter" => adapter = Some(PathBuf::from(args.next().ok_or("--adapter needs a folder")?)),
            "--nf4" => quant = Some(QuantOptions { format: Format::Nf4, double: true }),
            _ => paths.push(PathBuf::from(arg)),
        }
    }
    let [model, ids, out] = &paths[..] else { return Err("MODEL IDS.json OUT.safetensors, please".into()) };

    let device = Device::cpu(CpuOptions::default())?;
    let source = Source::open(model, Mapped::open)?;
    let model = Decoder::load(&source, &LoadOptions { device, quant })?;
    let rows: Vec<Vec<i32>> = serde_json::from_str(&std::fs::read_to_string(ids)?)?;
    write(&logits(&model, adapter.as_deref(), &rows)?, model.config().vocab, out)
}

fn logits(model: &Decoder, adapter: Option<&Path>, rows: &[Vec<i32>]) -> Result<Vec<Vec<f32>>> {
    let mut ctx = Ctx::eval(DType::F32);
    if let Some(folder) = adapter {
        ctx = ctx.with_adapters(Adapter::load(folder, model)?.set());
    }
    let logits = |row: &Vec<i32>| {
        let tape = Tape::inert(); // keeps nothing: there is no backward pass
        let batch = Batch::new(row, &[0, row.len()], model.device())?;
        let hidden = model.hidden(&tape, &batch, None, &ctx)?;
        Ok(model.logits(&hidden, &ctx)?.value().to_vec::<f32>()?)
    };
    rows.iter().map(logits).collect()
}

fn write(rows: &[Vec<f32>], vocab: usize, out: &Path) -> Result<()> {
    let bytes: Vec<Vec<u8>> = rows.iter().map(|row| row.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let mut tensors = Vec::new();
    for (i, bytes) in bytes.iter().enumerate() {
        tensors.push((i.to_string(), TensorView::new(Dtype::F32, vec![bytes.len() / 4 / vocab, vocab], bytes)?));
    }
    Ok(std::fs::write(out, serialize(tensors, None)?)?)
}
