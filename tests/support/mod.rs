//! What the tests of this folder share: devices at the level that `KINGLET_SIMD` names, fixture models, adapters, ids.
#![allow(dead_code, reason = "each test takes what it needs")]

use kinglet::models::mmap::Mapped;
use kinglet::models::{Batch, Ctx, Decoder, LoadOptions, QuantOptions, Source};
use kinglet::peft::{Adapter, LoraConfig};
use kinglet::quant::nf4::Format;
use kinglet::tensor::ops::{self, Targets};
use kinglet::tensor::philox::Key;
use kinglet::{CpuOptions, DType, Device, Tensor};
use kinglet_oracle::simd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) fn device(threads: usize) -> Device {
    Device::cpu(CpuOptions { threads: Some(threads), simd: Some(simd()), ..CpuOptions::default() }).unwrap()
}

pub(crate) fn fixtures(kind: &str) -> PathBuf {
    // The folder that this was built in, or, on a machine that it was carried to, the one that it runs in.
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind);
    if built.exists() { built } else { Path::new("tests/fixtures").join(kind) }
}

/// The names of the folders in `folder`, sorted.
pub(crate) fn folders(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    let mut names: Vec<String> =
        entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A model of `tests/fixtures/models`, opened.
pub(crate) fn source(name: &str) -> Source {
    let folder = fixtures("models").join(name);
    let gguf = folder.join("model.gguf");
    Source::open(if gguf.exists() { &gguf } else { &folder }, Mapped::open).unwrap()
}

/// NF4 with double quantisation, the default of QLoRA.
pub(crate) const NF4: QuantOptions = QuantOptions { format: Format::Nf4, double: true };

pub(crate) fn load(name: &str, quant: Option<QuantOptions>, device: &Device) -> Decoder {
    Decoder::load(&source(name), &LoadOptions { device: device.clone(), quant }).unwrap()
}

/// An adapter on every linear layer whose two matrices are both random, so that both have gradients.
pub(crate) fn adapter(model: &Decoder, dropout: f32) -> Adapter {
    let config = LoraConfig { r: 4, lora_alpha: 8.0, lora_dropout: dropout, ..LoraConfig::default() };
    let mut adapter = Adapter::new(config, model, 1).unwrap();
    let values = ops::normal(&[adapter.params.len()], 0.1, Key::derive(&[5]), model.device()).unwrap();
    let params = Arc::get_mut(&mut adapter.params).unwrap();
    params.update(|place| ops::copy_into(&values, place)).unwrap();
    adapter
}

/// Training in f32 with `adapter` in force.
pub(crate) fn training(adapter: &Adapter) -> Ctx {
    Ctx { train: true, key: Key::derive(&[7]), ..Ctx::eval(DType::F32).with_adapters(adapter.set()) }
}

/// `len` ids below `vocab` that look random, others for each seed.
pub(crate) fn ids(len: usize, vocab: usize, seed: u64) -> Vec<i32> {
    let key = Key::derive(&[seed]);
    (0..len).map(|i| (key.words(i as u64)[0] as usize % vocab) as i32).collect()
}

/// Rows end to end with the next token as each one's target, and the number of targets.
pub(crate) fn batch(rows: &[Vec<i32>], device: &Device) -> (Batch, Targets, f32) {
    let mut offsets = vec![0];
    offsets.extend(rows.iter().scan(0, |end, row| {
        *end += row.len();
        Some(*end)
    }));
    let targets: Vec<i32> = rows.iter().flat_map(|row| row[1..].iter().copied().chain([-1])).collect();
    let targets = Targets::new(&targets, device).unwrap();
    let count = targets.count() as f32;
    (Batch::new(&rows.concat(), &offsets, device).unwrap(), targets, count)
}

/// The bits of f32 values.
pub(crate) fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}
