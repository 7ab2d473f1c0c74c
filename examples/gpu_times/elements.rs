//! Ops of elements: copies, arithmetic, random numbers, the optimiser. Sizes: how many.

use crate::job::{Job, bf16, exactly, normal, place};
use kinglet::optim::kernels::{ADAMW, AdamwArgs, GRAD_NORM, GradNormArgs};
use kinglet::tensor::ops::{self, Compare, Unary};
use kinglet::tensor::philox::Key;
use kinglet::{DType, Device, Result, Tensor};

pub(crate) fn copy(sizes: &[usize], device: &Device) -> Result<Job> {
    let [len] = exactly(sizes)?;
    let x = normal(&[len], DType::F32, device)?;
    Job::new(8 * len, 0, move || ops::copy(&x, DType::F32))
}

pub(crate) fn cast(sizes: &[usize], device: &Device) -> Result<Job> {
    let [len] = exactly(sizes)?;
    let x = bf16([len], device)?;
    Job::new(6 * len, 0, move || ops::copy(&x, DType::F32))
}

/// Two operands.
fn pair(sizes: &[usize], device: &Device) -> Result<(Tensor, Tensor, usize)> {
    let [len] = exactly(sizes)?;
    let a = bf16([len], device)?;
    let b = ops::affine(&a, 0.5, 1.0)?;
    Ok((a, b, len))
}

pub(crate) fn add(sizes: &[usize], device: &Device) -> Result<Job> {
    let (a, b, len) = pair(sizes, device)?;
    Job::new(6 * len, 0, move || ops::add(&a, &b))
}

pub(crate) fn multiply(sizes: &[usize], device: &Device) -> Result<Job> {
    let (a, b, len) = pair(sizes, device)?;
    Job::new(6 * len, 0, move || ops::mul(&a, &b))
}

pub(crate) fn less(sizes: &[usize], device: &Device) -> Result<Job> {
    let (a, b, len) = pair(sizes, device)?;
    Job::new(5 * len, 0, move || ops::compare(Compare::Lt, &a, &b))
}

pub(crate) fn choose(sizes: &[usize], device: &Device) -> Result<Job> {
    let (a, b, len) = pair(sizes, device)?;
    let mask = ops::compare(Compare::Lt, &a, &b)?;
    Job::new(7 * len, 0, move || ops::where_(&mask, &a, &b))
}

/// Two of the size, one behind the other.
pub(crate) fn cat(sizes: &[usize], device: &Device) -> Result<Job> {
    let (a, b, len) = pair(sizes, device)?;
    Job::new(8 * len, 0, move || ops::cat(&[&a, &b], 0))
}

/// By a number that the host knows.
pub(crate) fn affine(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, _, len) = pair(sizes, device)?;
    Job::new(4 * len, 0, move || ops::affine(&x, 0.5, 0.0))
}

/// By a number that the device holds.
pub(crate) fn scale(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, _, len) = pair(sizes, device)?;
    let by = Tensor::full(0.5, &[], DType::F32, device)?;
    Job::new(4 * len, 0, move || ops::scale(&x, &by))
}

pub(crate) fn silu(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, _, len) = pair(sizes, device)?;
    Job::new(4 * len, 0, move || ops::unary(Unary::Silu, &x))
}

pub(crate) fn dropout(sizes: &[usize], device: &Device) -> Result<Job> {
    let (x, _, len) = pair(sizes, device)?;
    Job::new(4 * len, 0, move || ops::dropout(&x, 0.1, Key::derive(&[1])))
}

/// Added to what is there, as in the gradient of a linear layer's input.
pub(crate) fn add_dropout(sizes: &[usize], device: &Device) -> Result<Job> {
    let (mut out, x, len) = pair(sizes, device)?;
    Job::new(6 * len, 0, move || ops::add_dropout(&x, 0.1, Key::derive(&[1]), place(&mut out)?))
}

pub(crate) fn random(sizes: &[usize], device: &Device) -> Result<Job> {
    let [len] = exactly(sizes)?;
    let device = device.clone();
    Job::new(4 * len, 0, move || ops::normal(&[len], 1.0, Key::derive(&[1]), &device))
}

pub(crate) fn grad_norm(sizes: &[usize], device: &Device) -> Result<Job> {
    let [len] = exactly(sizes)?;
    let (x, mut out) = (normal(&[len], DType::F32, device)?, Tensor::zeros(&[1], DType::F32, device)?);
    let device = device.clone();
    Job::new(4 * len, 0, move || device.run(&GRAD_NORM, GradNormArgs { x: &x, out: place(&mut out)? }))
}

/// One step over so many parameters.
pub(crate) fn adamw(sizes: &[usize], device: &Device) -> Result<Job> {
    let [len] = exactly(sizes)?;
    let full = |value: f32, len: usize| Tensor::full(value, &[len], DType::F32, device);
    let (mut p, mut m, mut v, gradient) = (full(0.5, len)?, full(0.1, len)?, full(0.2, len)?, full(0.3, len)?);
    let (norm, loss) = (full(1.0, 1)?, full(1.0, 1)?);
    let numbers = Tensor::from_slice(&[0.1f32, 0.999, 0.001, 1.0, 1e-3, 0.9, 1e-8], &[7], device)?;
    let device = device.clone();
    Job::new(28 * len, 0, move || {
        let (p, m, v) = (place(&mut p)?, place(&mut m)?, place(&mut v)?);
        device.run(
            &ADAMW,
            AdamwArgs { numbers: &numbers, max_norm: 0.0, norm: &norm, loss: &loss, p, m, v, gradient: &gradient },
        )
    })
}
