//! Computing in bf16 beside computing in f32: logits, loss and LoRA gradients, over weights of every form.
#![allow(clippy::unwrap_used)]

mod support;

use kinglet::autograd::{Grads, Tape};
use kinglet::models::{Ctx, Decoder, QuantOptions};
use kinglet::{DType, Tensor};
use support::{NF4, adapter, batch, device, ids, load};

/// What one pass gives in f32.
struct Outcome {
    logits: Tensor,
    loss: f32,
    gradients: Vec<(String, Tensor)>,
}

fn pass(model: &Decoder, dtype: DType) -> Outcome {
    let device = model.device();
    let adapter = adapter(model, 0.0);
    let ctx = Ctx::eval(dtype).with_adapters(adapter.set());
    let (batch, targets, count) = batch(&[ids(40, 80, 1), ids(111, 80, 2)], device);
    let (tape, mut grads) = (Tape::new(), Grads::new(&adapter.params).unwrap());
    let hidden = model.hidden(&tape, &batch, None, &ctx).unwrap();
    assert_eq!(hidden.dtype(), dtype);
    let logits = model.logits(&hidden.detach(), &ctx).unwrap().value().clone();
    let (loss, _) = model.losses(&hidden, &targets, count, &ctx).unwrap();
    tape.backward(&loss, &mut grads).unwrap();
    let gradient = |(id, p): (usize, &kinglet::autograd::Param)| (p.name.clone(), grads.tensor(id).unwrap());
    Outcome {
        logits,
        loss: loss.value().item().unwrap(),
        gradients: adapter.params.params().iter().enumerate().map(gradient).collect(),
    }
}

/// The roundings to bf16 that a value passes on its way through the model, one after another: in a layer 11 results
/// (two norms, projections in, rotation, attention, projection out, two sums, gate, product, projection down), and the
/// two operands of its four products.
fn roundings(model: &Decoder) -> usize {
    (11 + 8) * model.config().layers.len() + 3
}

/// How far a vector may be off, relative to its length: each rounding to nearest is off by up to 2^-9, either way, so
/// that n of them walk a distance of sqrt(n). Four times that is what the worst of a few hundred vectors may reach.
fn tolerance(roundings: usize) -> f64 {
    4.0 * 2f64.powi(-9) * (roundings as f64).sqrt()
}

/// |got - want| / |want|
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let gap = norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(g - w)));
    gap / norm(&mut want.iter().map(|&w| f64::from(w)))
}

fn check(name: &str, quant: Option<QuantOptions>) {
    let model = load(name, quant, &device(2));
    let (half, full) = (pass(&model, DType::BF16), pass(&model, DType::F32));
    let forward = tolerance(roundings(&model));
    let width = full.logits.shape()[1];
    let (got, want) = (half.logits.to_vec::<f32>().unwrap(), full.logits.to_vec::<f32>().unwrap());
    let mut worst = 0f64;
    for (token, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let off = distance(got, want);
        worst = worst.max(off);
        assert!(off <= forward, "{name}, logits of token {token}: {off} off, {forward} allowed");
    }
    assert!(worst > 0.0, "{name}: bf16 and f32 give the same");
    let off = f64::from((half.loss - full.loss).abs() / full.loss);
    assert!(off <= forward, "{name}: loss {} where f32 has {}", half.loss, full.loss);
    // Back through the same operations, each of which has two gradients to make of values that are off already.
    let backward = tolerance(3 * roundings(&model));
    let mut worst_gradient = 0f64;
    for ((parameter, got), (_, want)) in half.gradients.iter().zip(&full.gradients) {
        let off = distance(&got.to_vec::<f32>().unwrap(), &want.to_vec::<f32>().unwrap());
        worst_gradient = worst_gradient.max(off);
        assert!(off <= backward, "{name}, gradient of {parameter}: {off} off, {backward} allowed");
    }
    println!("{name}: logits {worst:.4} of {forward:.4}, gradients {worst_gradient:.4} of {backward:.4}");
}

#[test]
fn dense_f32() {
    ["llama", "llama3", "qwen2", "qwen3", "smollm3"].into_iter().for_each(|name| check(name, None));
}

#[test]
fn dense_bf16() {
    check("mistral", None);
}

#[test]
fn nf4() {
    ["llama", "mistral", "qwen3"].into_iter().for_each(|name| check(name, Some(NF4)));
}

#[test]
fn gguf() {
    ["gguf-llama", "gguf-llama-k", "gguf-qwen2"].into_iter().for_each(|name| check(name, None));
}
