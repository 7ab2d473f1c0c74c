//! The linear layer and its adapters, whose gradients are written by hand, against the same in plain ops.

use super::fixture::devices;
use kinglet_autograd::{Grads, Tape, Var, ops};
use kinglet_quant::nf4::Format;
use kinglet_quant::{FourBit, Lora, Weight, linear, linear_lora, linear_trained};
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Device, Result, Tensor};
use std::sync::Arc;

const TOKENS: usize = 9;
const IN: usize = 70;
const OUT: usize = 33;
const RANK: usize = 5;
const SCALE: f32 = 1.7;
/// x, bias, A, B, another A and B of rank 2, W.
const SHAPES: [&[usize]; 7] = [&[TOKENS, IN], &[OUT], &[RANK, IN], &[OUT, RANK], &[2, IN], &[OUT, 2], &[OUT, IN]];

fn values(shape: &[usize], seed: usize, device: &Device) -> Tensor {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.45;
    Tensor::from_vec((0..shape.iter().product()).map(value).collect(), shape, device).unwrap()
}

/// The output of `layer` and the gradients of what it takes, for a loss that weighs every output differently.
fn results(device: &Device, layer: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>>) -> Vec<Option<Vec<f32>>> {
    let tape = Tape::new();
    let leaves: Vec<Var<'_>> = (0..SHAPES.len()).map(|i| tape.leaf(values(SHAPES[i], i, device))).collect();
    let y = layer(&leaves).unwrap();
    let loss = y.mul(&tape.constant(values(&[TOKENS, OUT], 99, device))).unwrap().sum_all().unwrap();
    let grads = tape.backward(&loss, &mut Grads::none()).unwrap();
    let vec = |t: &Tensor| t.to_vec::<f32>().unwrap();
    leaves.iter().map(|leaf| grads.get(leaf).map(vec)).chain([Some(vec(y.value()))]).collect()
}

/// Both are sums of at most IN + OUT products one after another, each with the roundoff of f32.
fn assert_close(got: &[Option<Vec<f32>>], want: &[Option<Vec<f32>>], what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.is_some(), want.is_some(), "{what}: gradient {i}");
        let (Some(got), Some(want)) = (got, want) else { continue };
        let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        let tolerance = 2f32.powi(-24) * (IN + OUT) as f32 * largest;
        assert!(largest > 0.0, "{what}: result {i} is zero");
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= tolerance, "{what}: result {i}: {got}, not {want}");
        }
    }
}

fn times<'t>(x: &Var<'t>, w: &Var<'t>) -> Result<Var<'t>> {
    x.matmul(&w.transpose(0, 1)?)
}

fn adapter<'t>(x: &Var<'t>, lora: &Lora<'t>) -> Result<Var<'t>> {
    let x = match lora.dropout {
        Some((p, key)) => ops::dropout(x, p, key)?,
        None => x.clone(),
    };
    times(&times(&x, &lora.a)?, &lora.b)?.affine(lora.scale, 0.0)
}

/// Two adapters with these probabilities of dropout.
fn adapters<'t>(v: &[Var<'t>], [first, second]: [Option<f32>; 2]) -> [Lora<'t>; 2] {
    let lora = |a: usize, scale, p: Option<f32>| Lora {
        a: v[a].clone(),
        b: v[a + 1].clone(),
        scale,
        dropout: p.map(|p| (p, Key::derive(&[a as u64]))),
    };
    [lora(2, SCALE, first), lora(4, -0.6, second)]
}

#[test]
fn a_trained_weight_has_its_gradient() {
    for device in devices() {
        let got = results(&device, |v| linear_trained(&v[0], &v[6], Some(&v[1])));
        assert_close(&got, &results(&device, |v| times(&v[0], &v[6])?.add(&v[1])), "trained");
    }
}

#[test]
fn a_frozen_weight_passes_the_gradient_on_and_adapters_learn_with_their_own_dropout() {
    for device in devices() {
        let four_bit = FourBit::quantize(&values(&[OUT, IN], 6, &device), Format::Nf4, 64, true).unwrap();
        let dense = four_bit.dequantize(DType::F32).unwrap();
        for weight in [Weight::FourBit(Arc::new(four_bit)), Weight::Dense(dense.clone())] {
            let weight = Arc::new(weight);
            let got = results(&device, |v| linear(&v[0], &weight, Some(&v[1])));
            let want = results(&device, |v| times(&v[0], &v[0].tape().constant(dense.clone()))?.add(&v[1]));
            assert_close(&got, &want, "frozen");
            for p in [[None, None], [Some(0.3), Some(0.6)], [None, Some(0.3)], [Some(0.3), None]] {
                let got = results(&device, |v| linear_lora(&v[0], &weight, Some(&v[1]), &adapters(v, p)));
                let want = results(&device, |v| {
                    let y = times(&v[0], &v[0].tape().constant(dense.clone()))?.add(&v[1])?;
                    let [first, second] = adapters(v, p);
                    y.add(&adapter(&v[0], &first)?)?.add(&adapter(&v[0], &second)?)
                });
                assert_close(&got, &want, &format!("adapters with dropout {p:?}"));
            }
        }
    }
}

/// What dropout costs in the gradient of the input: a product of x's size in f32, whatever x is, and nothing else of that size. The
/// mask is applied where the product is added.
#[test]
fn dropout_needs_one_product_beside_the_gradient_of_the_input() {
    let (tokens, features, rank) = (1024, 512, 8);
    for dtype in [DType::F32, DType::BF16] {
        let device = Device::meta();
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &device).unwrap();
        let tape = Tape::new();
        let x = tape.leaf(zeros(&[tokens, features], dtype));
        let adapter = |i: u64| Lora {
            a: tape.constant(zeros(&[rank, features], DType::F32)),
            b: tape.constant(zeros(&[16, rank], DType::F32)),
            scale: 1.0,
            dropout: Some((0.5, Key::derive(&[i]))),
        };
        let weight = Arc::new(Weight::Dense(zeros(&[16, features], dtype)));
        let y = linear_lora(&x, &weight, None, &[adapter(1), adapter(2)]).unwrap();
        let seed = zeros(&[tokens, 16], dtype);
        let before = device.memory().live;
        device.reset_peak();
        tape.backward_from(&[(&y, seed)], &mut Grads::none()).unwrap();
        let (dx, product) = (tokens * features * dtype.size(), tokens * features * 4);
        let narrow = 8 * tokens * 2 * rank;
        let peak = device.memory().peak - before;
        assert!((dx + product..dx + product + narrow).contains(&peak), "{dtype}: {peak} bytes at the peak");
    }
}
