//! Ops of elements: copies, arithmetic, random numbers, the optimiser.

use crate::job::{Job, NONE_FOUND, NOWHERE, bf16, f32s, forget, normal};
use kinglet::autograd::{Grads, ParamSet};
use kinglet::optim::{AdamW, AdamWOptions};
use kinglet::tensor::ops::{self, Unary};
use kinglet::tensor::philox::Key;
use kinglet::tensor::{DType, Device, Result, Tensor};

/// Elements of 4096 rows of 14336, and what is run of them.
const LEN: usize = 4096 * 14336;
const DEPTHS: [usize; 3] = [1 << 15, 1 << 16, LEN];
const REAL: &str = "4096 x 14336";

fn operand(len: usize, device: &Device) -> Result<Tensor> {
    let x = bf16([len], device)?;
    forget(device);
    Ok(x)
}

/// A step over one parameter of `len` elements, the norm of its gradient included.
fn adamw(len: usize, device: &Device) -> Result<()> {
    let mut set = ParamSet::new(vec![("w".into(), f32s([len], device)?)], device)?;
    let (grads, mut adamw) = (Grads::new(&set)?, AdamW::new(&set, AdamWOptions::default())?);
    adamw.begin(1e-3)?;
    forget(device);
    adamw.apply(&mut set, &grads, None).map(drop)
}

/// An op of elements that moves so many bytes for each.
const fn op(name: &'static str, bytes: f64, run: fn(&Device, usize) -> Result<()>) -> Job {
    Job {
        name,
        real: REAL,
        factor: 1.0,
        depths: DEPTHS,
        bytes: bytes * LEN as f64,
        flops: 0.0,
        published: NOWHERE,
        run,
    }
}

pub(crate) const JOBS: &[Job] = &[
    Job {
        published: [NONE_FOUND, "0.161 ms, by bytes (2922 GB/s, AidanHT/Wukong WAVE6_DOSSIER)"],
        ..op("copy f32", 8.0, |d, len| {
            let x = f32s([len], d)?;
            forget(d);
            ops::copy(&x, DType::F32).map(drop)
        })
    },
    op("cast bf16 to f32", 6.0, |d, len| ops::copy(&operand(len, d)?, DType::F32).map(drop)),
    op("add bf16", 6.0, |d, len| {
        let x = operand(len, d)?;
        ops::add(&x, &x).map(drop)
    }),
    op("add in place, bf16 into f32 (sums of gradients)", 10.0, |d, len| {
        let (x, mut out) = (bf16([len], d)?, f32s([len], d)?);
        forget(d);
        ops::accumulate(&mut out.as_mut().expect("nobody else holds it"), &x)
    }),
    op("times a number, bf16", 4.0, |d, len| ops::affine(&operand(len, d)?, 0.5, 0.0).map(drop)),
    op("SiLU bf16", 4.0, |d, len| ops::unary(Unary::Silu, &operand(len, d)?).map(drop)),
    op("concatenate bf16", 4.0, |d, len| {
        let x = bf16([len / 2], d)?;
        forget(d);
        ops::cat(&[&x, &x], 0).map(drop)
    }),
    op("dropout bf16", 4.0, |d, len| ops::dropout(&operand(len, d)?, 0.1, Key::derive(&[1])).map(drop)),
    op("dropout added, f32 into bf16", 8.0, |d, len| {
        let (x, mut out) = (f32s([len], d)?, bf16([len], d)?);
        forget(d);
        ops::add_dropout(&x, 0.1, Key::derive(&[1]), out.as_mut().expect("nobody else holds it"))
    }),
    op("normal numbers f32", 4.0, |d, len| normal(&[len], DType::F32, d).map(drop)),
    Job {
        name: "AdamW f32, with the gradient's norm",
        real: "100 million",
        factor: 1.0,
        depths: [1 << 16, 1 << 17, 100_000_000],
        bytes: (7.0 + 1.0) * 4.0 * 1e8,
        flops: 0.0,
        published: NOWHERE,
        run: |d, len| adamw(len, d),
    },
];
