//! The kernels that a training step spends its time in, at the shapes of SmolLM2-135M with 512 tokens. Throughput is in
//! multiply-adds; two of them are four floating-point operations.
//!
//! ```text
//! cargo bench --bench kernels
//! ```
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kinglet::quant::{Direction, FourBit, Weight, nf4::Format};
use kinglet::tensor::ops::{self, KvView, Mask, Segments};
use kinglet::tensor::philox::Key;
use kinglet::{CpuOptions, Device, Tensor};
use std::sync::Arc;

const TOKENS: usize = 512;
const HIDDEN: usize = 576;
const INNER: usize = 1536;

fn random(shape: &[usize], device: &Device) -> Tensor {
    ops::normal(shape, 1.0, Key::derive(&[shape.len() as u64]), device).unwrap()
}

fn products(c: &mut Criterion) {
    let device = Device::cpu(CpuOptions::default()).unwrap();
    let mut group = c.benchmark_group("linear");
    group.throughput(Throughput::Elements((TOKENS * HIDDEN * INNER) as u64)).sample_size(20);
    let dense = random(&[INNER, HIDDEN], &device);
    let four_bit = Arc::new(FourBit::quantize(&dense, Format::Nf4, 64, true).unwrap());
    let (x, dy) = (random(&[TOKENS, HIDDEN], &device), random(&[TOKENS, INNER], &device));
    for (name, weight) in [("f32", Weight::Dense(dense)), ("nf4", Weight::FourBit(four_bit))] {
        group.bench_function(format!("{name} forward"), |b| b.iter(|| weight.matmul(&x, Direction::Forward).unwrap()));
        group.bench_function(format!("{name} backward"), |b| {
            b.iter(|| weight.matmul(&dy, Direction::Backward).unwrap())
        });
    }
    group.finish();
}

fn attention(c: &mut Criterion) {
    let device = Device::cpu(CpuOptions::default()).unwrap();
    let (heads, kv_heads, d) = (9, 3, 64);
    let (q, dy) = (random(&[TOKENS, heads, d], &device), random(&[TOKENS, heads, d], &device));
    let (k, v) = (random(&[TOKENS, kv_heads, d], &device), random(&[TOKENS, kv_heads, d], &device));
    let (kv, segments) = (KvView { k: &k, v: &v }, Segments::one(TOKENS, TOKENS).unwrap());
    let mut group = c.benchmark_group("attention");
    group.throughput(Throughput::Elements((TOKENS * TOKENS * heads * d) as u64)).sample_size(20);
    let forward = || ops::attention(&q, kv, &segments, Mask::Causal, 0.125).unwrap();
    let (out, lse) = forward();
    group.bench_function("forward", |b| b.iter(forward));
    group.bench_function("backward", |b| {
        b.iter(|| ops::attention_backward(&dy, &q, kv, &out, &lse, &segments, Mask::Causal, 0.125).unwrap());
    });
    group.finish();
}

fn rows(c: &mut Criterion) {
    let device = Device::cpu(CpuOptions::default()).unwrap();
    let mut group = c.benchmark_group("rows");
    let (x, weight) = (random(&[TOKENS, HIDDEN], &device), random(&[HIDDEN], &device));
    let (gate, up) = (random(&[TOKENS, INNER], &device), random(&[TOKENS, INNER], &device));
    group.bench_function("rms_norm", |b| b.iter(|| ops::rms_norm(&x, &weight, 1e-5).unwrap()));
    let residual = random(&[TOKENS, HIDDEN], &device);
    group.bench_function("add_rms_norm", |b| b.iter(|| ops::add_rms_norm(&x, &residual, &weight, 1e-5).unwrap()));
    group.bench_function("swiglu", |b| b.iter(|| ops::swiglu(&gate, &up).unwrap()));
    group.finish();
}

criterion_group!(kernels, products, attention, rows);
criterion_main!(kernels);
