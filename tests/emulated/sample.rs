//! Tokens are chosen on the virtual GPU as on the CPU, one and the same, whatever the logits are.

use kinglet::models::Sampling;
use kinglet::tensor::cpu::sample::{Choice, IS_EMPTY, IS_NAN};
use kinglet::tensor::ops;
use kinglet::tensor::philox::Key;
use kinglet::{DType, Device, Tensor};
use kinglet_oracle::{device, emulated};

/// Random logits in f32, of which `few` takes only some values: then there are many ties, zeros of both signs among them.
fn logits(shape: [usize; 2], seed: u64, few: bool, device: &Device) -> Vec<f32> {
    let normal = ops::normal(&shape, 3.0, Key::derive(&[seed]), device).unwrap().to_vec::<f32>().unwrap();
    if few { normal.into_iter().map(|l| (l / 2.0).round() * 2.0).collect() } else { normal }
}

fn ids(values: &[f32], shape: [usize; 2], choice: &Choice, device: &Device) -> Vec<i32> {
    let logits = Tensor::from_slice(values, &shape, device).unwrap();
    ops::sample(&logits, choice).unwrap().to_vec().unwrap()
}

#[test]
fn tokens_are_those_of_the_cpu() {
    let (cpu, gpu) = (device(1), emulated(80, 1));
    let mut seed = 0;
    for shape in [[9, 1], [9, 2], [9, 33], [4, 1024], [2, 5000]] {
        for (temperature, top_k, top_p) in [
            (0.0, 0, 1.0),
            (1.0, 0, 1.0),
            (1.0, 1, 1.0),
            (0.8, 40, 1.0),
            (1.0, 0, 0.9),
            (1.0, 0, 1e-30),
            (1.5, 100, 0.95),
            (1e-3, 7, 0.5),
            (100.0, 0, 0.5),
            (100.0, usize::MAX, 0.999_999),
            (1e-30, 0, 0.5),
        ] {
            for few in [false, true] {
                seed += 1;
                let choice = Choice { temperature, top_k, top_p, key: Key::derive(&[seed]), step: 1000 * seed };
                let values = logits(shape, seed, few, &cpu);
                let (want, got) = (ids(&values, shape, &choice, &cpu), ids(&values, shape, &choice, &gpu));
                assert_eq!(want, got, "{shape:?} {choice:?}, few values: {few}");
                assert!(want.iter().all(|&id| (0..shape[1] as i32).contains(&id)), "{want:?}");
            }
        }
    }
}

/// Every token of a cut through equal logits can be chosen, and none behind it.
#[test]
fn cuts_through_ties_keep_the_lower_ids() {
    let gpu = emulated(80, 1);
    let values: Vec<f32> = (0..100).map(|i| if i % 3 == 0 { 2.0 } else { -1.0 }).collect();
    let sampling = Sampling { temperature: 1e9, top_k: 5, ..Sampling::default() };
    let logits = Tensor::from_slice(&values, &[1, 100], &gpu).unwrap();
    let mut seen = [0; 100];
    for step in 0..80 {
        let id = sampling.choose_on_device(&logits, step).unwrap();
        assert_eq!(id, sampling.choose(&values, step).unwrap());
        seen[id] += 1;
    }
    let chosen: Vec<usize> = (0..100).filter(|&id| seen[id] > 0).collect();
    assert_eq!(chosen, [0, 3, 6, 9, 12]);
    // Half of the weight of equals is the first half of them.
    let halves = Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::default() };
    for step in 0..20 {
        assert!(halves.choose_on_device(&logits, step).unwrap() < 54);
    }
}

#[test]
fn bad_logits_are_told() {
    let (cpu, gpu) = (device(1), emulated(80, 1));
    let sampled = Choice { temperature: 1.0, top_k: 3, top_p: 0.9, key: Key::derive(&[1]), step: 0 };
    let greedy = Choice { temperature: 0.0, ..sampled };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let rows: [[f32; 5]; 5] =
        [[0.0, nan, 1.0, inf, 2.0], [-inf; 5], [1.0, 2.0, inf, 0.0, inf], [-inf, -inf, -inf, -inf, 3.0], [-nan; 5]];
    let flat: Vec<f32> = rows.concat();
    for (choice, infinite) in [(greedy, 2), (sampled, IS_EMPTY)] {
        let want = [IS_NAN, IS_EMPTY, infinite, 4, IS_NAN];
        assert_eq!(ids(&flat, [5, 5], &choice, &cpu), want);
        assert_eq!(ids(&flat, [5, 5], &choice, &gpu), want);
    }
    for sampling in [Sampling::default(), Sampling { temperature: 1.0, ..Sampling::default() }] {
        for row in [&rows[0], &rows[1]] {
            let logits = Tensor::from_slice(row, &[5], &gpu).unwrap();
            let error = sampling.choose_on_device(&logits, 7).unwrap_err();
            assert!(error.is_non_finite());
            assert_eq!(error.to_string(), sampling.choose(row, 7).unwrap_err().to_string());
        }
    }
    for (shape, dtype) in [(&[2, 0][..], DType::F32), (&[], DType::F32), (&[1, 1, 1], DType::F32), (&[4], DType::BF16)]
    {
        let logits = Tensor::zeros(shape, dtype, &gpu).unwrap();
        assert!(ops::sample(&logits, &sampled).is_err(), "{shape:?} {dtype}");
    }
    assert!(ops::sample(&Tensor::zeros(&[0, 4], DType::F32, &gpu).unwrap(), &sampled).unwrap().is_empty());
}

/// A token costs one launch, and one wait for four bytes.
#[test]
fn only_the_token_is_read() {
    let gpu = emulated(80, 1);
    let logits = Tensor::full(0.5, &[1, 700], DType::F32, &gpu).unwrap();
    let before = gpu.as_cuda().unwrap().counts();
    Sampling { temperature: 1.0, top_k: 9, top_p: 0.5, seed: 3 }.choose_on_device(&logits, 2).unwrap();
    let after = gpu.as_cuda().unwrap().counts();
    assert_eq!((after.launches - before.launches, after.synchronisations - before.synchronisations), (1, 1));
}
