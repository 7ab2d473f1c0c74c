//! Every architecture against transformers: logits, loss and gradients of small random models, see
//! `scripts/make-model-fixtures`.

#![allow(clippy::unwrap_used)]

mod support;

use kinglet::autograd::{Grads, ParamSet, Tape};
use kinglet::models::mmap::Mapped;
use kinglet::models::{
    AdapterMap, AdapterSet, Batch, Ctx, Decoder, EMBEDDING, HEAD, LoadOptions, Source, WeightFiles, safetensors,
};
use kinglet::quant::Weight;
use kinglet::tensor::ops::Targets;
use kinglet::tensor::{DType, Device, Tensor};
use std::collections::HashMap;
use std::sync::Arc;
use support::{NF4, device, fixtures, folders, source};

/// Both sides compute in f32 and sum in another order. `depth` products of `width` terms one after another, each
/// with the roundoff of f32, in units of the largest magnitude; 8 covers the norms and softmaxes between.
fn tolerance(model: &Decoder, largest: f32) -> f32 {
    let config = model.config();
    let width = config.hidden.max(config.intermediate) as f32;
    let depth = (7 * config.layers.len() + 1) as f32;
    8.0 * 2f32.powi(-24) * depth * width.sqrt() * largest
}

struct Golden {
    files: WeightFiles,
    device: Device,
}

impl Golden {
    fn tensor(&self, name: &str) -> Option<Tensor> {
        let entry = self.files.entries.get(name)?;
        let bytes = self.files.bytes(entry).unwrap();
        let dtype = match entry.dtype.name() {
            "F32" => DType::F32,
            "I32" => DType::I32,
            other => panic!("{name} is {other}"),
        };
        Some(Tensor::from_shared(bytes.owner, bytes.range.start, dtype, &entry.shape, &self.device).unwrap())
    }

    fn i32s(&self, name: &str) -> Vec<i32> {
        self.tensor(name).unwrap().to_vec().unwrap()
    }
}

/// The largest difference, and a message, when it is above the tolerance.
fn compare(what: &str, model: &Decoder, got: &Tensor, want: &Tensor) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let (got, want) = (got.to_vec::<f32>().unwrap(), want.to_vec::<f32>().unwrap());
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let tolerance = tolerance(model, largest);
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= tolerance, "{what}[{i}]: got {g}, want {w}, tolerance {tolerance}");
    }
}

fn check(name: &str) {
    let folder = fixtures("models").join(name);
    let device = device(2);
    let golden = Golden {
        files: safetensors::open_file(&folder.join("golden.safetensors"), Mapped::open).unwrap(),
        device: device.clone(),
    };
    let source = source(name);
    let model = Decoder::load(&source, &LoadOptions { device: device.clone(), quant: None }).unwrap();

    let offsets: Vec<usize> = golden.i32s("segments").iter().map(|&x| x as usize).collect();
    let batch = Batch::new(&golden.i32s("ids"), &offsets, &device).unwrap();
    let targets: Vec<i32> = golden.i32s("targets").iter().map(|&t| t.max(-1)).collect();
    let targets = Targets::new(&targets, &device).unwrap();
    let divisor = targets.count() as f32;

    let base = Ctx::eval(DType::F32);
    let tape = Tape::inert();
    let hidden = model.hidden(&tape, &batch, None, &base).unwrap();
    compare(name, &model, model.logits(&hidden, &base).unwrap().value(), &golden.tensor("logits").unwrap());

    // Every weight with a golden gradient becomes a parameter, as in full fine-tuning.
    let wanted: Vec<String> =
        golden.files.entries.keys().filter_map(|k| k.strip_prefix("grad.")).map(String::from).collect();
    let loss = golden.tensor("loss").unwrap();
    if wanted.is_empty() {
        let got = model.loss(&tape, &batch, &targets, divisor, &base).unwrap();
        return compare(name, &model, got.value(), &loss.reshape(&[]).unwrap());
    }
    for checkpoint in [false, true] {
        let values = wanted.iter().map(|n| (n.clone(), golden_weight(&source, n, &device))).collect();
        let params = Arc::new(ParamSet::new(values, &device).unwrap());
        let mut tensors: HashMap<String, usize> = wanted.iter().enumerate().map(|(id, n)| (n.clone(), id)).collect();
        if let (true, Some(&embedding)) = (model.config().tied, tensors.get(EMBEDDING)) {
            tensors.insert(HEAD.into(), embedding);
        }
        let map = Arc::new(AdapterMap { tensors, ..AdapterMap::default() });
        let set = AdapterSet { map, params: params.clone() };
        let ctx = Ctx { checkpoint, ..Ctx::eval(DType::F32).with_adapters(set) };
        let mut grads = Grads::new(&params).unwrap();
        let tape = Tape::new();
        let got = model.loss(&tape, &batch, &targets, divisor, &ctx).unwrap();
        compare(name, &model, got.value(), &loss.reshape(&[]).unwrap());
        tape.backward(&got, &mut grads).unwrap();
        for (id, weight) in wanted.iter().enumerate() {
            let want = golden.tensor(&format!("grad.{weight}")).unwrap();
            compare(&format!("{name} checkpoint {checkpoint} {weight}"), &model, &grads.tensor(id).unwrap(), &want);
        }
    }
}

fn golden_weight(source: &Source, name: &str, device: &Device) -> Tensor {
    let entry = source.find(name).unwrap().entry;
    let bytes = source.weights.bytes(entry).unwrap();
    let dtype = if entry.dtype.name() == "BF16" { DType::BF16 } else { DType::F32 };
    Tensor::from_shared(bytes.owner, bytes.range.start, dtype, &entry.shape, device).unwrap()
}

macro_rules! models {
    ($($test:ident = $name:literal;)*) => {
        $(#[test] fn $test() { check($name); })*

        /// A fixture without a test fails.
        #[test]
        fn every_fixture_is_checked() {
            let mut tests = vec![$($name.to_string()),*];
            tests.sort();
            assert_eq!(folders(&fixtures("models")), tests);
        }
    };
}

models! {
    gguf_llama = "gguf-llama";
    gguf_llama_k = "gguf-llama-k";
    gguf_qwen2 = "gguf-qwen2";
    llama = "llama";
    llama_dynamic = "llama-dynamic";
    llama_linear = "llama-linear";
    llama_yarn = "llama-yarn";
    llama3 = "llama3";
    mistral = "mistral";
    qwen2 = "qwen2";
    qwen2_window = "qwen2-window";
    qwen3 = "qwen3";
    smollm3 = "smollm3";
}

/// A random model can be held as a loaded one: 16-bit tables, and blocks in 4 bits of the same random numbers.
#[test]
fn random_models_are_held_as_asked() {
    let device = device(1);
    let random = |quant| {
        let options = LoadOptions { device: device.clone(), quant };
        Decoder::random_as(source("llama").config, 5, DType::BF16, &options).unwrap()
    };
    let (dense, quantised) = (random(None), random(Some(NF4)));
    for (dense, quantised) in dense.linears().zip(quantised.linears()) {
        let (Weight::Dense(want), name) = (&*dense.weight, &dense.site.name) else { panic!("a dense weight") };
        assert_eq!(want.dtype(), DType::BF16, "{name}");
        match &*quantised.weight {
            Weight::FourBit(blocks) => {
                let again = kinglet::quant::FourBit::quantize(want, NF4.format, 64, NF4.double).unwrap();
                assert_eq!(blocks.codes().to_vec::<u8>().unwrap(), again.codes().to_vec::<u8>().unwrap(), "{name}");
            }
            Weight::Dense(head) => assert!(&**name == "lm_head" && head.dtype() == DType::BF16, "{name}"),
            _ => panic!("{name}"),
        }
    }
}
