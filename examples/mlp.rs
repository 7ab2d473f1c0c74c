//! Trains a small multi-layer perceptron to tell two spirals apart: tensors, tape, parameters, AdamW and nothing else.
//!
//! ```text
//! cargo run --release --example mlp
//! ```

use kinglet::autograd::{Grads, ParamSet, Tape, Var, ops};
use kinglet::optim::{AdamW, AdamWOptions};
use kinglet::tensor::ops as tensor_ops;
use kinglet::tensor::philox::Key;
use kinglet::{CpuOptions, DType, Device, Result, Tensor};

const POINTS: usize = 400;
const WIDTH: usize = 32;

fn main() -> Result<()> {
    let device = Device::cpu(CpuOptions::default())?;
    let (points, classes) = spirals(&device)?;

    let weight = |name: &str, i: u64, shape: [usize; 2]| -> Result<(String, Tensor)> {
        let deviation = (2.0 / shape[0] as f32).sqrt();
        Ok((name.into(), tensor_ops::normal(&shape, deviation, Key::derive(&[1, i]), &device)?))
    };
    let bias = |name: &str, n: usize| -> Result<(String, Tensor)> {
        Ok((name.into(), Tensor::zeros(&[n], DType::F32, &device)?))
    };
    let values = vec![
        weight("in.weight", 0, [2, WIDTH])?,
        bias("in.bias", WIDTH)?,
        weight("mid.weight", 1, [WIDTH, WIDTH])?,
        bias("mid.bias", WIDTH)?,
        weight("out.weight", 2, [WIDTH, 2])?,
        bias("out.bias", 2)?,
    ];
    let mut params = ParamSet::new(values, &device)?;
    let mut grads = Grads::new(&params)?;
    let mut optimiser = AdamW::new(&params, AdamWOptions::default())?;

    for step in 1..=600 {
        let tape = Tape::new(); // owned: what a step recorded ends with the step
        let logits = forward(&tape, &params, &points)?;
        let loss = ops::cross_entropy(&logits, &classes, POINTS as f32)?;
        grads.zero()?;
        tape.backward(&loss, &mut grads)?;
        let value = loss.value().item()?;
        drop((logits, loss));
        drop(tape); // parameters change in place, so nobody may hold them
        optimiser.step(&mut params, &grads, 1e-2)?;
        if step % 100 == 0 {
            println!("step {step}: loss {value:.4}");
        }
    }

    let tape = Tape::inert(); // the same model code, keeping nothing
    let guesses = tensor_ops::argmax(forward(&tape, &params, &points)?.value(), 1)?.to_vec::<i32>()?;
    let right = guesses.iter().zip(classes.to_vec::<i32>()?).filter(|(guess, class)| **guess == *class).count();
    println!("{right} of {POINTS} points are told apart");
    Ok(())
}

fn forward<'t>(tape: &'t Tape, params: &ParamSet, points: &Tensor) -> Result<Var<'t>> {
    let layer = |x: &Var<'t>, i: usize| x.matmul(&tape.param(params, 2 * i)?)?.add(&tape.param(params, 2 * i + 1)?);
    let x = tape.constant(points.clone()); // [points, 2]
    let x = layer(&x, 0)?.tanh()?; // [points, WIDTH]
    let x = layer(&x, 1)?.tanh()?;
    layer(&x, 2) // [points, 2]
}

/// Two arms of points, three half turns each.
fn spirals(device: &Device) -> Result<(Tensor, Tensor)> {
    let (mut points, mut classes) = (Vec::new(), Vec::new());
    for i in 0..POINTS {
        let (class, t) = (i % 2, i as f32 / POINTS as f32);
        let angle = 3.0 * std::f32::consts::PI * t + std::f32::consts::PI * class as f32;
        points.extend([t * angle.cos(), t * angle.sin()]);
        classes.push(class as i32);
    }
    Ok((Tensor::from_vec(points, &[POINTS, 2], device)?, Tensor::from_vec(classes, &[POINTS], device)?))
}
