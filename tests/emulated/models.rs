//! Whole models on the virtual GPU: they train and generate there as on the CPU.

use crate::support::{NF4, adapter, batch, ids, load, training};
use kinglet::autograd::{Grads, Tape};
use kinglet::models::{Ctx, Finish, Request, Sampling, generate};
use kinglet::{DType, Device, Result};
use kinglet_oracle::{device, emulated};
use std::ops::ControlFlow;

/// How far two vectors are apart, relative to the second: the norm of their difference over its norm.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let gap = norm(&mut got.iter().zip(want).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    gap / norm(&mut want.iter().map(|&b| f64::from(b))).max(f64::MIN_POSITIVE)
}

/// Loss and gradients of all adapters of one pass over packed rows.
fn pass(name: &str, four_bit: bool, dtype: DType, checkpoint: bool, device: &Device) -> Result<(f32, Vec<f32>)> {
    let model = load(name, four_bit.then_some(NF4), device);
    let adapter = adapter(&model, 0.1);
    let (batch, targets, count) = batch(&[ids(9, 100, 1), ids(70, 100, 2), ids(4, 100, 3)], device);
    let ctx = Ctx { dtype, checkpoint, ..training(&adapter) };
    let (tape, mut grads) = (Tape::new(), Grads::new(&adapter.params)?);
    let loss = model.loss(&tape, &batch, &targets, count, &ctx)?;
    tape.backward(&loss, &mut grads)?;
    Ok((loss.value().item()?, grads.flat()?.to_vec()?))
}

#[test]
fn gradients() {
    for name in ["llama", "qwen2", "qwen3"] {
        for (four_bit, dtype, checkpoint) in
            [(false, DType::F32, false), (true, DType::F32, true), (true, DType::BF16, true)]
        {
            let want = pass(name, four_bit, dtype, checkpoint, &device(2)).unwrap();
            let got = pass(name, four_bit, dtype, checkpoint, &emulated(80, 1)).unwrap();
            println!("{name} {four_bit} {dtype} {checkpoint}: {} {} {}", got.0, want.0, distance(&got.1, &want.1));
        }
    }
}

fn continued(name: &str, four_bit: bool, dtype: DType, device: &Device) -> Vec<i32> {
    let model = load(name, four_bit.then_some(NF4), device);
    let request = Request { prompt: &ids(20, 100, 1), max_new_tokens: 12, stop: &[], sampling: Sampling::default() };
    let made = generate(&model, &request, &Ctx::eval(dtype), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(made.finish, Finish::Length);
    made.tokens
}

#[test]
fn generated_tokens() {
    for name in ["llama", "qwen2", "qwen3", "gguf-llama"] {
        for dtype in [DType::F32, DType::BF16] {
            let want = continued(name, false, dtype, &device(2));
            assert_eq!(continued(name, false, dtype, &emulated(80, 1)), want, "{name} {dtype}");
        }
    }
}
