//! What the process really holds while it quantises and multiplies: the most memory that was ever resident, as Linux
//! counts it. `tests/memory.rs` counts what tensors and kernels ask for; this sees whatever went by them. One test, alone
//! in its process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use kinglet::models::mmap::Mapped;
use kinglet::models::safetensors::{self, TensorSpec};
use kinglet::models::{Config, Decoder, EMBEDDING, LoadOptions, Source, StoredType};
use kinglet::quant::{Direction, FourBit, GgufMatrix, RowOrder, Scales, Weight, ggml, nf4};
use kinglet::{DType, Device, Error, Tensor};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use support::{NF4, device};

/// The most bytes of this process that were ever in memory.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}

/// A llama of two layers in bf16, every weight 1.
fn model(folder: &Path) -> Source {
    std::fs::create_dir_all(folder).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2,
        "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32, "tie_word_embeddings": true,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu", "max_position_embeddings": 64,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    // What tensors a model has is learnt from one without values.
    let outline = Decoder::random(Config::read(&folder.join("config.json")).unwrap(), 0, &Device::meta()).unwrap();
    let matrix = |name: String, weight: &Weight| (name, <[usize; 2]>::from(weight.dims().unwrap()).to_vec());
    let specs = outline.linears().map(|l| matrix(format!("{}.weight", l.site.name), &l.weight));
    let specs = specs.chain([matrix(EMBEDDING.into(), outline.embedding())]);
    let specs = specs.chain(outline.norms().map(|(name, weight)| (name.into(), weight.shape().to_vec())));
    let specs: Vec<_> = specs.map(|(name, shape)| TensorSpec { name, dtype: StoredType::BF16, shape }).collect();
    let row = [0x80u8, 0x3f].repeat(1024);
    let mut file = std::io::BufWriter::new(std::fs::File::create(folder.join("model.safetensors")).unwrap());
    safetensors::write_file(&mut file, &specs, |spec, out| {
        let rows = spec.shape.iter().product::<usize>() / 1024;
        (0..rows).try_for_each(|_| out.write_all(&row)).map_err(|e| Error::io("a tensor", e))
    })
    .unwrap();
    file.flush().unwrap();
    Source::open(folder, Mapped::open).unwrap()
}

/// Quantising 58 MiB of matrices, the largest of them 8 MiB.
fn loading_holds_two_matrices(device: &Device) {
    let source = model(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("resident"));
    let before = peak();
    let model = Decoder::load(&source, &LoadOptions { device: device.clone(), quant: Some(NF4) }).unwrap();
    let held = peak() - before;
    let elements: usize = model.linears().map(|l| l.weight.dims().unwrap()).map(|(rows, columns)| rows * columns).sum();
    // NF4 codes, a byte of scale for 64 of them and a little more; the pages of the two matrices that are just being read.
    let (packed, reading) = (elements / 2 + elements / 64, 2 * 2 * 4096 * 1024);
    let stored = 2 * elements;
    assert!(held <= packed + reading + SLACK, "{held} bytes more, of which {packed} are packed; stored are {stored}");
}

/// Products both ways, with matrices that were never dense.
fn products_hold_a_tile(device: &Device) {
    let (size, tokens) = (4096, 12);
    let x = Tensor::full(0.5, &[tokens, size], DType::F32, device).unwrap();
    let bytes = |len: usize| Tensor::full(36.0, &[len], DType::U8, device).unwrap();
    let scales = Scales::Plain(Tensor::full(0.5, &[size * size / 64], DType::F32, device).unwrap());
    let codes = bytes(size * size / 2);
    let nf4 = FourBit::new(nf4::Format::Nf4, 64, [size, size], DType::F32, codes, scales).unwrap();
    let blocks = bytes(size * size / 256 * 144);
    let q4_k = GgufMatrix::new(ggml::Format::Q4_K, [size, size], RowOrder::Plain, blocks).unwrap();
    let before = peak();
    for weight in [Weight::FourBit(Arc::new(nf4)), Weight::Gguf(q4_k)] {
        let y = weight.matmul(&x, Direction::Forward).unwrap();
        weight.matmul(&y, Direction::Backward).unwrap();
    }
    let (held, results, dense) = (peak() - before, 2 * 4 * tokens * size, 4 * size * size);
    assert!(held <= results + SLACK, "{held} bytes more, where the dense matrix has {dense}");
}

/// What is neither results nor weights: tiles, packed rows, code that runs for the first time, pages that an allocator
/// keeps.
const SLACK: usize = 8 << 20;

#[test]
fn neither_loading_nor_a_product_holds_a_quantised_matrix_dense() {
    let device = device(2);
    loading_holds_two_matrices(&device);
    products_hold_a_tile(&device);
}
