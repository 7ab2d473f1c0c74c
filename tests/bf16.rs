//! Computing in bf16 beside computing in f32: kinglet's two may not be further apart than twice as far as torch's, see
//! `scripts/make-bf16-fixture`.
#![allow(clippy::unwrap_used)]

mod support;

use kinglet::DType;
use kinglet::autograd::{Grads, Param, Tape};
use kinglet::models::mmap::Mapped;
use kinglet::models::{Batch, Ctx, Decoder, safetensors};
use kinglet::peft::Adapter;
use kinglet::tensor::ops::Targets;
use serde_json::Value;
use std::collections::BTreeMap;
use support::{NF4, device, fixtures, folders, load};

/// How far kinglet's bf16 may be from its f32, in units of torch's distance. Both round to bf16 at nearly the same places,
/// so that their errors are two draws of one size: of tens of thousands of elements for logits, of a few dozen for the
/// smallest gradients, which leaves room for chance. Measured: 0.7 to 1.0 for logits and losses, a median of 0.8 and at
/// most 1.7 over all gradients; torch also rounds inside of norms and between logits and loss.
const FACTOR: f64 = 2.0;

/// The ids, segments and targets of a model's golden file.
struct Input {
    ids: Vec<i32>,
    segments: Vec<usize>,
    targets: Vec<i32>,
}

impl Input {
    fn read(model: &str) -> Self {
        let path = fixtures("models").join(model).join("golden.safetensors");
        let files = safetensors::open_file(&path, Mapped::open).unwrap();
        let i32s = |name: &str| -> Vec<i32> {
            let bytes = files.bytes(files.get(name).unwrap()).unwrap();
            bytes.as_ref().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let targets = i32s("targets").into_iter().map(|t| t.max(-1)).collect();
        Input { ids: i32s("ids"), segments: i32s("segments").into_iter().map(|s| s as usize).collect(), targets }
    }
}

/// What one pass gives: logits, the losses of positions with a target, and the gradients by name.
fn pass(model: &Decoder, adapter: &Adapter, input: &Input, ctx: &Ctx) -> BTreeMap<String, Vec<f32>> {
    let device = model.device();
    let ctx = ctx.clone().with_adapters(adapter.set());
    let batch = Batch::new(&input.ids, &input.segments, device).unwrap();
    let targets = Targets::new(&input.targets, device).unwrap();
    let with_target = |losses: Vec<f32>| -> Vec<f32> {
        losses.into_iter().zip(&input.targets).filter(|&(_, &t)| t >= 0).map(|(loss, _)| loss).collect()
    };
    let count = targets.count() as f32;
    let (tape, mut grads) = (Tape::new(), Grads::new(&adapter.params).unwrap());
    let hidden = model.hidden(&tape, &batch, None, &ctx).unwrap();
    assert_eq!(hidden.dtype(), ctx.dtype);
    let logits = model.logits(&hidden.detach(), &ctx).unwrap();
    let (loss, losses) = model.losses(&hidden, &targets, count, &ctx).unwrap();
    tape.backward(&loss, &mut grads).unwrap();
    let gradient = |(id, p): (usize, &Param)| (p.name.clone(), grads.tensor(id).unwrap().to_vec().unwrap());
    let mut outcome: BTreeMap<_, _> = adapter.params.params().iter().enumerate().map(gradient).collect();
    outcome.insert("logits".into(), logits.value().to_vec().unwrap());
    outcome.insert("losses".into(), with_target(losses.to_vec().unwrap()));
    outcome
}

/// |got - want| / |want|
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let gap = norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(g - w)));
    gap / norm(&mut want.iter().map(|&w| f64::from(w)))
}

fn check(case: &str, torch: &Value) {
    let name = case.strip_suffix("-nf4").unwrap_or(case);
    let model = load(name, (name != case).then_some(NF4), &device(2));
    let adapter = Adapter::load(&fixtures("bf16").join(case), &model).unwrap();
    let input = Input::read(name);
    let pass = |dtype, checkpoint| pass(&model, &adapter, &input, &Ctx { checkpoint, ..Ctx::eval(dtype) });
    let [half, full] = [DType::BF16, DType::F32].map(|dtype| pass(dtype, false));
    assert!(pass(DType::BF16, true) == half, "{case}: checkpointing gives other bits");
    for (what, want) in &full {
        let theirs = torch.get(what).or_else(|| torch["gradients"].get(what)).unwrap().as_f64().unwrap();
        let ours = distance(&half[what], want);
        println!("{case} {what}: {ours:.4}, torch {theirs:.4}");
        assert!(ours > 0.0 && ours <= FACTOR * theirs, "{case}, {what}: bf16 is {ours} from f32, in torch {theirs}");
    }
}

#[test]
fn bf16_is_as_near_to_f32_as_in_torch() {
    let golden = std::fs::read_to_string(fixtures("bf16").join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let cases = golden["cases"].as_object().unwrap();
    assert!(folders(&fixtures("bf16")).iter().all(|folder| cases.contains_key(folder)));
    cases.iter().for_each(|(case, torch)| check(case, torch));
}
