//! Tape, checkpoint, parameters and optimiser on the virtual GPU: a small transformer learns there, and after every step it
//! has the bits that it has on the CPU.

use kinglet::autograd::{Grads, ParamSet, Tape, Var, ops};
use kinglet::optim::{AdamW, AdamWOptions};
use kinglet::tensor::ops::{normal, rope_table};
use kinglet::tensor::philox::Key;
use kinglet::{DType, Device, Result, Tensor};
use kinglet_oracle::{device, emulated};
use std::sync::Arc;

const TOKENS: usize = 13;
const WIDTH: usize = 24;
const VOCABULARY: usize = 37;
const STEPS: u64 = 3;

/// The embedding, which is the output projection too, and the weights of a block.
fn params(device: &Device) -> Result<ParamSet> {
    let names = ["embedding", "norm", "q", "k", "v", "gate", "up", "down"];
    let values = names.iter().enumerate().map(|(i, &name)| {
        let shape = match name {
            "embedding" => vec![VOCABULARY, WIDTH],
            "norm" => vec![WIDTH],
            _ => vec![WIDTH, WIDTH],
        };
        Ok((name.to_owned(), normal(&shape, 0.3, Key::derive(&[i as u64]), device)?))
    });
    ParamSet::new(values.collect::<Result<_>>()?, device)
}

/// Attention and SwiGLU, each with dropout.
fn block<'t>(tape: &'t Tape, set: &ParamSet, x: &Var<'t>, key: Key) -> Result<Var<'t>> {
    let positions = Tensor::from_vec((0..TOKENS as i32).collect(), &[TOKENS], x.value().device())?;
    let (cos, sin) = rope_table(&positions, &[1.0, 0.1], 1.0)?;
    let param = |name: &str| tape.param(set, set.id(name).expect("one of the names"));
    let turned = |x: Var<'t>| ops::rope(&x.reshape(&[TOKENS, 2, WIDTH / 2])?, &cos, &sin)?.transpose(0, 1);
    let normed = ops::rms_norm(x, &param("norm")?, 1e-5)?;
    let (q, k) = (turned(normed.matmul(&param("q")?)?)?, turned(normed.matmul(&param("k")?)?)?);
    let v = normed.matmul(&param("v")?)?.reshape(&[TOKENS, 2, WIDTH / 2])?.transpose(0, 1)?;
    let weights = q.matmul(&k.transpose(1, 2)?)?.affine(0.3, 0.0)?.softmax()?;
    let mixed = weights.matmul(&v)?.transpose(0, 1)?.reshape(&[TOKENS, WIDTH])?;
    let x = x.add(&ops::dropout(&mixed, 0.1, key)?)?;
    let normed = ops::rms_norm(&x, &param("norm")?, 1e-5)?;
    let hidden = ops::swiglu(&normed.matmul(&param("gate")?)?, &normed.matmul(&param("up")?)?)?;
    x.add(&ops::dropout(&hidden.matmul(&param("down")?)?, 0.1, key.child(1))?)
}

/// The bits of loss, norm and parameters after every step.
fn train(device: &Device, checkpointed: bool) -> Result<Vec<Vec<u32>>> {
    let mut set = Arc::new(params(device)?);
    let mut grads = Grads::new(&set)?;
    let options = AdamWOptions { weight_decay: 0.1, max_grad_norm: 0.5, ..AdamWOptions::default() };
    let mut adamw = AdamW::new(&set, options)?;
    let ids = |shift: usize| (0..TOKENS).map(|i| ((i + shift) * 7 % VOCABULARY) as i32).collect::<Vec<_>>();
    let (ids, targets) = (
        Tensor::from_vec(ids(0), &[TOKENS], device)?,
        Tensor::from_vec([&[-1], &ids(2)[1..]].concat(), &[TOKENS], device)?,
    );
    let mut seen = Vec::new();
    for step in 0..STEPS {
        let loss = {
            let tape = Tape::new();
            let table = tape.param(&set, 0)?;
            let x = ops::embedding(&table, &ids, DType::F32)?;
            let key = Key::derive(&[7, step]);
            let y = if checkpointed {
                let set = set.clone();
                tape.checkpoint(&[&x], move |tape, xs| Ok(vec![block(tape, &set, &xs[0], key)?]))?.remove(0)
            } else {
                block(&tape, &set, &x, key)?
            };
            let logits = y.matmul(&table.transpose(0, 1)?)?;
            let loss = ops::cross_entropy(&logits, &targets, (TOKENS - 1) as f32)?;
            tape.backward(&loss, &mut grads)?;
            loss.value().clone()
        };
        let norm = adamw.step(Arc::get_mut(&mut set).expect("the tape is gone"), &grads, 0.02)?;
        grads.zero()?;
        let bits = |t: &Tensor| Ok(t.to_vec::<f32>()?.into_iter().map(f32::to_bits).collect());
        seen.extend([&loss, &norm, set.values()].map(bits).into_iter().collect::<Result<Vec<_>>>()?);
    }
    Ok(seen)
}

#[test]
fn a_transformer_learns_with_the_bits_of_the_cpu() {
    let want = train(&device(2), false).unwrap();
    let loss = |i: usize| f32::from_bits(want[3 * i][0]);
    assert!(loss(2) < loss(0) && loss(0) > 1.0, "{} to {}", loss(0), loss(2));
    for checkpointed in [false, true] {
        for gpu in [emulated(80, 1), emulated(90, 5)] {
            assert!(train(&gpu, checkpointed).unwrap() == want, "{gpu:?}, checkpointed: {checkpointed}");
            assert_eq!(gpu.memory().live, 0, "all memory is free again");
        }
    }
}
