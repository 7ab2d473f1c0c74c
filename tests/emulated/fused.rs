//! A kernel that stands for several has their bits, on the CPU and on the virtual GPU.

use kinglet::autograd::{Grads, Tape, Var, ops as var};
use kinglet::quant::{Lora, Weight, linear_lora};
use kinglet::tensor::ops;
use kinglet::tensor::philox::Key;
use kinglet::{DType, Device, Tensor};
use kinglet_oracle::{device, emulated};
use std::sync::Arc;

const EPS: f32 = 1e-5;

/// Random values between -2 and 2, with a negative zero among them.
fn random(shape: &[usize], dtype: DType, seed: u64, device: &Device) -> Tensor {
    let word = |i: usize| Key::derive(&[seed]).words(i as u64)[0];
    let value = |i| if i % 7 == 3 { -0.0 } else { word(i) as f32 * 2f32.powi(-30) - 2.0 };
    let data: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::from_vec(data, shape, device).unwrap().to_dtype(dtype).unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
}

#[test]
fn a_norm_of_a_sum() {
    for device in [device(2), emulated(80, 1)] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            // Rows in pairs and not, the sum used elsewhere and not.
            for (shape, sum_is_used) in [([6, 70], true), ([6, 70], false), ([5, 67], true), ([1, 1], false)] {
                a_norm_of_a_sum_of(&shape, sum_is_used, dtype, &device);
            }
        }
    }
}

fn a_norm_of_a_sum_of(shape: &[usize], sum_is_used: bool, dtype: DType, device: &Device) {
    let [x, residual, dy, d_sum] = [1, 2, 3, 4].map(|seed| random(shape, dtype, seed, device));
    let weight = random(&shape[1..], DType::F32, 5, device);
    let sum = ops::add(&x, &residual).unwrap();
    let y = ops::rms_norm(&sum, &weight, EPS).unwrap();
    let d_norm = ops::rms_norm_backward(&dy, &sum, &weight, EPS).unwrap();
    let dx = if sum_is_used { ops::add(&d_sum, &d_norm).unwrap() } else { d_norm };
    let d_weight = ops::rms_norm_backward_weight(&dy, &sum, EPS).unwrap();

    let tape = Tape::new();
    let [x, residual, weight] = [x, residual, weight].map(|value| tape.leaf(value));
    let (got_sum, got_y) = var::add_rms_norm(&x, &residual, &weight, EPS).unwrap();
    let mut seeds = vec![(&got_y, dy)];
    seeds.extend(sum_is_used.then_some((&got_sum, d_sum)));
    let leaves = tape.backward_from(&seeds, &mut Grads::none()).unwrap();

    let what = format!("{shape:?} of {dtype} on {device:?}, sum used: {sum_is_used}");
    assert_eq!(bits(got_sum.value()), bits(&sum), "sum, {what}");
    assert_eq!(bits(got_y.value()), bits(&y), "y, {what}");
    assert_eq!(bits(leaves.get(&x).unwrap()), bits(&dx), "dx, {what}");
    assert_eq!(bits(leaves.get(&residual).unwrap()), bits(&dx), "d_residual, {what}");
    assert_eq!(bits(leaves.get(&weight).unwrap()), bits(&d_weight), "d_weight, {what}");
}

/// Two adapters of a layer are one of their joined ranks.
#[test]
fn adapters_of_one_layer() {
    const RANKS: [usize; 2] = [3, 5];
    let (rows, inputs, outputs) = (20, 72, 40);
    for device in [device(2), emulated(80, 4)] {
        for dtype in [DType::F32, DType::BF16] {
            let weight = Arc::new(Weight::Dense(random(&[outputs, inputs], dtype, 1, &device)));
            let (x, dy) = (random(&[rows, inputs], dtype, 2, &device), random(&[rows, outputs], dtype, 3, &device));
            let (a, b) = (random(&[8, inputs], DType::F32, 4, &device), random(&[outputs, 8], DType::F32, 5, &device));
            let run = |ranks: &[usize]| {
                let tape = Tape::new();
                let x = tape.leaf(x.clone());
                let starts = ranks.iter().scan(0, |end, rank| Some((std::mem::replace(end, *end + rank), *rank)));
                let adapters: Vec<_> = starts
                    .map(|(start, rank)| Lora {
                        a: tape.leaf(a.narrow(0, start, rank).unwrap()),
                        b: tape.leaf(b.narrow(1, start, rank).unwrap()),
                        scale: 1.0,
                        dropout: None,
                    })
                    .collect();
                let y = linear_lora(&x, &weight, None, &adapters).unwrap();
                let leaves = tape.backward_from(&[(&y, dy.clone())], &mut Grads::none()).unwrap();
                let of = |vars: Vec<&Var<'_>>, dim| {
                    ops::cat(&vars.into_iter().map(|var| leaves.get(var).unwrap()).collect::<Vec<_>>(), dim).unwrap()
                };
                let (da, db) =
                    (of(adapters.iter().map(|l| &l.a).collect(), 0), of(adapters.iter().map(|l| &l.b).collect(), 1));
                [y.value(), leaves.get(&x).unwrap(), &da, &db].map(bits)
            };
            assert!(run(&RANKS) == run(&[8]), "{dtype} on {device:?}");
        }
    }
}
