use super::*;
use crate::{Schedule, ScheduleKind};
use kinglet_autograd::Tape;
use kinglet_tensor::{CpuOptions, Device};
use serde_json::Value;

fn fixture() -> Value {
    serde_json::from_str(include_str!("../../../tests/fixtures/optim.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn device(threads: usize) -> Device {
    Device::cpu(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap()
}

/// Gradients of Σ gᵢ pᵢ, which are the given `g`.
fn grads_of(set: &ParamSet, g: &[f32]) -> Grads {
    let mut grads = Grads::new(set).unwrap();
    let tape = Tape::new();
    let device = set.values().device();
    let params: Vec<_> = (0..set.params().len()).map(|id| tape.param(set, id).unwrap()).collect();
    let seeds = params.iter().zip(set.params()).map(|(var, p)| {
        let one = tape.constant(Tensor::full(1.0, &p.shape, DType::F32, device).unwrap());
        let seed = Tensor::from_slice(&g[p.start..p.start + p.len()], &p.shape, device).unwrap();
        (var.mul(&one).unwrap(), seed)
    });
    let seeds: Vec<_> = seeds.collect();
    let seeds: Vec<_> = seeds.iter().map(|(var, seed)| (var, seed.clone())).collect();
    tape.backward_from(&seeds, &mut grads).unwrap();
    grads
}

#[test]
fn steps_like_torch() {
    let device = device(1);
    for case in fixture()["adamw"].as_array().unwrap() {
        let values = floats(&case["values"]);
        let mut start = 0;
        let mut params = Vec::new();
        for (name, shape) in case["names"].as_array().unwrap().iter().zip(case["shapes"].as_array().unwrap()) {
            let shape: Vec<usize> = floats(shape).iter().map(|&d| d as usize).collect();
            let len: usize = shape.iter().product();
            let value = Tensor::from_slice(&values[start..start + len], &shape, &device).unwrap();
            params.push((name.as_str().unwrap().to_string(), value));
            start += len;
        }
        let mut set = ParamSet::new(params, &device).unwrap();
        let number = |key: &str| case[key].as_f64().unwrap();
        let options = AdamWOptions {
            weight_decay: number("weight_decay"),
            max_grad_norm: number("max_grad_norm"),
            ..AdamWOptions::default()
        };
        let mut adamw = AdamW::new(&set, options).unwrap();
        for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let grads = grads_of(&set, &floats(&step["gradient"]));
            let norm = adamw.step(&mut set, &grads, number("rate")).unwrap().item().unwrap();
            let expected = step["norm"].as_f64().unwrap() as f32;
            assert!((norm - expected).abs() <= 4.0 * f32::EPSILON * expected, "norm {norm}, torch has {expected}");
            // A step rounds the value twice, and ten times numbers of at most about three rates.
            for (ours, torch) in set.values().to_vec::<f32>().unwrap().iter().zip(floats(&step["values"])) {
                let bound = (i + 1) as f32 * f32::EPSILON * (2.0 * torch.abs() + 30.0 * number("rate") as f32);
                assert!(
                    (ours - torch).abs() <= bound,
                    "step {i}, rate {}: {ours} is not torch's {torch}",
                    number("rate")
                );
            }
        }
    }
}

#[test]
fn rates_like_transformers() {
    for case in fixture()["schedules"].as_array().unwrap() {
        let count = |key: &str| case[key].as_u64().unwrap() as usize;
        let kind = match case["name"].as_str().unwrap() {
            "linear" => ScheduleKind::Linear,
            "cosine" => ScheduleKind::Cosine,
            "constant" | "constant_with_warmup" => ScheduleKind::Constant,
            "warmup_stable_decay" => ScheduleKind::WarmupStableDecay { decay: count("decay") },
            other => panic!("unknown schedule {other}"),
        };
        let schedule = Schedule { kind, peak: 1.0, warmup: count("warmup"), total: count("total") };
        for (done, rate) in case["rates"].as_array().unwrap().iter().enumerate() {
            let (ours, theirs) = (schedule.rate(done), rate.as_f64().unwrap());
            assert!((ours - theirs).abs() <= 1e-15, "{} after {done} steps: {ours}, not {theirs}", case["name"]);
        }
    }
}

#[test]
fn decay_spares_biases_and_norms() {
    for name in ["model.norm.weight", "model.layers.0.self_attn.q_norm.weight", "a.input_layernorm.weight", "a.bias"] {
        assert!(!decays(name), "{name}");
    }
    for name in ["model.embed_tokens.weight", "a.q_proj.lora_A.weight", "lm_head.weight", "normal.weight"] {
        assert!(decays(name), "{name}");
    }
}

fn one_param(device: &Device, n: usize) -> ParamSet {
    let values: Vec<f32> = (0..n).map(|i| (i % 17) as f32 - 8.0).collect();
    ParamSet::new(vec![("w".into(), Tensor::from_vec(values, &[n], device).unwrap())], device).unwrap()
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let device = device(1);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut set = one_param(&device, 4);
        let mut adamw = AdamW::new(&set, AdamWOptions { weight_decay: 0.1, ..AdamWOptions::default() }).unwrap();
        let before = set.values().to_vec::<f32>().unwrap();
        let grads = grads_of(&set, &[1.0, bad, 0.0, 0.0]);
        assert!(!adamw.step(&mut set, &grads, 0.1).unwrap().item().unwrap().is_finite());
        assert_eq!(set.values().to_vec::<f32>().unwrap(), before);
        assert!(adamw.moments().iter().all(|m| m.to_vec::<f32>().unwrap() == [0.0; 4]));
    }
}

#[test]
fn threads_do_not_change_a_bit_and_a_resumed_state_goes_on() {
    let n = 3 * (1 << 16) + 77;
    let g: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1013) as f32 * 1e-4 - 0.05).collect();
    let options = AdamWOptions::default();
    let run = |threads, interrupted| {
        let device = device(threads);
        let mut set = one_param(&device, n);
        let mut adamw = AdamW::new(&set, options).unwrap();
        let mut norms = Vec::new();
        for _ in 0..3 {
            let grads = grads_of(&set, &g);
            norms.push(adamw.step(&mut set, &grads, 1e-2).unwrap().item().unwrap().to_bits());
            if interrupted {
                let [m, v] = adamw.moments().map(|moment| moment.to_vec::<f32>().unwrap());
                let steps = adamw.steps();
                adamw = AdamW::new(&set, options).unwrap();
                adamw.restore(&m, &v, steps).unwrap();
            }
        }
        (set.values().to_vec::<f32>().unwrap(), norms)
    };
    let first = run(1, false);
    assert_eq!(run(2, false), first);
    assert_eq!(run(2, true), first);
}

#[test]
fn options_and_states_that_do_not_fit_are_errors() {
    let device = device(1);
    let set = one_param(&device, 4);
    for bad in [
        AdamWOptions { beta1: 1.0, ..AdamWOptions::default() },
        AdamWOptions { eps: -1.0, ..AdamWOptions::default() },
        AdamWOptions { weight_decay: f64::NAN, ..AdamWOptions::default() },
    ] {
        assert!(AdamW::new(&set, bad).err().unwrap().is_invalid());
    }
    let mut adamw = AdamW::new(&set, AdamWOptions::default()).unwrap();
    assert!(adamw.restore(&[1.0; 4], &[1.0; 3], 1).err().unwrap().is_shape());
    let held = adamw.moments()[1].clone();
    assert!(adamw.restore(&[1.0; 4], &[1.0; 4], 1).err().unwrap().is_aliased());
    assert!(adamw.moments().iter().all(|m| m.to_vec::<f32>().unwrap() == [0.0; 4]), "all or nothing");
    assert_eq!(adamw.steps(), 0);
    drop(held);
}
