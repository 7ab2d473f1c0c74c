//! Properties of the model ops that one case of the oracle cannot state: errors, rows that do not see each other,
//! memory, angles.

#![allow(clippy::unwrap_used, reason = "a test that unwraps an error fails, as it should")]

use kinglet_autograd::ops::{self as var, Term, TermWeight};
use kinglet_autograd::{Grads, Tape};
use kinglet_tensor::ops::{self, KvView, Mask, Segment, Segments, Targets, Wants};
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Device, Result, Tensor};

fn cpu() -> Device {
    kinglet_oracle::device(2)
}

/// Values without a pattern in [-1, 1].
fn random(shape: &[usize], seed: u64, device: &Device) -> Tensor {
    ops::uniform(shape, -1.0, 1.0, Key::derive(&[seed]), device).unwrap()
}

fn vector(values: &[i32], device: &Device) -> Tensor {
    Tensor::from_slice(values, &[values.len()], device).unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// The error's text; a test that gets none fails.
fn error<T>(result: Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn what_a_caller_gets_wrong_is_an_error_that_names_it() {
    let d = cpu();
    let (x, w) = (random(&[4, 6], 1, &d), random(&[5], 2, &d));
    assert!(ops::rms_norm(&x, &w, 1e-5).is_err_and(|e| e.is_shape() && e.to_string().contains("[5]")));
    assert!(ops::rms_norm(&vector(&[1, 2], &d), &w, 1e-5).is_err_and(|e| e.is_shape() || e.is_dtype()));
    let add_rms_norm = |residual: &Tensor, width| ops::add_rms_norm(&x, residual, &random(&[width], 5, &d), 1e-5);
    assert!(add_rms_norm(&x, 5).is_err_and(|e| e.is_shape() && e.to_string().contains("[5]")));
    assert!(
        add_rms_norm(&random(&[6], 5, &d), 6).is_err_and(|e| e.is_shape() && e.to_string().contains("[4, 6] and [6]"))
    );
    assert!(add_rms_norm(&x.to_dtype(DType::BF16).unwrap(), 6).is_err_and(|e| e.is_dtype()));
    assert!(add_rms_norm(&random(&[4, 6], 5, &cpu()), 6).is_err_and(|e| e.is_device()));
    let backward = ops::add_rms_norm_backward(&w, &x, &x, &random(&[6], 5, &d), 1e-5);
    assert!(backward.is_err_and(|e| e.is_shape() && e.to_string().contains("gradient [5] of [4, 6]")));
    assert!(ops::layer_norm(&x, &w, &w, 1e-5).is_err_and(|e| e.is_shape()));
    assert!(ops::swiglu(&x, &w).is_err_and(|e| e.is_shape()));
    assert!(ops::swiglu(&x, &x.to_dtype(DType::BF16).unwrap()).is_err_and(|e| e.is_dtype()));

    assert!(error(ops::embedding(&x, &vector(&[0, 3, 4], &d), DType::F32)).contains("id 4 at index 2"));
    assert!(error(ops::embedding(&x, &vector(&[-1], &d), DType::F32)).contains("id -1 at index 0"));
    assert!(ops::embedding(&x, &x, DType::F32).is_err());

    assert!(error(ops::cross_entropy(&x, &vector(&[0, 1, 6, 2], &d), 1.0)).contains("target 6 of row 2"));
    assert!(error(ops::cross_entropy(&x, &vector(&[0, -2, 1, 2], &d), 1.0)).contains("target -2 of row 1"));
    assert!(ops::cross_entropy(&x, &vector(&[0; 3], &d), 1.0).is_err_and(|e| e.is_shape()));
    assert!(error(ops::cross_entropy(&x, &vector(&[0; 4], &d), 0.0)).contains("divisor 0"));
    let narrow = random(&[9, 5], 3, &d);
    let term = |x, weight| ops::Term { x, weight, wants: Wants::default() };
    let targets = Targets::new(&[0; 4], &d).unwrap();
    let loss = |terms: &[ops::Term<'_>]| ops::linear_cross_entropy(terms, &targets, 1.0);
    assert!(loss(&[term(&x, &narrow)]).is_err_and(|e| e.is_shape()));
    let (wide, other) = (random(&[9, 6], 3, &d), random(&[8, 6], 3, &d));
    assert!(loss(&[term(&x, &wide), term(&x, &other)]).is_err_and(|e| e.is_shape()));
    assert!(loss(&[]).is_err());
    let far = Targets::new(&[0, 9, 1, 2], &d).unwrap();
    assert!(error(ops::linear_cross_entropy(&[term(&x, &wide)], &far, 1.0)).contains("target 9 of row 1"));
    let short = Targets::new(&[0; 3], &d).unwrap();
    assert!(ops::linear_cross_entropy(&[term(&x, &wide)], &short, 1.0).is_err_and(|e| e.is_shape()));
    assert!(error(ops::logits(&x, &random(&[9, 6], 3, &d), &[0, 4])).contains("row 4"));

    for p in [-0.1, 1.0, f32::NAN] {
        assert!(ops::dropout(&x, p, Key([0; 2])).is_err_and(|e| e.is_invalid()));
    }
    let add_into = |shape: &[usize], dtype, x: &Tensor| {
        ops::add_dropout(x, 0.5, Key([0; 2]), d.alloc(shape, dtype).unwrap().view())
    };
    assert!(add_into(&[6, 4], DType::F32, &x).is_err_and(|e| e.is_shape()));
    assert!(add_into(&[4, 6], DType::I32, &x).is_err_and(|e| e.is_dtype()));
    assert!(add_into(&[4, 6], DType::F32, &x.to_dtype(DType::BF16).unwrap()).is_err_and(|e| e.is_dtype()));
    let (cos, sin) = ops::rope_table(&vector(&[0, 1], &d), &[1.0], 1.0).unwrap();
    assert!(ops::rope(&random(&[3, 1, 2], 4, &d), &cos, &sin).is_err_and(|e| e.is_shape()));
    assert!(ops::rope(&random(&[2, 1, 1], 4, &d), &cos, &sin).is_err_and(|e| e.is_shape()));
    assert!(error(ops::rope_table(&vector(&[3, -1], &d), &[1.0], 1.0)).contains("position -1"));
    assert!(ops::rms_norm(&x, &random(&[6], 5, &cpu()), 1e-5).is_err_and(|e| e.is_device()));
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let d = cpu();
    for offsets in [&[][..], &[1, 2], &[0, 3, 3], &[0, 3, 2]] {
        assert!(Segments::packed(offsets).is_err_and(|e| e.is_invalid()), "{offsets:?}");
    }
    let gap = vec![Segment { q_start: 1, q_len: 1, kv_start: 0, kv_len: 1 }];
    assert!(Segments::new(gap).is_err_and(|e| e.is_invalid()));
    let huge = vec![Segment { q_start: 0, q_len: 1, kv_start: usize::MAX, kv_len: 2 }];
    assert!(Segments::new(huge).is_err_and(|e| e.is_invalid()));

    let (q, k) = (random(&[4, 4, 3], 1, &d), random(&[6, 2, 3], 2, &d));
    let run =
        |q: &Tensor, k: &Tensor, segments: &Segments, mask| ops::attention(q, KvView { k, v: k }, segments, mask, 1.0);
    let one = Segments::one(4, 6).unwrap();
    assert!(run(&q, &k, &one, Mask::Causal).is_ok());
    assert!(run(&q, &k, &Segments::one(3, 6).unwrap(), Mask::Causal).is_err_and(|e| e.is_shape()));
    assert!(run(&q, &k, &Segments::one(4, 7).unwrap(), Mask::Causal).is_err_and(|e| e.is_shape()));
    assert!(run(&q, &random(&[6, 3, 3], 2, &d), &one, Mask::Causal).is_err_and(|e| e.is_shape()));
    assert!(run(&q, &random(&[6, 2, 4], 2, &d), &one, Mask::Causal).is_err_and(|e| e.is_shape()));
    assert!(run(&q, &k.to_dtype(DType::BF16).unwrap(), &one, Mask::Causal).is_err_and(|e| e.is_dtype()));
    assert!(run(&q, &k, &one, Mask::Window(0)).is_err_and(|e| e.is_invalid()));
    // Four queries cannot all stand at or after the first of two keys.
    let blind = Segments::one(4, 2).unwrap();
    assert!(run(&q, &k, &blind, Mask::Causal).is_err_and(|e| e.is_invalid()));
    assert!(run(&q, &k, &blind, Mask::Full).is_ok());
}

/// Output and gradients of attention over rows packed at `offsets`.
fn attend(offsets: &[usize], qkv: [&Tensor; 3]) -> Vec<Tensor> {
    let tape = Tape::new();
    let [q, k, v] = qkv.map(|t| tape.leaf(t.clone()));
    let segments = Segments::packed(offsets).unwrap();
    let y = var::attention(&q, &k, &v, &segments, Mask::Causal, 0.4).unwrap();
    let dy = y.value().clone();
    let leaves = tape.backward_from(&[(&y, dy.clone())], &mut Grads::none()).unwrap();
    let gradients = [&q, &k, &v].map(|x| leaves.get(x).unwrap().clone());
    std::iter::once(dy).chain(gradients).collect()
}

#[test]
fn packed_rows_have_the_bits_that_each_has_alone() {
    let d = cpu();
    let offsets = [0, 7, 120, 121, 330];
    let (q, k, v) = (random(&[330, 4, 16], 1, &d), random(&[330, 2, 16], 2, &d), random(&[330, 2, 16], 3, &d));
    let packed = attend(&offsets, [&q, &k, &v]);
    for row in offsets.windows(2) {
        let part = |t: &Tensor| t.narrow(0, row[0], row[1] - row[0]).unwrap();
        let alone = attend(&[0, row[1] - row[0]], [&part(&q), &part(&k), &part(&v)]);
        for (all, one) in packed.iter().zip(&alone) {
            assert_eq!(bits(&part(all)), bits(one), "row {row:?}");
        }
    }
}

#[test]
fn decoding_with_a_cache_equals_the_whole_sequence() {
    let d = cpu();
    let (q, k, v) = (random(&[150, 4, 16], 1, &d), random(&[150, 2, 16], 2, &d), random(&[150, 2, 16], 3, &d));
    let run = |q: &Tensor, keys: usize| {
        let segments = Segments::one(q.shape()[0], keys).unwrap();
        ops::attention(q, KvView { k: &k, v: &v }, &segments, Mask::Causal, 0.25).unwrap().0
    };
    let whole = run(&q, 150);
    for t in [0, 1, 95, 96, 149] {
        let one = run(&q.narrow(0, t, 1).unwrap(), t + 1);
        assert_eq!(bits(&one), bits(&whole.narrow(0, t, 1).unwrap()), "token {t}");
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let d = cpu();
    let (x, gate) = (random(&[301, 65], 1, &d), random(&[301, 65], 2, &d));
    let (w, b) = (random(&[65], 3, &d), random(&[65], 4, &d));
    type RowOp<'a> = (&'a str, Box<dyn Fn(&Tensor, &Tensor) -> Tensor + 'a>);
    let row_ops: [RowOp<'_>; 8] = [
        ("rms_norm", Box::new(|x, _| ops::rms_norm(x, &w, 1e-5).unwrap())),
        ("rms_norm_backward", Box::new(|x, g| ops::rms_norm_backward(g, x, &w, 1e-5).unwrap())),
        ("add_rms_norm", Box::new(|x, r| ops::add_rms_norm(x, r, &w, 1e-5).unwrap().1)),
        ("add_rms_norm_backward", Box::new(|x, g| ops::add_rms_norm_backward(x, g, x, &w, 1e-5).unwrap())),
        ("layer_norm", Box::new(|x, _| ops::layer_norm(x, &w, &b, 1e-5).unwrap())),
        ("layer_norm_backward", Box::new(|x, g| ops::layer_norm_backward(g, x, &w, 1e-5).unwrap())),
        ("swiglu", Box::new(|x, g| ops::swiglu(g, x).unwrap())),
        ("swiglu_backward", Box::new(|x, g| ops::swiglu_backward(x, g, x).unwrap().0)),
    ];
    for (name, op) in row_ops {
        let all = op(&x, &gate);
        for i in [0, 1, 200, 300] {
            let row = |t: &Tensor| t.narrow(0, i, 1).unwrap();
            assert_eq!(bits(&op(&row(&x), &row(&gate))), bits(&row(&all)), "{name}, row {i}");
        }
    }
}

#[test]
fn rope_angles_equal_f64_of_the_product_in_f32() {
    let d = cpu();
    let inv_freq: Vec<f32> = (0..32).map(|i| 10_000f32.powf(-i as f32 / 32.0)).collect();
    let positions: Vec<i32> = (0..600).chain([4095, 32_767, 131_071, 1_000_000]).collect();
    let (cos, sin) = ops::rope_table(&vector(&positions, &d), &inv_freq, 1.5).unwrap();
    let (cos, sin) = (cos.to_vec::<f32>().unwrap(), sin.to_vec::<f32>().unwrap());
    let angles = positions.iter().flat_map(|&p| inv_freq.iter().map(move |&f| f64::from(p as f32 * f)));
    for (angle, (c, s)) in angles.zip(cos.into_iter().zip(sin)) {
        let off = (f64::from(c) - 1.5 * angle.cos()).abs().max((f64::from(s) - 1.5 * angle.sin()).abs());
        assert!(off < 3e-7, "angle {angle}: off by {off:e}");
    }
}

#[test]
fn dropout_keeps_the_share_that_it_says_and_the_mean() {
    let d = cpu();
    let ones = Tensor::full(1.0, &[1000, 1000], DType::F32, &d).unwrap();
    for p in [0.1f32, 0.5, 0.9] {
        let y = ops::dropout(&ones, p, Key::derive(&[1, 2])).unwrap().to_vec::<f32>().unwrap();
        let kept = y.iter().filter(|&&v| v != 0.0).count() as f64 / 1e6;
        // Five standard deviations of a share of a million draws.
        let spread = 5.0 * (f64::from(p) * (1.0 - f64::from(p)) / 1e6).sqrt();
        assert!((kept - (1.0 - f64::from(p))).abs() < spread, "p {p}: kept {kept}");
        assert!(y.iter().all(|&v| v == 0.0 || v == 1.0 / (1.0 - p)));
    }
    let key = |k| ops::dropout(&ones, 0.5, Key::derive(&[k])).unwrap();
    assert!(bits(&key(1)) == bits(&key(1)) && bits(&key(1)) != bits(&key(2)));
}

/// Peak bytes of a loss and its gradients for this many tokens, on the device that only counts.
fn loss_peak(tokens: usize) -> usize {
    let (device, width, classes) = (Device::meta(), 64, 50_000);
    let tape = Tape::new();
    let hidden = tape.leaf(device.alloc(&[tokens, width], DType::F32).unwrap().finish());
    let weight = device.alloc(&[classes, width], DType::BF16).unwrap().finish();
    let targets = Targets::new(&vec![0; tokens], &device).unwrap();
    let term = Term { x: &hidden, weight: TermWeight::Frozen(&weight) };
    let (loss, _) = var::linear_cross_entropy(&[term], &targets, 1.0).unwrap();
    tape.backward(&loss, &mut Grads::none()).unwrap();
    device.memory().peak
}

#[test]
fn the_loss_holds_nothing_of_tokens_times_classes() {
    let (short, long) = (loss_peak(4096), loss_peak(8192));
    // Hidden states, their gradient twice (made, then scaled), and losses.
    let linear = 4096 * (3 * 64 * 4 + 4);
    assert!(long - short <= linear + 4096, "{} more bytes for 4096 more tokens", long - short);
    assert!(short < 4096 * 50_000 * 4 / 8, "{short} bytes");
}

#[test]
fn a_loss_scaled_by_two_has_gradients_twice_as_large() {
    let d = cpu();
    let (h, w) = (random(&[20, 8], 1, &d), random(&[11, 8], 2, &d));
    let targets = Targets::new(&(0..20).map(|i| i % 11).collect::<Vec<_>>(), &d).unwrap();
    let gradients = |factor: f32| {
        let tape = Tape::new();
        let (h, w) = (tape.leaf(h.clone()), tape.leaf(w.clone()));
        let term = Term { x: &h, weight: TermWeight::Var(&w) };
        let (loss, losses) = var::linear_cross_entropy(&[term], &targets, 20.0).unwrap();
        let mean = losses.to_vec::<f32>().unwrap().iter().sum::<f32>() / 20.0;
        assert!((loss.value().item().unwrap() - mean).abs() < 1e-5);
        let seed = Tensor::full(factor, &[], DType::F32, &d).unwrap();
        let leaves = tape.backward_from(&[(&loss, seed)], &mut Grads::none()).unwrap();
        [&h, &w].map(|x| leaves.get(x).unwrap().to_vec::<f32>().unwrap())
    };
    for (one, two) in gradients(1.0).iter().zip(&gradients(2.0)) {
        assert!(one.iter().zip(two).all(|(a, b)| 2.0 * a == *b));
    }
}
