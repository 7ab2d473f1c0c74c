//! Adapters as files, full fine-tuning, merging: that what is written is what was trained.

use crate::common::{case, device, fixtures, output, train};
use kinglet_autograd::{Grads, Tape, ops};
use kinglet_models::fs::{Disk, write_folder_atomic};
use kinglet_models::mmap::Mapped;
use kinglet_models::{Batch, Ctx, Decoder, LoadOptions, QuantOptions, Source};
use kinglet_peft::{Adapter, LoraConfig, MergeOptions, Targets, logit_gap, merge};
use kinglet_quant::nf4::Format;
use kinglet_tensor::{DType, Result, Tensor, ops as tensor_ops};
use kinglet_train::{Method, Settings, Start};
use std::path::Path;

const IDS: [i32; 9] = [1, 40, 77, 102, 3, 250, 8, 9, 300];

fn model(path: &Path, quant: Option<QuantOptions>) -> Decoder {
    let source = Source::open(path, Mapped::open).unwrap();
    Decoder::load(&source, &LoadOptions { device: device(1), quant }).unwrap()
}

fn base(name: &str) -> Decoder {
    model(&fixtures().join(name), None)
}

fn write_merged(model: &Decoder, adapter: &Adapter, options: &MergeOptions, to: &Path) -> Result<()> {
    write_folder_atomic(&Disk, to, false, |folder| merge(model, &adapter.set(), options, folder))
}

#[test]
fn merged_weights_give_the_logits_of_base_and_adapter() {
    for name in ["llama-lora", "qwen2-rslora"] {
        let golden: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(fixtures().join(name).join("golden.json")).unwrap()).unwrap();
        let base = base(golden["base"].as_str().unwrap());
        let adapter = Adapter::load(&fixtures().join(name).join("adapter-final"), &base).unwrap();
        let with = Ctx::eval(DType::F32).with_adapters(adapter.set());
        let plain = Ctx::eval(DType::F32);
        let changed = logit_gap((&base, &plain), (&base, &with), &IDS).unwrap();
        assert!(changed > 0.5, "{name}: the adapter changes logits by {changed} only");

        let folder = output(&format!("merged-{name}"));
        let options = MergeOptions { dtype: Some(DType::F32), max_shard_bytes: 50_000, ..MergeOptions::default() };
        write_merged(&base, &adapter, &options, &folder).unwrap();
        assert!(folder.join("model.safetensors.index.json").exists());
        let merged = model(&folder, None);
        let gap = logit_gap((&merged, &plain), (&base, &with), &IDS).unwrap();
        assert!(gap < 1e-4, "{name}: {gap}");
        assert_eq!(merged.config().tied, base.config().tied);
    }
}

#[test]
fn merging_keeps_the_stored_dtype_and_refuses_four_bits() {
    let folder = fixtures().join("llama-qlora/adapter-final");
    let quant = QuantOptions { format: Format::Nf4, double: true };
    let quantized = model(&fixtures().join("base-llama"), Some(quant));
    let adapter = Adapter::load(&folder, &quantized).unwrap();
    let to = output("merged-4bit");
    let error = write_merged(&quantized, &adapter, &MergeOptions::default(), &to).unwrap_err().to_string();
    assert!(error.contains("--dequantize") && !to.exists(), "{error}");
    let options = MergeOptions { dequantize: true, dtype: Some(DType::F32), ..MergeOptions::default() };
    write_merged(&quantized, &adapter, &options, &to).unwrap();
    let (merged, plain) = (model(&to, None), Ctx::eval(DType::F32));
    let with = plain.clone().with_adapters(adapter.set());
    assert!(logit_gap((&merged, &plain), (&quantized, &with), &IDS).unwrap() < 1e-4);

    let base = base("base-llama");
    let adapter = Adapter::load(&folder, &base).unwrap();
    let to = output("merged-bf16");
    write_merged(&base, &adapter, &MergeOptions::default(), &to).unwrap();
    let source = Source::open(&to, Mapped::open).unwrap();
    let original = Source::open(&fixtures().join("base-llama"), Mapped::open).unwrap();
    for (name, entry) in &original.weights.entries {
        assert_eq!(source.weights.entries[name].dtype, entry.dtype, "{name}");
    }
    assert_eq!(source.weights.entries.len(), original.weights.entries.len());
}

/// An adapter whose every parameter was moved, as training would.
fn moved(config: LoraConfig, base: &Decoder) -> Adapter {
    let mut adapter = Adapter::new(config, base, 3).unwrap();
    let params = std::sync::Arc::get_mut(&mut adapter.params).unwrap();
    let step = |mut values: kinglet_tensor::TensorMut<'_>| {
        values.as_mut_slice::<f32>()?.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 7) as f32 * 0.01);
        Ok(())
    };
    params.update(step).unwrap();
    adapter
}

#[test]
fn a_tied_model_is_untied_only_when_one_side_was_trained() {
    let base = base("base-llama");
    assert!(base.config().tied);
    let saved = |name: &str| LoraConfig { r: 2, modules_to_save: vec![name.into()], ..LoraConfig::default() };
    let head = Targets::Names(vec!["lm_head".into()]);
    let adapted = LoraConfig { target_modules: head, ..LoraConfig::default() };
    let cases = [
        ("saved-head", saved("lm_head"), false),
        ("saved-embedding", saved("embed_tokens"), false),
        ("saved-norm", saved("norm"), true),
        ("adapted-head", adapted, false),
    ];
    for (name, config, tied) in cases {
        let adapter = moved(config, &base);
        let with = Ctx::eval(DType::F32).with_adapters(adapter.set());
        let to = output(&format!("tied-{name}"));
        let options = MergeOptions { dtype: Some(DType::F32), ..MergeOptions::default() };
        write_merged(&base, &adapter, &options, &to).unwrap();
        let merged = model(&to, None);
        assert_eq!(merged.config().tied, tied, "{name}");
        let gap = logit_gap((&merged, &Ctx::eval(DType::F32)), (&base, &with), &IDS).unwrap();
        assert!(gap < 1e-4, "{name}: {gap}");
    }
}

/// Loss and gradients with an adapter on the output projection: the fused loss beside one over logits that are there.
#[test]
fn an_adapter_on_the_output_projection_learns() {
    for name in ["base-llama", "base-qwen2"] {
        let base = base(name);
        let target_modules = Targets::Names(vec!["lm_head".into(), "q_proj".into()]);
        let adapter = moved(LoraConfig { r: 3, target_modules, ..LoraConfig::default() }, &base);
        let next: Vec<i32> = IDS[1..].iter().copied().chain([-1]).collect();
        let targets = tensor_ops::Targets::new(&next, base.device()).unwrap();
        let vector = Tensor::from_slice(&next, &[IDS.len()], base.device()).unwrap();
        let pass = |fused: bool| {
            let ctx = Ctx::eval(DType::F32).with_adapters(adapter.set());
            let (tape, mut grads) = (Tape::new(), Grads::new(&adapter.params).unwrap());
            let batch = Batch::new(&IDS, &[0, IDS.len()], base.device()).unwrap();
            let hidden = base.hidden(&tape, &batch, None, &ctx).unwrap();
            let loss = match fused {
                true => base.losses(&hidden, &targets, 8.0, &ctx).unwrap().0,
                false => ops::cross_entropy(&base.logits(&hidden, &ctx).unwrap(), &vector, 8.0).unwrap(),
            };
            tape.backward(&loss, &mut grads).unwrap();
            let gradients =
                (0..adapter.params.params().len()).map(|id| grads.tensor(id).unwrap().to_vec::<f32>().unwrap());
            (loss.value().item().unwrap(), gradients.collect::<Vec<_>>())
        };
        let ((loss, gradients), (want, wanted)) = (pass(true), pass(false));
        assert!((loss - want).abs() < 1e-5 * want, "{name}: {loss}, {want}");
        for ((got, want), p) in gradients.iter().zip(&wanted).zip(adapter.params.params()) {
            let largest = want.iter().fold(0f32, |max, x| max.max(x.abs()));
            assert!(largest > 0.0, "{name}: no gradient of {}", p.name);
            let gap = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(gap < 1e-4 * largest, "{name}, {}: {gap} of {largest}", p.name);
        }
    }
}

/// PEFT saves the base's weight beside an adapter of the output projection.
#[test]
fn a_copy_of_the_base_beside_an_adapter_is_passed_over() {
    let base = base("base-llama");
    let head = Targets::Names(vec!["lm_head".into()]);
    let adapter = moved(LoraConfig { r: 2, target_modules: head, ..LoraConfig::default() }, &base);
    let folder = output("base-copy");
    write_folder_atomic(&Disk, &folder, false, |folder| adapter.save(folder)).unwrap();
    let path = folder.join("adapter_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let write = |name: &str, vocab: usize| {
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let copy = vec![0; vocab * base.config().hidden * 4];
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![vocab, base.config().hidden], &copy)
                .unwrap();
        let all = file.tensors().into_iter().chain([(name.to_string(), view)]);
        std::fs::write(&path, safetensors::serialize(all, None).unwrap()).unwrap();
        Adapter::load(&folder, &base).map(|_| ()).map_err(|e| e.to_string())
    };
    let (name, vocab) = ("base_model.model.lm_head.base_layer.weight", base.config().vocab);
    write(name, vocab).unwrap();
    assert!(write(name, vocab + 8).unwrap_err().contains("base_layer"));
    assert!(write("base_model.model.model.norm.base_layer.weight", vocab).unwrap_err().contains("norm"));
}

/// An adapter folder with one thing wrong.
fn broken(name: &str, change: impl Fn(&mut serde_json::Value)) -> std::path::PathBuf {
    let (from, to) = (fixtures().join("llama-lora/adapter-final"), output(name));
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors")).unwrap();
    let text = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut config);
    std::fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    to
}

#[test]
fn adapters_that_do_not_fit_are_refused_by_tensor() {
    let llama = base("base-llama");
    let load = |folder: &Path, model: &Decoder| Adapter::load(folder, model).err().unwrap().to_string();
    let error = load(&fixtures().join("llama-lora/adapter-final"), &base("base-qwen2"));
    assert!(error.contains("base model") && error.contains("lora_"), "{error}");
    let error = load(&broken("rank", |c| c["r"] = 4.into()), &llama);
    assert!(error.contains("shape") && error.contains("adapter_model.safetensors"), "{error}");
    let error = load(&broken("fewer", |c| c["target_modules"] = serde_json::json!(["q_proj"])), &llama);
    assert!(error.contains("belongs to nothing"), "{error}");
    let error = load(&broken("more", |c| c["modules_to_save"] = serde_json::json!(["norm"])), &llama);
    assert!(error.contains("missing"), "{error}");
    let error = load(&broken("dora", |c| c["use_dora"] = true.into()), &llama);
    assert!(error.contains("use_dora") && error.contains("adapter_config.json"), "{error}");

    let cut = broken("cut", |_| ());
    let weights = std::fs::read(cut.join("adapter_model.safetensors")).unwrap();
    std::fs::write(cut.join("adapter_model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    assert!(load(&cut, &llama).contains("adapter_model.safetensors"));
}

#[test]
fn a_new_adapter_changes_nothing_yet_and_survives_its_folder() {
    let base = base("base-qwen2");
    let config = LoraConfig { r: 3, target_modules: Targets::Regex(".*self_attn.*".into()), ..LoraConfig::default() };
    let adapter = Adapter::new(config, &base, 7).unwrap();
    let ctx = |adapter: &Adapter| Ctx::eval(DType::F32).with_adapters(adapter.set());
    assert_eq!(logit_gap((&base, &Ctx::eval(DType::F32)), (&base, &ctx(&adapter)), &IDS).unwrap(), 0.0);
    let folder = output("new-adapter");
    write_folder_atomic(&Disk, &folder, false, |folder| adapter.save(folder)).unwrap();
    let again = Adapter::load(&folder, &base).unwrap();
    assert_eq!(again.config, adapter.config);
    let values = |a: &Adapter| a.params.values().to_vec::<f32>().unwrap();
    assert_eq!(values(&again), values(&adapter));
}

#[test]
fn full_fine_tuning_writes_a_model_that_loads_and_has_learnt() {
    let folder = output("full");
    let (mut settings, _) = case("llama-lora", &folder);
    (settings.method, settings.init_adapter) = (Method::Full, None);
    train(&settings, Start::New, 2).unwrap();
    let (first, last) = (&crate::common::log(&folder)[0], &crate::common::log(&folder)[19]);
    assert!(last["loss"].as_f64().unwrap() < 0.7 * first["loss"].as_f64().unwrap());
    let trained = model(&folder, None);
    assert!(trained.config().tied, "both sides of the tie were trained together");
    let source = Source::open(&folder, Mapped::open).unwrap();
    assert!(!source.weights.entries.contains_key("lm_head.weight"));
    let gap = logit_gap((&trained, &Ctx::eval(DType::F32)), (&base("base-llama"), &Ctx::eval(DType::F32)), &IDS);
    assert!(gap.unwrap() > 0.1);
}

#[test]
fn from_scratch_needs_no_weights() {
    let (bare, folder) = (output("bare-base"), output("scratch"));
    std::fs::create_dir_all(&bare).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(fixtures().join("base-llama").join(name), bare.join(name)).unwrap();
    }
    let (case, _) = case("llama-lora", &folder);
    let mut settings = Settings::new(&bare, &case.data, &folder);
    (settings.method, settings.from_scratch, settings.max_steps) = (Method::Full, true, Some(2));
    train(&settings, Start::New, 1).unwrap();
    let source = Source::open(&folder, Mapped::open).unwrap();
    let dtype = source.weights.entries["model.embed_tokens.weight"].dtype;
    assert_eq!(dtype, kinglet_models::StoredType::BF16, "as its config.json says");
}
