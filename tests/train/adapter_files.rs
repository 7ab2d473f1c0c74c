//! Adapter folders and merged models as files: PEFT's own survive a round trip, hostile ones are refused by tensor, and
//! what is merged is base and adapter, rounded once.

use crate::common::{device, fixtures, output};
use half::{bf16, f16};
use kinglet_models::fs::{Disk, write_folder_atomic};
use kinglet_models::mmap::Mapped;
use kinglet_models::{Ctx, Decoder, LoadOptions, Source};
use kinglet_peft::{Adapter, LoraConfig, MergeOptions, logit_gap, merge};
use kinglet_tensor::DType;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// The tensors of a file by name, as another library reads them.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views =
        tensors.iter().map(|(n, (dtype, shape, bytes))| (n, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn model(path: &Path) -> Decoder {
    let source = Source::open(path, Mapped::open).unwrap();
    Decoder::load(&source, &LoadOptions { device: device(1), quant: None }).unwrap()
}

/// The values of all weights of a model file as f32.
fn values(tensor: &(Dtype, Vec<usize>, Vec<u8>)) -> Vec<f32> {
    let pairs = || tensor.2.as_chunks::<2>().0.iter();
    match tensor.0 {
        Dtype::F32 => tensor.2.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        other => panic!("{other:?}"),
    }
}

/// Keys that PEFT 0.5 knows: any release reads a file that has no others.
const OLD_KEYS: [&str; 16] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "revision",
    "target_modules",
    "task_type",
];

#[test]
fn what_peft_wrote_is_written_again_as_it_was() {
    for name in ["llama-lora", "llama-qlora", "qwen2-qlora", "qwen2-rslora"] {
        let case = fixtures().join(name);
        let base = model(&fixtures().join(json(&case.join("golden.json"))["base"].as_str().unwrap()));
        for part in ["adapter-init", "adapter-final"] {
            let from = case.join(part);
            let adapter = Adapter::load(&from, &base).unwrap();
            let to = output(&format!("again-{name}-{part}"));
            write_folder_atomic(&Disk, &to, false, |folder| adapter.save(folder)).unwrap();
            assert!(read(&to.join(WEIGHTS)) == read(&from.join(WEIGHTS)), "{name}/{part}: other tensors");
            assert_eq!(Adapter::load(&to, &base).unwrap().config, adapter.config, "{name}/{part}");

            let (ours, theirs) = (json(&to.join(CONFIG)), json(&from.join(CONFIG)));
            let newer: &[&str] =
                if name == "qwen2-rslora" { &["alpha_pattern", "rank_pattern", "use_rslora"] } else { &[] };
            let mut expected = [&OLD_KEYS[..], newer].concat();
            expected.sort_unstable();
            assert_eq!(ours.as_object().unwrap().keys().collect::<Vec<_>>(), expected, "{name}/{part}");
            for key in expected.iter().filter(|key| **key != "target_modules") {
                assert_eq!(ours[key], theirs[key], "{name}/{part}: {key}");
            }
            let sorted = |config: &Value| {
                let mut names: Vec<String> = serde_json::from_value(config["target_modules"].clone()).unwrap();
                names.sort_unstable();
                names
            };
            assert_eq!(sorted(&ours), sorted(&theirs), "{name}/{part}");
        }
    }
}

/// PEFT's adapter with other tensors.
fn with_tensors(name: &str, change: impl FnOnce(&mut Tensors)) -> PathBuf {
    let (from, to) = (fixtures().join("llama-lora/adapter-final"), output(&format!("tensors-{name}")));
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(from.join(CONFIG), to.join(CONFIG)).unwrap();
    let mut tensors = read(&from.join(WEIGHTS));
    change(&mut tensors);
    write(&to.join(WEIGHTS), &tensors);
    to
}

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

#[test]
fn hostile_weights_are_refused_by_tensor() {
    let base = model(&fixtures().join("base-llama"));
    let refuse = |name: &str, parts: &[&str], change: fn(&mut Tensors)| {
        let error = Adapter::load(&with_tensors(name, change), &base).err().unwrap().to_string();
        for part in [&[WEIGHTS, "self_attn.q_proj"], parts].concat() {
            assert!(error.contains(part), "{name}: {part:?} is not in {error}");
        }
    };
    refuse("missing", &[A, "missing"], |t| drop(t.remove(A).unwrap()));
    refuse("extra", &["layers.9", "belongs to nothing"], |t| {
        t.insert(A.replace("layers.0", "layers.9"), t[A].clone());
    });
    refuse("dora", &["lora_magnitude_vector", "belongs to nothing"], |t| {
        t.insert(A.replace("lora_A.weight", "lora_magnitude_vector"), t[A].clone());
    });
    refuse("turned", &[A, "shape"], |t| t.get_mut(A).unwrap().1.reverse());
    refuse("flat", &[A, "shape"], |t| {
        let shape = &mut t.get_mut(A).unwrap().1;
        *shape = vec![shape.iter().product()];
    });
    refuse("integers", &[A, "I32"], |t| t.get_mut(A).unwrap().0 = Dtype::I32);
    refuse("nan", &[A, "not finite"], |t| t.get_mut(A).unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    refuse("infinite", &[A, "not finite"], |t| {
        t.get_mut(A).unwrap().2[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    });
}

#[test]
fn adapters_of_half_precision_load() {
    let base = model(&fixtures().join("base-llama"));
    let halved = |name: &str, dtype, to_bytes: fn(f32) -> [u8; 2]| {
        let folder = with_tensors(name, |tensors| {
            for tensor in tensors.values_mut() {
                let bytes = values(tensor).into_iter().flat_map(to_bytes).collect();
                *tensor = (dtype, tensor.1.clone(), bytes);
            }
        });
        let adapter = Adapter::load(&folder, &base).unwrap();
        for (name, tensor) in read(&folder.join(WEIGHTS)) {
            let id = adapter.params.id(&name).unwrap();
            assert_eq!(adapter.params.tensor(id).unwrap().to_vec::<f32>().unwrap(), values(&tensor), "{name}");
        }
    };
    halved("bf16", Dtype::BF16, |x| bf16::from_f32(x).to_le_bytes());
    halved("f16", Dtype::F16, |x| f16::from_f32(x).to_le_bytes());
}

#[test]
fn a_rank_beyond_all_memory_is_an_error() {
    let base = model(&fixtures().join("base-llama"));
    for r in [1 << 40, usize::MAX / 2, usize::MAX] {
        let config = LoraConfig { r, ..LoraConfig::default() };
        assert!(Adapter::new(config, &base, 1).is_err(), "{r}");
    }
    let folder = with_tensors("rank", |_| ());
    for r in [3u64, 1 << 40, u64::MAX] {
        let mut config = json(&folder.join(CONFIG));
        config["r"] = r.into();
        std::fs::write(folder.join(CONFIG), config.to_string()).unwrap();
        let error = Adapter::load(&folder, &base).err().unwrap().to_string();
        assert!(error.contains("lora_A") && error.contains(&r.to_string()), "{error}");
    }
}

/// An adapter that changes every linear layer of `base` noticeably.
fn trained(base: &Decoder) -> Adapter {
    let config = LoraConfig {
        r: 3,
        lora_alpha: 5.0,
        use_rslora: true,
        rank_pattern: vec![("q_proj".into(), 2)],
        alpha_pattern: vec![("layers.0.mlp.down_proj".into(), 9.0)],
        ..LoraConfig::default()
    };
    let mut adapter = Adapter::new(config, base, 3).unwrap();
    let params = std::sync::Arc::get_mut(&mut adapter.params).unwrap();
    let moved = params.update(|mut values| {
        values.as_mut_slice::<f32>()?.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 7) as f32 * 0.01 - 0.03);
        Ok(())
    });
    moved.unwrap();
    adapter
}

fn merged(name: &str, base: &Decoder, adapter: &Adapter, dtype: Option<DType>) -> PathBuf {
    let to = output(&format!("merged-file-{name}-{dtype:?}"));
    let options = MergeOptions { dtype, ..MergeOptions::default() };
    write_folder_atomic(&Disk, &to, false, |folder| merge(base, &adapter.set(), &options, folder)).unwrap();
    to
}

#[test]
fn a_merged_base_is_rounded_once_and_a_gguf_becomes_a_hugging_face_model() {
    let models = fixtures().join("../models");
    for name in ["llama", "qwen3", "smollm3", "gguf-llama", "gguf-llama-k", "gguf-qwen2"] {
        let from_gguf = name.starts_with("gguf");
        let base = model(&if from_gguf { models.join(name).join("model.gguf") } else { models.join(name) });
        let (adapter, plain) = (trained(&base), Ctx::eval(DType::F32));
        let with = plain.clone().with_adapters(adapter.set());
        let ids: Vec<i32> = (0..11).map(|i| (i * 37 + 5) % base.config().vocab as i32).collect();
        let changed = logit_gap((&base, &plain), (&base, &with), &ids).unwrap();
        assert!(changed > 0.01, "{name}: the adapter changes logits by {changed} only");

        let exact = merged(name, &base, &adapter, Some(DType::F32));
        let again = model(&exact);
        let gap = logit_gap((&again, &plain), (&base, &with), &ids).unwrap();
        assert!(gap < 1e-4, "{name}: {gap}");
        assert_eq!(again.config().tied, base.config().tied, "{name}");

        let exact = read(&exact.join("model.safetensors"));
        assert_eq!(exact.contains_key("lm_head.weight"), !base.config().tied, "{name}");
        let stored = merged(name, &base, &adapter, None);
        model(&stored);
        for (tensor, stored) in read(&stored.join("model.safetensors")) {
            assert!(!from_gguf || stored.0 == Dtype::BF16, "{name}: {tensor} is {:?}", stored.0);
            let rounded = |x: f32| if stored.0 == Dtype::BF16 { bf16::from_f32(x).to_f32() } else { x };
            let want: Vec<f32> = values(&exact[&tensor]).into_iter().map(rounded).collect();
            assert!(values(&stored) == want, "{name}: {tensor}");
        }
    }
}
