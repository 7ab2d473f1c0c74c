//! The tape: what it records, keeps, frees and refuses. Gradients of single ops are checked in `ops.rs`.
#![allow(clippy::unwrap_used)]

use kinglet_autograd::{Grads, Options, ParamSet, Save, Tape, Var, ops as var};
use kinglet_tensor::{DType, Device, Result, Tensor, ops};
use std::sync::{Arc, Mutex};

fn device() -> Device {
    kinglet_oracle::device(2)
}

/// Some values, different for each seed.
fn values(shape: &[usize], seed: usize, device: &Device) -> Tensor {
    let len: usize = shape.iter().product();
    let data = (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.45).collect();
    Tensor::from_vec::<f32>(data, shape, device).unwrap()
}

fn params(device: &Device) -> Arc<ParamSet> {
    let values = ["a", "b", "c"].iter().enumerate().map(|(i, name)| (name.to_string(), values(&[8, 8], i, device)));
    Arc::new(ParamSet::new(values.collect(), device).unwrap())
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
}

/// Two inputs, two outputs, one parameter.
fn block<'t>(tape: &'t Tape, set: &ParamSet, id: usize, xs: &[Var<'t>]) -> Result<Vec<Var<'t>>> {
    let [x, residual] = xs else { unreachable!("two inputs") };
    let hidden = x.matmul(&tape.param(set, id)?)?.silu()?;
    Ok(vec![hidden.add(residual)?, hidden.mul(residual)?])
}

/// Three blocks, the first and the last with one parameter; the input is used outside of them too, and twice by the
/// first. Gradients of the
/// parameters and of the input, as bits.
fn three_blocks(checkpointed: bool, x_tracked: bool, recompute: bool) -> (Vec<u32>, Option<Vec<u32>>) {
    let device = device();
    let set = params(&device);
    let mut grads = Grads::new(&set).unwrap();
    let tape = Tape::with(Options { record: true, recompute, check: false });
    let x = values(&[5, 8], 9, &device);
    let x = if x_tracked { tape.leaf(x) } else { tape.constant(x) };
    let mut state = vec![x.clone(), x.clone()];
    for id in [0, 1, 0] {
        state = if checkpointed {
            let set = set.clone();
            tape.checkpoint(&[&state[0], &state[1]], move |tape, xs| block(tape, &set, id, xs)).unwrap()
        } else {
            block(&tape, &set, id, &state).unwrap()
        };
    }
    let loss = state[0].mul(&x).unwrap().add(&state[1]).unwrap().sum_all().unwrap();
    let leaves = tape.backward(&loss, &mut grads).unwrap();
    (bits(grads.flat().unwrap()), leaves.get(&x).map(bits))
}

#[test]
fn a_checkpoint_gives_the_bits_of_a_plain_run() {
    for x_tracked in [true, false] {
        let plain = three_blocks(false, x_tracked, true);
        assert_eq!(plain.1.is_some(), x_tracked);
        assert!(plain.0.iter().any(|&b| b != 0));
        for recompute in [true, false] {
            assert!(three_blocks(true, x_tracked, recompute) == plain, "tracked: {x_tracked}, recompute: {recompute}");
        }
    }
}

#[test]
fn an_unused_output_of_a_checkpoint_has_no_gradient_to_give() {
    let device = device();
    let tape = Tape::new();
    let x = tape.leaf(values(&[4], 1, &device));
    let outputs = tape.checkpoint(&[&x], |_, xs| Ok(vec![xs[0].square()?, xs[0].exp()?])).unwrap();
    let leaves = tape.backward(&outputs[0].sum_all().unwrap(), &mut Grads::none()).unwrap();
    let twice = x.value().to_vec::<f32>().unwrap().iter().map(|v| 2.0 * v).collect::<Vec<f32>>();
    assert_eq!(leaves.get(&x).unwrap().to_vec::<f32>().unwrap(), twice);
}

#[test]
fn a_checkpoint_keeps_its_inputs_alone() {
    let device = device();
    let kept = |checkpointed: bool| {
        let tape = Tape::new();
        let x = tape.leaf(values(&[64, 64], 1, &device));
        if checkpointed {
            tape.checkpoint(&[&x], |_, xs| Ok(vec![xs[0].softmax()?.softmax()?.softmax()?])).unwrap();
        } else {
            x.softmax().unwrap().softmax().unwrap().softmax().unwrap();
        }
        tape.saved_bytes()
    };
    assert_eq!((kept(true), kept(false)), (64 * 64 * 4, 3 * 64 * 64 * 4));
}

#[test]
fn recomputing_keeps_less_and_changes_no_bit() {
    let device = device();
    let run = |recompute| {
        let tape = Tape::with(Options { record: true, recompute, check: false });
        let x = tape.leaf(values(&[64, 64], 1, &device));
        let w = tape.leaf(values(&[64, 64], 2, &device));
        let loss = x.silu().unwrap().exp().unwrap().matmul(&w).unwrap().sum_all().unwrap();
        let kept = tape.saved_bytes();
        let leaves = tape.backward(&loss, &mut Grads::none()).unwrap();
        (kept, bits(leaves.get(&x).unwrap()), bits(leaves.get(&w).unwrap()))
    };
    let (less, more) = (run(true), run(false));
    assert_eq!((&less.1, &less.2), (&more.1, &more.2));
    // With recipes the inputs are enough; without, both activations are kept as well.
    assert_eq!((less.0, more.0), (2 * 64 * 64 * 4, 4 * 64 * 64 * 4));
}

#[test]
fn a_norm_of_a_sum_keeps_the_sum_alone_and_reads_its_gradient_once() {
    let device = device();
    let launches = Arc::new(Mutex::new(Vec::new()));
    let seen = launches.clone();
    device.hooks().listen(move |launch| seen.lock().unwrap().push(launch.kernel));
    let tape = Tape::new();
    let (x, residual) = (tape.leaf(values(&[64, 64], 1, &device)), tape.leaf(values(&[64, 64], 2, &device)));
    let weight = tape.constant(values(&[64], 3, &device));
    let (sum, y) = var::add_rms_norm(&x, &residual, &weight, 1e-5).unwrap();
    assert_eq!(*launches.lock().unwrap(), ["add_rms_norm"]);
    // A rule that needs y: it is made again, from the sum.
    let z = y.square().unwrap().add(&sum).unwrap();
    assert_eq!(tape.saved_bytes(), 4 * (64 * 64 + 64));
    launches.lock().unwrap().clear();
    let dz = values(&[64, 64], 4, &device);
    let leaves = tape.backward_from(&[(&z, dz.clone())], &mut Grads::none()).unwrap();
    let launched = launches.lock().unwrap().clone();
    assert!(launched.contains(&"rms_norm") && launched.contains(&"add_rms_norm_backward"), "{launched:?}");
    assert!(!launched.contains(&"accumulate") && !launched.contains(&"binary"), "{launched:?}");
    assert_eq!(bits(leaves.get(&x).unwrap()), bits(leaves.get(&residual).unwrap()));
    assert_eq!(bits(&dz), bits(&values(&[64, 64], 4, &device)), "no rule writes into the gradient that it is given");
}

#[test]
fn backward_frees_what_the_tape_kept() {
    let device = device();
    let tape = Tape::new();
    let x = tape.leaf(values(&[128, 128], 1, &device));
    let before = device.memory().live;
    let mut y = x.clone();
    for _ in 0..10 {
        y = y.softmax().unwrap();
    }
    let loss = y.square().unwrap().sum_all().unwrap();
    drop(y);
    let kept = device.memory().live - before;
    assert!(kept >= 10 * 128 * 128 * 4 && tape.saved_bytes() >= 10 * 128 * 128 * 4, "{kept}");
    device.reset_peak();
    let leaves = tape.backward(&loss, &mut Grads::none()).unwrap();
    // Going back never needs more than a few tensors beside what is freed on the way.
    assert!(device.memory().peak <= before + kept + 4 * 128 * 128 * 4, "{:?}", device.memory());
    assert_eq!(tape.saved_bytes(), 0);
    drop((leaves, loss));
    assert_eq!(device.memory().live, before);
    device.check_guards().unwrap();
}

#[test]
fn a_parameter_is_ready_after_the_last_of_its_uses() {
    let device = device();
    let set = params(&device);
    let mut grads = Grads::new(&set).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = order.clone();
    grads.on_ready(move |id| seen.lock().unwrap().push(id));
    for _ in 0..2 {
        let tape = Tape::new();
        let x = tape.constant(values(&[2, 8], 1, &device));
        // Used in the order 1, 0, 1, 2: going back, the first use of 1 comes last.
        let y = [1, 0, 1, 2].iter().try_fold(x, |x, &id| x.matmul(&tape.param(&set, id)?)).unwrap();
        tape.backward(&y.sum_all().unwrap(), &mut grads).unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [2, 0, 1, 2, 0, 1]);
}

#[test]
fn gradients_add_up_over_backward_passes_until_zeroed() {
    let device = device();
    let set = params(&device);
    let mut grads = Grads::new(&set).unwrap();
    let pass = |grads: &mut Grads| {
        let tape = Tape::new();
        let loss = tape.param(&set, 1).unwrap().sum_all().unwrap();
        tape.backward(&loss, grads).unwrap();
    };
    pass(&mut grads);
    pass(&mut grads);
    assert_eq!(grads.tensor(1).unwrap().to_vec::<f32>().unwrap(), [2.0; 64]);
    assert_eq!(grads.tensor(0).unwrap().to_vec::<f32>().unwrap(), [0.0; 64]);
    let held = grads.tensor(1).unwrap();
    assert!(grads.zero().unwrap_err().is_aliased());
    drop(held);
    grads.zero().unwrap();
    assert_eq!(grads.tensor(1).unwrap().to_vec::<f32>().unwrap(), [0.0; 64]);
}

#[test]
fn parameters_change_only_while_nobody_holds_them() {
    let device = device();
    let mut set = ParamSet::new(vec![("w".into(), values(&[3], 1, &device))], &device).unwrap();
    {
        let tape = Tape::new();
        let _w = tape.param(&set, 0).unwrap();
        let error = set.update(|mut values| ops::fill(&mut values, 1.0)).unwrap_err();
        assert!(error.is_aliased(), "{error}");
        assert_eq!(set.version(), 0);
    }
    set.update(|mut values| ops::fill(&mut values, 1.0)).unwrap();
    assert_eq!((set.version(), set.values().to_vec::<f32>().unwrap()), (1, vec![1.0; 3]));
}

#[test]
fn what_cannot_be_differentiated_is_an_error() {
    let (device, other) = (device(), device());
    let tape = Tape::new();
    let x = tape.leaf(values(&[2], 1, &device));
    let y = x.square().unwrap();
    let loss = y.sum_all().unwrap();
    tape.backward(&loss, &mut Grads::none()).unwrap();
    let twice = tape.backward(&loss, &mut Grads::none()).err().unwrap();
    assert!(twice.to_string().contains("already used"), "{twice}");

    let tape = Tape::new();
    let leaf = tape.leaf(values(&[2], 1, &device));
    assert!(tape.backward(&leaf, &mut Grads::none()).err().unwrap().is_shape(), "two elements are no loss");
    assert!(leaf.to_dtype(DType::I32).is_err(), "an integer has no gradient");
    let elsewhere = Tape::new();
    assert!(leaf.add(&elsewhere.leaf(values(&[2], 1, &device))).is_err(), "two tapes");
    assert!(leaf.add(&tape.leaf(values(&[2], 1, &other))).unwrap_err().is_device(), "two devices");
    let constant = tape.constant(values(&[1], 1, &device));
    assert!(tape.backward(&constant.square().unwrap(), &mut Grads::none()).is_err(), "nothing is tracked");
}

#[test]
fn detach_cuts_the_gradient() {
    let device = device();
    let tape = Tape::new();
    let x = tape.leaf(values(&[3], 1, &device));
    // x · x, with the second factor held fixed: the gradient is x, not 2x.
    let loss = x.mul(&x.detach()).unwrap().sum_all().unwrap();
    let leaves = tape.backward(&loss, &mut Grads::none()).unwrap();
    assert_eq!(bits(leaves.get(&x).unwrap()), bits(x.value()));
}

#[test]
fn an_inert_tape_keeps_nothing() {
    let device = device();
    let tape = Tape::inert();
    let x = tape.leaf(values(&[64], 1, &device));
    let before = device.memory().live;
    let y = x.softmax().unwrap().square().unwrap();
    assert!(!y.is_tracked() && tape.saved_bytes() == 0);
    drop(y);
    assert_eq!(device.memory().live, before);
}

/// y = x · scale, where the scale is a shared object of the caller.
fn scaled<'t>(x: &Var<'t>, scale: &Arc<f32>) -> Result<Var<'t>> {
    let y = ops::affine(x.value(), **scale, 0.0)?;
    x.tape().record("scaled", &[x], y).save([Save::Handle(scale.clone())]).rule(|dy, saved, sink| {
        // Accumulate where the gradient is kept.
        if let Some(mut place) = sink.dest(0)? {
            ops::accumulate(&mut place, &ops::affine(dy, *saved.handle::<f32>(0)?, 0.0)?)?;
        }
        Ok(())
    })
}

#[test]
fn an_op_of_the_users_own_joins_the_tape() {
    let device = device();
    let scale = Arc::new(3.0f32);
    let tape = Tape::new();
    let x = tape.leaf(values(&[4], 1, &device));
    let loss = scaled(&scaled(&x, &scale).unwrap(), &scale).unwrap().add(&x).unwrap().sum_all().unwrap();
    assert_eq!(Arc::strong_count(&scale), 3);
    let seed = Tensor::full(1.0, &[], DType::F32, &device).unwrap();
    let leaves = tape.backward_from(&[(&loss, seed.clone())], &mut Grads::none()).unwrap();
    assert_eq!(leaves.get(&x).unwrap().to_vec::<f32>().unwrap(), [10.0; 4]);
    assert_eq!(seed.item().unwrap(), 1.0, "no rule writes into the gradient that it is given");
    assert_eq!(Arc::strong_count(&scale), 1, "the tape lets go of handles");
}

#[test]
fn a_variable_of_another_tape_is_an_error() {
    let device = device();
    let (tape, other) = (Tape::new(), Tape::new());
    let x = tape.leaf(values(&[4], 1, &device));
    // Its number on its own tape is past the end of the first one.
    let stray = (0..3).map(|i| other.leaf(values(&[4], i, &device))).last().unwrap();
    let constant = other.constant(values(&[4], 1, &device));
    for stray in [&stray, &constant] {
        for result in [x.mul(stray), stray.mul(&x)] {
            let error = result.unwrap_err();
            assert!(error.is_invalid());
            assert_eq!(error.to_string(), "mul: a variable of shape [4] is on another tape");
        }
        // Saved, but not named as an input.
        let inputs = [&x];
        let record = tape.record("custom", &inputs, x.value().clone()).save([Save::Var(stray)]);
        let error = record.rule(|dy, _, sink| sink.add(0, dy.clone())).unwrap_err();
        assert_eq!(error.to_string(), "custom: a variable of shape [4] is on another tape");
        let error = tape.checkpoint(&[&x, stray], |_, xs| Ok(vec![xs[0].mul(&xs[1])?])).unwrap_err();
        assert_eq!(error.to_string(), "checkpoint: a variable of shape [4] is on another tape");
    }
    let seed = values(&[4], 2, &device);
    let error = tape.backward_from(&[(&stray, seed.clone())], &mut Grads::none()).err().unwrap();
    assert_eq!(error.to_string(), "backward: a variable of shape [4] is on another tape");
    // Nothing of that is left on the tape.
    let leaves = tape.backward_from(&[(&x, seed.clone())], &mut Grads::none()).unwrap();
    assert_eq!(bits(leaves.get(&x).unwrap()), bits(&seed));
}

#[test]
fn checking_names_the_op_the_scope_and_the_rows() {
    let device = device();
    let checked = || Tape::with(Options { record: true, recompute: true, check: true });
    let tape = checked();
    let x = tape.leaf(Tensor::from_vec(vec![1f32, 2.0, 3.0, 1.0, -1.0, 0.0], &[3, 2], &device).unwrap());
    let error = tape.scoped(&"layers.3.mlp".into(), || x.log()).unwrap_err();
    assert!(error.is_non_finite());
    assert_eq!(error.to_string(), "log in layers.3.mlp: value not finite in rows 2");

    let tape = checked();
    let x = tape.leaf(Tensor::from_vec(vec![1f32, 2.0, 0.0, 1.0], &[2, 2], &device).unwrap());
    let y = tape.scoped(&"layers.4".into(), || x.sqrt()).unwrap();
    let error = tape.backward(&y.sum_all().unwrap(), &mut Grads::none()).err().unwrap();
    assert_eq!(error.to_string(), "sqrt in layers.4: gradient not finite in rows 1");
}

/// One step on the meta device counts the bytes that a real step needs.
#[test]
fn the_meta_device_plans_memory() {
    let peak = |device: &Device| {
        let set = params(device);
        let mut grads = Grads::new(&set).unwrap();
        let tape = Tape::new();
        let x = tape.constant(Tensor::zeros(&[30, 8], DType::F32, device).unwrap());
        let y = [0, 1, 2].iter().try_fold(x, |x, &id| x.matmul(&tape.param(&set, id)?)?.gelu()).unwrap();
        let loss = y.log_softmax().unwrap().mean_all().unwrap();
        tape.backward(&loss, &mut grads).unwrap();
        device.memory().peak
    };
    assert_eq!(peak(&Device::meta()), peak(&device()));
}

#[test]
fn parameters_of_two_sets_do_not_mix() {
    let device = device();
    let (policy, reference) = (params(&device), params(&device));
    let mut grads = Grads::new(&policy).unwrap();
    let tape = Tape::new();
    let own = tape.param(&policy, 0).unwrap();
    let error = tape.param(&reference, 0).err().unwrap();
    assert!(error.to_string().contains("tape of its own"), "{error}");
    // On a tape that records nothing they are constants.
    let inert = Tape::inert();
    inert.param(&policy, 0).unwrap();
    inert.param(&reference, 0).unwrap();
    let error = tape.backward(&own.sum_all().unwrap(), &mut Grads::new(&reference).unwrap()).err().unwrap();
    assert!(error.to_string().contains("another set"), "{error}");

    let tape = Tape::new();
    let x = tape.leaf(values(&[8, 8], 4, &device));
    let set = reference.clone();
    let blocks = tape.checkpoint(&[&x, &x], move |tape, xs| block(tape, &set, 0, xs)).unwrap();
    let error = tape.backward(&blocks[0].sum_all().unwrap(), &mut grads).err().unwrap();
    assert!(error.to_string().contains("another set"), "{error}");
    assert!(grads.flat().unwrap().to_vec::<f32>().unwrap().iter().all(|&g| g == 0.0));
}

#[test]
fn a_leaf_of_another_tape_has_no_gradient_here() {
    let device = device();
    let (tape, other) = (Tape::new(), Tape::new());
    let (x, stranger) = (tape.leaf(values(&[3], 1, &device)), other.leaf(values(&[3], 2, &device)));
    let leaves = tape.backward(&x.sum_all().unwrap(), &mut Grads::none()).unwrap();
    assert!(leaves.get(&x).is_some() && leaves.get(&stranger).is_none());
}

/// Recipes run one inside another: their number is bounded, or a long chain would end the stack.
#[test]
fn a_long_chain_of_cheap_ops_has_its_gradient() {
    let device = device();
    let gradient = |recompute| {
        let tape = Tape::with(Options { record: true, recompute, check: false });
        let x = tape.leaf(values(&[4], 3, &device));
        let y = (0..20_000).try_fold(x.clone(), |y, _| y.tanh()).unwrap();
        let leaves = tape.backward(&y.sum_all().unwrap(), &mut Grads::none()).unwrap();
        bits(leaves.get(&x).unwrap())
    };
    assert_eq!(gradient(true), gradient(false));
}

#[test]
fn a_gradient_of_a_parameter_that_is_not_finite_is_found_where_it_is_made() {
    let device = device();
    let set = params(&device);
    let tape = Tape::with(Options { record: true, recompute: true, check: true });
    let weight = tape.param(&set, 1).unwrap();
    let x = tape.constant(Tensor::full(1e30, &[8, 8], DType::F32, &device).unwrap());
    let small = x.matmul(&weight).unwrap().affine(1e-30, 0.0).unwrap();
    let seed = Tensor::full(1e38, &[8, 8], DType::F32, &device).unwrap();
    let error = tape.backward_from(&[(&small.affine(1.0, 0.0).unwrap(), seed)], &mut Grads::new(&set).unwrap());
    let error = error.err().unwrap();
    assert!(error.is_non_finite() && error.to_string().starts_with("matmul: gradient"), "{error}");
}
