//! Packed rows do not see each other: whatever a row gives, it gives bit for bit alone, between any neighbours, and on
//! any number of threads.
//!
//! Rows here have more tokens and targets than `cpu::gemm::FEW_ROWS`: a batch of fewer takes another path through
//! products, which adds in another order.
#![allow(clippy::unwrap_used)]

mod support;

use kinglet::autograd::{Grads, Tape};
use kinglet::models::{Batch, Ctx, Decoder};
use kinglet::peft::{Adapter, LoraConfig};
use kinglet::tensor::ops::{self, Targets};
use kinglet::tensor::philox::Key;
use kinglet::{DType, Tensor};
use std::sync::Arc;
use support::{NF4, adapter, batch, bits, device, ids, load};

/// Every structure of attention and positions, weights of every form.
const MODELS: [&str; 6] = ["llama", "llama-dynamic", "mistral", "qwen2-window", "qwen3", "smollm3"];
/// Shorter and longer than a tile of keys (64 to 168), a block of rows (112 to 336) and a run of the backward pass (500 rows, of which a
/// token has one for each head of its key head); none a multiple of anything.
const LENGTHS: [usize; 4] = [97, 10, 1030, 115];
/// Ids that every model has.
const VOCAB: usize = 64;
const THREADS: [usize; 3] = [1, 2, 3];

/// Row `r` has only ids of its own, so that the gradient of the embedding falls into one part a row.
fn rows(vocab: usize) -> Vec<Vec<i32>> {
    let n = LENGTHS.len();
    let own = |r: usize, id: i32| id * n as i32 + r as i32;
    let row = |(r, len): (usize, usize)| ids(len, vocab / n, r as u64).into_iter().map(|id| own(r, id)).collect();
    LENGTHS.into_iter().enumerate().map(row).collect()
}

/// An adapter that trains the embedding too.
fn with_embedding(model: &Decoder) -> Adapter {
    let config = LoraConfig { r: 4, modules_to_save: vec!["embed_tokens".into()], ..LoraConfig::default() };
    let mut adapter = Adapter::new(config, model, 1).unwrap();
    let values = ops::normal(&[adapter.params.len()], 0.1, Key::derive(&[5]), model.device()).unwrap();
    let params = Arc::get_mut(&mut adapter.params).unwrap();
    params.update(|place| ops::copy_into(&values, place)).unwrap();
    adapter
}

/// What a pass gives, as bits: hidden states and losses by token, gradients of the embedding by id and of all else.
struct Outcome {
    hidden: Vec<Vec<u32>>,
    losses: Vec<u32>,
    embedding: Vec<Vec<u32>>,
    adapters: Vec<u32>,
}

fn by_row(t: &Tensor) -> Vec<Vec<u32>> {
    bits(t).chunks(t.shape()[1]).map(<[u32]>::to_vec).collect()
}

/// Forward and backward over packed rows, with targets in those that `learnt` names.
fn pass(name: &str, rows: &[Vec<i32>], learnt: impl Fn(usize) -> bool, threads: usize, divisor: f32) -> Outcome {
    let device = device(threads);
    let model = load(name, None, &device);
    let adapter = with_embedding(&model);
    let (batch, targets, _) = batch(rows, &device);
    let learnt: Vec<bool> = rows.iter().enumerate().flat_map(|(r, row)| vec![learnt(r); row.len()]).collect();
    let mut classes = vec![-1; targets.rows()];
    for &(row, class) in targets.list().iter().filter(|&&(row, _)| learnt[row]) {
        classes[row] = class as i32;
    }
    let targets = Targets::new(&classes, &device).unwrap();
    let ctx = Ctx::eval(DType::F32).with_adapters(adapter.set());
    let (tape, mut grads) = (Tape::new(), Grads::new(&adapter.params).unwrap());
    let hidden = model.hidden(&tape, &batch, None, &ctx).unwrap();
    let (loss, losses) = model.losses(&hidden, &targets, divisor, &ctx).unwrap();
    tape.backward(&loss, &mut grads).unwrap();
    let is_embedding = |id: &usize| adapter.params.params()[*id].name.contains("embed_tokens");
    let (embedding, others): (Vec<_>, Vec<_>) = (0..adapter.params.params().len()).partition(is_embedding);
    assert!(embedding.len() == 1 && !others.is_empty());
    Outcome {
        hidden: by_row(hidden.value()),
        losses: bits(&losses),
        embedding: by_row(&grads.tensor(embedding[0]).unwrap()),
        adapters: others.iter().flat_map(|&id| bits(&grads.tensor(id).unwrap())).collect(),
    }
}

fn some_are_not_zero(bits: &[u32]) -> bool {
    bits.iter().any(|&b| b << 1 != 0)
}

#[test]
fn a_row_gives_the_same_bits_packed_and_alone() {
    for name in MODELS {
        let rows = rows(VOCAB);
        let packed = pass(name, &rows, |_| true, 2, 500.0);
        let mut start = 0;
        for (r, row) in rows.iter().enumerate() {
            let alone = pass(name, std::slice::from_ref(row), |_| true, 1, 500.0);
            let here = start..start + row.len();
            assert!(packed.hidden[here.clone()] == alone.hidden, "{name}, row {r}: hidden states");
            assert!(packed.losses[here] == alone.losses, "{name}, row {r}: losses");
            for &id in row {
                let (packed, alone) = (&packed.embedding[id as usize], &alone.embedding[id as usize]);
                assert!(packed == alone, "{name}, row {r}: gradient of token {id}");
            }
            assert!(row.iter().any(|&id| some_are_not_zero(&alone.embedding[id as usize])), "{name}, row {r}");
            start += row.len();
        }
    }
}

/// Parameters sum over all rows; the sum of one row that is learnt and others that are not is that of the one.
#[test]
fn rows_without_targets_add_nothing_to_gradients() {
    for name in MODELS {
        let rows = rows(VOCAB);
        for first in 0..rows.len() {
            let order: Vec<_> = (0..rows.len()).map(|r| rows[(first + r) % rows.len()].clone()).collect();
            let packed = pass(name, &order, |r| r == 0, 2, 100.0);
            let alone = pass(name, &order[..1], |_| true, 1, 100.0);
            assert!(packed.adapters == alone.adapters && some_are_not_zero(&alone.adapters), "{name}, row {first}");
        }
    }
}

#[test]
fn packed_gradients_have_the_same_bits_on_any_number_of_threads() {
    for name in MODELS {
        let [one, two, three] = THREADS.map(|threads| pass(name, &rows(VOCAB), |_| true, threads, 500.0));
        for other in [two, three] {
            assert!(one.hidden == other.hidden && one.losses == other.losses, "{name}");
            assert!(one.embedding == other.embedding && one.adapters == other.adapters, "{name}");
        }
    }
}

/// Here rows may be short: both packs take the same path.
#[test]
fn changing_a_row_leaves_its_neighbours_as_they_were() {
    let models = MODELS.map(|name| (name, None));
    for (name, quant) in models.into_iter().chain([("llama", Some(NF4)), ("gguf-llama", None), ("gguf-qwen2", None)]) {
        for dtype in [DType::F32, DType::BF16] {
            let hidden = |seed: u64, threads| {
                let device = device(threads);
                let model = load(name, quant, &device);
                let adapter = adapter(&model, 0.0);
                let ctx = Ctx::eval(dtype).with_adapters(adapter.set());
                let seeds = [1, seed, 2, 3];
                let rows: Vec<_> = [3, 99, 1, 250].into_iter().zip(seeds).map(|(len, s)| ids(len, VOCAB, s)).collect();
                let offsets = [0, 3, 102, 103, 353];
                let batch = Batch::new(&rows.concat(), &offsets, &device).unwrap();
                let hidden = model.hidden(&Tape::inert(), &batch, None, &ctx).unwrap().value().clone();
                by_row(&hidden.to_dtype(DType::F32).unwrap())
            };
            let (before, after) = (hidden(10, 1), hidden(11, 3));
            assert!(before[3..102] != after[3..102], "{name}, {dtype}: the row that changed");
            assert!(before[..3] == after[..3] && before[102..] == after[102..], "{name}, {dtype}");
        }
    }
}
