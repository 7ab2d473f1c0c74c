//! What a run holds: bytes on the device ([`Device::memory`]) and working memory of kernels (`Cpu::scratch_bytes`).
#![allow(clippy::unwrap_used)]

mod support;

use kinglet::autograd::{Grads, Tape};
use kinglet::models::{Ctx, Decoder};
use kinglet::optim::{AdamW, AdamWOptions};
use kinglet::peft::Adapter;
use kinglet::quant::{Direction, FourBit, GgufMatrix, RowOrder, Scales, Weight, ggml, nf4};
use kinglet::tensor::ops::{self, KvView, Mask, Segments, Targets, Wants};
use kinglet::tensor::philox::Key;
use kinglet::{DType, Device, Result, Tensor};
use kinglet_train::{Base, Method, Plan, Reporter, RunOptions, Settings, Start, run};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use support::{NF4, adapter, batch, bits, device, fixtures, ids, load, training};

/// The packed operands of a dense product take at most this, each (`cpu/gemm/blocked.rs`).
const PACKED: usize = 8 << 20;

/// What a tensor of `bytes` counts for: whole cache lines.
fn counted(bytes: usize) -> usize {
    bytes.next_multiple_of(64)
}

/// A model in training.
struct Learner {
    model: Decoder,
    adapter: Adapter,
    adamw: AdamW,
    grads: Grads,
}

impl Learner {
    fn new(model: Decoder) -> Self {
        let adapter = adapter(&model, 0.1);
        let adamw = AdamW::new(&adapter.params, AdamWOptions::default()).unwrap();
        let grads = Grads::new(&adapter.params).unwrap();
        Learner { model, adapter, adamw, grads }
    }

    /// One optimiser step; the loss.
    fn step(&mut self, rows: &[Vec<i32>], checkpoint: bool) -> Tensor {
        self.grads.zero().unwrap();
        let (batch, targets, count) = batch(rows, self.model.device());
        let tape = Tape::new();
        let ctx = Ctx { checkpoint, ..training(&self.adapter) };
        let loss = self.model.loss(&tape, &batch, &targets, count, &ctx).unwrap();
        assert!(tape.saved_bytes() > 0);
        tape.backward(&loss, &mut self.grads).unwrap();
        assert_eq!(tape.saved_bytes(), 0);
        let loss = loss.value().clone();
        drop((ctx, tape));
        self.adamw.step(Arc::get_mut(&mut self.adapter.params).unwrap(), &self.grads, 1e-3).unwrap();
        loss
    }
}

/// Rows that cross attention's tiles.
fn rows(model: &Decoder) -> Vec<Vec<i32>> {
    [150, 61].into_iter().zip(1..).map(|(len, seed)| ids(len, model.config().vocab, seed)).collect()
}

#[test]
fn the_fiftieth_step_takes_what_the_second_took() {
    for quant in [None, Some(NF4)] {
        let device = device(1);
        let mut learner = Learner::new(load("llama", quant, &device));
        let rows = rows(&learner.model);
        let before = device.memory().live;
        let mut uses = Vec::new();
        for _ in 0..50 {
            device.reset_peak();
            learner.step(&rows, false);
            uses.push((device.memory(), device.as_cpu().unwrap().scratch_bytes()));
        }
        assert_eq!(uses[1], uses[49]);
        assert_eq!(device.memory().live, before, "a step leaves nothing behind");
    }
}

#[test]
fn checkpointing_gives_the_same_bits_from_less_memory() {
    for (name, quant) in [("llama", None), ("qwen3", Some(NF4)), ("smollm3", None), ("gguf-llama", None)] {
        let [plain, less] = [false, true].map(|checkpoint| {
            let device = device(2);
            let mut learner = Learner::new(load(name, quant, &device));
            let rows = rows(&learner.model);
            device.reset_peak();
            let loss = learner.step(&rows, checkpoint);
            (bits(&loss), bits(learner.grads.flat().unwrap()), device.memory().peak)
        });
        assert!(plain.1.iter().any(|&b| b << 1 != 0), "{name}: some gradient is not zero");
        assert_eq!((&plain.0, &plain.1), (&less.0, &less.1), "{name}");
        assert!(less.2 < plain.2, "{name}: {} of {} bytes", less.2, plain.2);
    }
}

/// What the tensors behind a 4-bit matrix count for.
fn packed_bytes(weight: &FourBit) -> usize {
    let scales = match weight.scales() {
        Scales::Plain(absmax) => counted(4 * absmax.len()),
        Scales::Nested { codes, absmax, .. } => counted(codes.len()) + counted(4 * absmax.len()),
    };
    counted(weight.codes().len()) + scales
}

#[test]
fn quantising_while_loading_holds_two_tensors_at_most() {
    // From f32, from bf16, and from blocks, which are decoded a tensor at a time by each of two.
    for name in ["llama", "mistral", "qwen2", "gguf-llama", "gguf-llama-k"] {
        let device = device(2);
        let stored = load(name, None, &device);
        let kept = device.memory().live; // what must be copied in any case, such as rows in another order
        let model = load(name, Some(NF4), &device);
        let packed = |linear: &kinglet::models::Linear| match &*linear.weight {
            Weight::FourBit(weight) => packed_bytes(weight),
            _ => panic!("{name}: {} is not quantised", linear.site.name),
        };
        let expected: usize = model.linears().map(packed).sum();
        drop((stored, model));
        assert_eq!(device.memory().live, 0);

        device.reset_peak();
        let model = load(name, Some(NF4), &device);
        let memory = device.memory();
        let elements = |(rows, columns): (usize, usize)| rows * columns;
        let largest = model.linears().map(|l| elements(l.weight.dims().unwrap())).max().unwrap();
        // Beside the packed form of all: two tensors in f32 and their scales, of which there is one in 64 elements.
        let one = counted(4 * largest) + counted(4 * largest.div_ceil(64));
        assert!(memory.live >= expected && memory.live <= expected + kept, "{name}: {memory:?} of {expected}");
        assert!(memory.peak <= memory.live + 2 * one, "{name}: {memory:?}, one tensor is {one}");
    }
}

/// What a thread decodes at once of a weight in blocks: 512 steps of a strip of at most 32 columns, in f32
/// (`cpu/gemm/blocked.rs`).
const TILE: usize = 512 * 32 * 4;

/// A matrix of `shape` in NF4 and one in ggml blocks, made without ever being dense.
fn blocks(shape: [usize; 2], device: &Device) -> [Weight; 2] {
    let bytes = |len: usize| Tensor::full(36.0, &[len], DType::U8, device).unwrap();
    let len = shape[0] * shape[1];
    let scales = Scales::Plain(Tensor::full(0.5, &[len / 64], DType::F32, device).unwrap());
    let nf4 = FourBit::new(nf4::Format::Nf4, 64, shape, DType::F32, bytes(len / 2), scales).unwrap();
    let q4_k = GgufMatrix::new(ggml::Format::Q4_K, shape, RowOrder::Plain, bytes(len / 256 * 144)).unwrap();
    [Weight::FourBit(Arc::new(nf4)), Weight::Gguf(q4_k)]
}

/// Products both ways of `tokens` rows with matrices whose dense form is 256 tiles.
fn products_hold_a_tile(tokens: usize, dtype: DType) {
    let [rows, columns] = [4096, 1024];
    for form in 0..2 {
        let device = device(2);
        let weight = &blocks([rows, columns], &device)[form];
        let x = Tensor::full(0.5, &[tokens, columns], dtype, &device).unwrap();
        device.reset_peak();
        let before = device.memory().live;
        let y = weight.matmul(&x, Direction::Forward).unwrap();
        let dx = weight.matmul(&y, Direction::Backward).unwrap();
        let results = counted(y.storage_bytes()) + counted(dx.storage_bytes());
        let (held, scratch) = (device.memory().peak - before, device.as_cpu().unwrap().scratch_bytes());
        let what = format!("form {form}, {tokens} tokens of {dtype}: {held} and {scratch} bytes");
        assert_eq!(held, results, "{what}: nothing but results comes from the device");
        // Beside a tile a thread: x packed, by whole panels of at most 32 rows; a thread's sums of four strips; and what few rows
        // have once by columns and once by rows.
        let packed = (tokens + 32) * rows * 4;
        let sums = 2 * tokens * 4 * 32 * 4;
        let few = if tokens <= 8 { (2 * tokens + 1) * rows * 4 } else { 0 };
        assert!(scratch <= 2 * TILE + packed + sums + few, "{what}, dense the weight has {}", rows * columns * 4);
    }
}

#[test]
fn a_product_decodes_one_tile_of_its_weight_at_a_time() {
    [1, 8, 20, 40].into_iter().for_each(|tokens| products_hold_a_tile(tokens, DType::F32));
    products_hold_a_tile(40, DType::BF16);
}

#[test]
fn a_step_on_the_meta_device_counts_the_bytes_of_a_real_one() {
    for name in ["llama", "qwen3", "mistral", "smollm3", "gguf-llama", "llama-dynamic"] {
        for quant in [None, Some(NF4)] {
            for checkpoint in [false, true] {
                let [planned, real] = [Device::meta(), device(2)].map(|device| {
                    let mut learner = Learner::new(load(name, quant, &device));
                    let rows = rows(&learner.model);
                    learner.step(&rows, checkpoint);
                    device.memory()
                });
                assert_eq!(planned, real, "{name}, quantised: {}, checkpoint: {checkpoint}", quant.is_some());
            }
        }
    }
}

/// Hears the plan.
#[derive(Default)]
struct Hears(Option<Plan>);

impl Reporter for Hears {
    fn planned(&mut self, plan: &Plan) {
        self.0 = Some(plan.clone());
    }
}

#[test]
fn the_peak_that_a_run_announces_is_the_peak_that_it_reaches() {
    for (name, method) in [("llama-lora", Method::Lora), ("llama-qlora", Method::Qlora)] {
        let (base, data) = (fixtures("train").join("base-llama"), fixtures("train").join(name).join("data.jsonl"));
        let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("memory").join(name);
        let mut settings = Settings::new(base, data, output);
        settings.method = method;
        settings.max_steps = Some(3);
        // Every step takes all rows, so that each is the largest that the plan looks at.
        settings.per_device_train_batch_size = 1000;
        let (device, mut hears, stop) = (device(2), Hears::default(), AtomicBool::new(false));
        run(
            &settings,
            &device,
            RunOptions { start: Start::Overwrite, dry_run: false, stop: &stop, renderer: None },
            &mut hears,
        )
        .unwrap();
        let peak = device.memory().peak;
        let base = Base::of(&settings, None).unwrap();
        let _model = base.model(&settings, &device).unwrap();
        assert_eq!(hears.0.unwrap().peak_bytes, peak + base.source.weights.bytes_in_use(), "{name}");
    }
}

/// The peak of device bytes and the working memory of attention forward and backward over `len` tokens.
fn attention(len: usize) -> Result<(usize, usize)> {
    let device = device(2);
    let (heads, width) = (2, 8);
    let make = |heads: usize, seed| ops::normal(&[len, heads, width], 1.0, Key::derive(&[seed]), &device);
    let (q, k, v) = (make(heads, 1)?, make(1, 2)?, make(1, 3)?);
    let (kv, segments) = (KvView { k: &k, v: &v }, Segments::one(len, len)?);
    let (out, lse) = ops::attention(&q, kv, &segments, Mask::Causal, 0.3)?;
    ops::attention_backward(&out, &q, kv, &out, &lse, &segments, Mask::Causal, 0.3)?;
    Ok((device.memory().peak, device.as_cpu()?.scratch_bytes()))
}

/// The same of output projection and loss over `len` tokens, each a target.
fn loss(len: usize, classes: usize) -> Result<(usize, usize)> {
    let device = device(2);
    let hidden = ops::normal(&[len, 8], 1.0, Key::derive(&[1]), &device)?;
    let weight = ops::normal(&[classes, 8], 1.0, Key::derive(&[2]), &device)?;
    let targets = Targets::new(&ids(len, classes, 3), &device)?;
    device.reset_peak();
    let before = device.memory().live;
    let term = ops::Term { x: &hidden, weight: &weight, wants: Wants { x: true, weight: true } };
    ops::linear_cross_entropy(&[term], &targets, len as f32)?;
    Ok((device.memory().peak - before, device.as_cpu()?.scratch_bytes()))
}

const LENGTHS: [usize; 4] = [512, 1024, 2048, 4096];

#[test]
fn attention_takes_memory_by_the_token() {
    let uses = LENGTHS.map(|len| attention(len).unwrap());
    for (pair, len) in uses.windows(2).zip(LENGTHS) {
        assert!(pair[1].0 <= 2 * pair[0].0, "from {len} tokens to twice as many: {pair:?}");
    }
    for (len, (_, scratch)) in LENGTHS.into_iter().zip(uses) {
        // Partial sums of dK and dV for at most four runs, and k packed twice and v once, where heads of 8 may fill panels of
        // 32; and the tiles of a few tasks.
        let (shared, tiles) = ((2 * 4 + 3) * len * 32 * 4, 2 << 20);
        assert!(scratch <= shared + tiles, "{len} tokens: {scratch} bytes of working memory");
        assert!(scratch < len * len * 4 || len < 1024, "{len} tokens: {scratch} bytes hold S x S");
    }
}

#[test]
fn the_loss_takes_memory_by_the_token_not_by_the_class() {
    let classes = 16_384;
    let uses = LENGTHS.map(|len| loss(len, classes).unwrap());
    // Beside what does not depend on the length (the weight's gradient, one chunk of logits), a token has its loss and
    // its gradient.
    for (pair, len) in uses.windows(2).zip(LENGTHS) {
        assert!(pair[1].0 <= pair[0].0 + len * (8 * 4 + 4), "from {len} tokens to twice as many: {pair:?}");
        assert!(pair[1].1 <= 2 * PACKED, "{pair:?}");
    }
    assert!(uses[3].0 + uses[3].1 < 4096 * classes * 4 / 4, "{uses:?} holds tokens x classes");
}

#[test]
fn a_step_of_a_model_takes_memory_by_the_token() {
    for (name, quant, checkpoint) in [("llama", None, false), ("qwen3", Some(NF4), true), ("mistral", None, true)] {
        let peak = |len: usize| {
            let device = Device::meta();
            let mut learner = Learner::new(load(name, quant, &device));
            let row = ids(len, learner.model.config().vocab, 1);
            learner.step(&[row], checkpoint);
            device.memory().peak
        };
        let peaks = LENGTHS.map(peak);
        for (pair, len) in peaks.windows(2).zip(LENGTHS) {
            assert!(pair[1] <= 2 * pair[0], "{name}, from {len} tokens to twice as many: {pair:?}");
        }
    }
}

/// GGUF weights stay in the mapped file whatever their type, also where their rows lie in llama.cpp's order.
#[test]
fn a_gguf_model_is_loaded_without_copies() {
    for name in ["gguf-llama", "gguf-llama-k"] {
        let device = device(1);
        let model = load(name, None, &device);
        assert_eq!(device.memory().peak, 0, "{name}");
        drop(model);
    }
}
