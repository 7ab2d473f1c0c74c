//! What a training step spends its time in. Each op is the oracle's own case at the sizes of real models, forward, and
//! forward and backward; products with quantised weights are apart, because a case makes its weight anew each time.
//! Throughput is in floating-point operations of the forward pass. `kinglet bench op` measures the same beside PyTorch.
//!
//! ```text
//! cargo bench --bench kernels -- [FILTER]
//! ```
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kinglet::autograd::{Grads, Tape, Var};
use kinglet::quant::{Direction, FourBit, Weight, nf4::Format};
use kinglet::tensor::ops;
use kinglet::tensor::philox::Key;
use kinglet::{CpuOptions, DType, Device, Tensor};
use kinglet_oracle::{AnyCase, Input, Kind, cases};
use std::sync::Arc;

const TOKENS: usize = 512;
const HIDDEN: usize = 576;
const INNER: usize = 1536;

fn device() -> Device {
    Device::cpu(CpuOptions::default()).unwrap()
}

/// Values of an input, made where they are needed: there are too many for the oracle's f64.
fn value(input: &Input, dtype: DType, device: &Device) -> Tensor {
    let key = input.name.bytes().fold(Key::derive(&[1]), |key, byte| key.child(byte.into()));
    match &input.kind {
        Kind::Float { range: [low, high], .. } => {
            let wide = ops::uniform(&input.shape, *low as f32, *high as f32, key, device).unwrap();
            wide.to_dtype(input.dtype(dtype)).unwrap()
        }
        Kind::Integers(values) => Tensor::from_slice(values, &input.shape, device).unwrap(),
        Kind::Ids(n) => {
            let ids = (0..input.shape.iter().product()).map(|i: usize| (i * 97 % n) as i32).collect();
            Tensor::from_vec(ids, &input.shape, device).unwrap()
        }
        Kind::Mask => unreachable!("no timed case has a mask"),
    }
}

/// The inputs on a tape: leaves where a gradient flows.
fn on<'t>(tape: &'t Tape, case: &dyn AnyCase, values: &[Tensor]) -> Vec<Var<'t>> {
    let var = |(input, value): (Input, &Tensor)| match input.is_differentiable() {
        true => tape.leaf(value.clone()),
        false => tape.constant(value.clone()),
    };
    case.inputs().into_iter().zip(values).map(var).collect()
}

fn oracle(c: &mut Criterion) {
    let device = device();
    let mut group = c.benchmark_group("oracle");
    for case in cases::timed() {
        for &dtype in case.dtypes().iter().filter(|&&dtype| dtype != DType::F16) {
            let values: Vec<Tensor> = case.inputs().iter().map(|input| value(input, dtype, &device)).collect();
            let name = format!("{} {dtype}", case.label());
            group.throughput(Throughput::Elements(case.flops() as u64)).sample_size(10);
            let forward = |tape: &Tape| case.run(&on(tape, &*case, &values)).unwrap().value().clone();
            group.bench_function(format!("{name} forward"), |b| b.iter(|| forward(&Tape::inert())));
            let dy = Tensor::full(1.0, forward(&Tape::inert()).shape(), dtype, &device).unwrap();
            group.bench_function(format!("{name} both"), |b| {
                b.iter(|| {
                    let tape = Tape::new();
                    let y = case.run(&on(&tape, &*case, &values)).unwrap();
                    let dy = dy.to_dtype(y.dtype()).unwrap();
                    tape.backward_from(&[(&y, dy)], &mut Grads::none()).map(drop).unwrap();
                });
            });
        }
    }
    group.finish();
}

fn quantised(c: &mut Criterion) {
    let device = device();
    let random = |shape: &[usize]| ops::normal(shape, 1.0, Key::derive(&[shape.len() as u64]), &device).unwrap();
    let mut group = c.benchmark_group("linear");
    let dense = random(&[INNER, HIDDEN]);
    let four_bit = Arc::new(FourBit::quantize(&dense, Format::Nf4, 64, true).unwrap());
    for (name, weight) in [("dense", Weight::Dense(dense)), ("nf4", Weight::FourBit(four_bit))] {
        for (dtype, rows) in [(DType::F32, TOKENS), (DType::BF16, TOKENS), (DType::F32, 1), (DType::BF16, 1)] {
            let of = |columns| random(&[rows, columns]).to_dtype(dtype).unwrap();
            let (x, dy) = (of(HIDDEN), of(INNER));
            group.throughput(Throughput::Elements((2 * rows * HIDDEN * INNER) as u64)).sample_size(20);
            let name = format!("{name} {rows} {dtype}");
            group.bench_function(format!("{name} forward"), |b| {
                b.iter(|| weight.matmul(&x, Direction::Forward).unwrap());
            });
            group.bench_function(format!("{name} backward"), |b| {
                b.iter(|| weight.matmul(&dy, Direction::Backward).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(kernels, oracle, quantised);
criterion_main!(kernels);
