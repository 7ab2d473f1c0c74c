//! The door for kernels: a kernel, built in or a user's own, can be replaced and listened to on one device.
#![allow(clippy::unwrap_used)]

use kinglet::autograd::{Grads, ParamSet};
use kinglet::optim::grad_norm;
use kinglet::optim::kernels::GRAD_NORM;
use kinglet::quant::kernels::LINEAR;
use kinglet::quant::{Direction, Weight};
use kinglet::tensor::cpu::Cpu;
use kinglet::tensor::kernels::{RMS_NORM, RmsNormArgs};
use kinglet::tensor::{TensorMut, kernel, ops};
use kinglet::{DType, Device, Result, Tensor};
use std::sync::{Arc, Mutex};

fn device() -> Device {
    kinglet_oracle::device(2)
}

fn matrix(values: [f32; 4], device: &Device) -> Tensor {
    Tensor::from_vec(values.to_vec(), &[2, 2], device).unwrap()
}

struct Double<'a> {
    x: &'a Tensor,
    out: TensorMut<'a>,
}
kernel!(DOUBLE = "double", Double, double_cpu);

fn times(mut args: Double<'_>, factor: f32) -> Result<()> {
    for (out, x) in args.out.as_mut_slice::<f32>()?.iter_mut().zip(args.x.as_slice::<f32>()?) {
        *out = factor * x;
    }
    Ok(())
}

fn double_cpu(_: &Cpu, args: Double<'_>) -> Result<()> {
    times(args, 2.0)
}

#[test]
fn kernels_can_be_replaced_and_listened_to() {
    let (device, untouched) = (device(), device());
    let run = |device: &Device| {
        let x = Tensor::full(1.0, &[], DType::F32, device).unwrap();
        let mut out = device.alloc(&[], DType::F32).unwrap();
        device.run(&DOUBLE, Double { x: &x, out: out.view() }).unwrap();
        out.finish().item().unwrap()
    };
    device.hooks().replace(&DOUBLE, |_, args| times(args, 20.0));
    assert_eq!((run(&device), run(&untouched)), (20.0, 2.0));
    device.hooks().restore(&DOUBLE);
    assert_eq!(run(&device), 2.0);

    let launches = Arc::new(Mutex::new(Vec::new()));
    let seen = launches.clone();
    device.hooks().listen(move |launch| seen.lock().unwrap().push(launch.kernel));
    let x = matrix([1.0, 2.0, 3.0, 4.0], &device);
    ops::matmul(&ops::add(&x, &x).unwrap(), &x).unwrap();
    assert_eq!(*launches.lock().unwrap(), ["binary", "matmul"]);
}

/// Runs the built-in kernel, then doubles what it gave.
fn twice_rms_norm(cpu: &Cpu, mut args: RmsNormArgs<'_>) -> Result<()> {
    RMS_NORM.cpu()(cpu, RmsNormArgs { out: args.out.reborrow(), ..args })?;
    args.out.as_mut_slice::<f32>()?.iter_mut().for_each(|y| *y *= 2.0);
    Ok(())
}

#[test]
fn a_built_in_kernel_can_be_replaced_on_one_device() {
    let (device, untouched) = (device(), device());
    let run = |device: &Device| {
        let (x, weight) = (Tensor::full(-3.0, &[4], DType::F32, device), Tensor::full(5.0, &[4], DType::F32, device));
        ops::rms_norm(&x.unwrap(), &weight.unwrap(), 0.0).unwrap().to_vec::<f32>().unwrap()
    };
    device.hooks().replace(&RMS_NORM, twice_rms_norm);
    assert_eq!((run(&device), run(&untouched)), (vec![-10.0; 4], vec![-5.0; 4]));
    device.hooks().restore(&RMS_NORM);
    assert_eq!(run(&device), [-5.0; 4]);
}

/// A replacement may hold what it needs, in every crate that has kernels.
#[test]
fn kernels_of_other_crates_can_be_replaced() {
    let device = device();
    let launched = Arc::new(Mutex::new(Vec::new()));
    let (linear, norm) = (launched.clone(), launched.clone());
    device.hooks().replace(&LINEAR, move |cpu, args| {
        linear.lock().unwrap().push(format!("{:?} of {:?}", args.direction, args.x.shape()));
        LINEAR.cpu()(cpu, args)
    });
    device.hooks().replace(&GRAD_NORM, move |_, mut args| {
        norm.lock().unwrap().push(format!("norm of {:?}", args.x.shape()));
        args.out.as_mut_slice()?[0] = 7f32;
        Ok(())
    });
    let (x, w) = (matrix([1.0, 2.0, 3.0, 4.0], &device), matrix([0.0, 1.0, 1.0, 0.0], &device));
    let y = Weight::Dense(w).matmul(&x, Direction::Backward).unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [2.0, 1.0, 4.0, 3.0]);
    let set = ParamSet::new(vec![("x".into(), x)], &device).unwrap();
    assert_eq!(grad_norm(&Grads::new(&set).unwrap()).unwrap().item().unwrap(), 7.0);
    assert_eq!(*launched.lock().unwrap(), ["Backward of [2, 2]", "norm of [4]"]);
}
