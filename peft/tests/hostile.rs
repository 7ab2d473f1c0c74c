//! Adapter folders that nobody vouches for: cut at every byte, with bits changed, with hostile values. An error of one
//! line is right, and so is an adapter that is still whole; a panic or a huge allocation is not.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/hostile.rs"]
mod hostile;

use hostile::Numbers;
use kinglet_models::fs::{Disk, write_folder_atomic};
use kinglet_models::mmap::Mapped;
use kinglet_models::{Decoder, LoadOptions, Source};
use kinglet_peft::{Adapter, CONFIG_FILE, LoraConfig, Targets, WEIGHTS_FILE};
use kinglet_tensor::{CpuOptions, Device, Result};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn model() -> Decoder {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/train/base-llama");
    let device = Device::cpu(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    Decoder::load(&Source::open(&path, Mapped::open).unwrap(), &LoadOptions { device, quant: None }).unwrap()
}

/// The folder of a small adapter, which is deleted in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, model: &Decoder) -> Self {
        let path = std::env::temp_dir().join(format!("kinglet-peft-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        let config = LoraConfig { r: 2, target_modules: Targets::parse("q_proj"), ..LoraConfig::default() };
        let adapter = Adapter::new(config, model, 1).unwrap();
        write_folder_atomic(&Disk, &path, false, |folder| adapter.save(folder)).unwrap();
        Folder(path)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.join(name)).unwrap()
    }

    /// Loads the adapter with other bytes in one of its files; an error names that file, in one line.
    fn load(&self, name: &str, bytes: &[u8], model: &Decoder) -> Result<Adapter> {
        std::fs::write(self.0.join(name), bytes).unwrap();
        let loaded = Adapter::load(&self.0, model);
        if let Err(error) = &loaded {
            let text = error.to_string();
            // A configuration may ask for tensors that the other file has not.
            let places = [name, WEIGHTS_FILE].map(|name| text.contains(name));
            assert!(places.contains(&true) && !text.contains('\n'), "{text:?}");
        }
        loaded
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Cuts a file at each of its first `header` bytes, then changes one to three bits there, four hundred times.
fn torture(name: &str, header: impl Fn(&[u8]) -> usize) {
    let model = model();
    let folder = Folder::new(name, &model);
    let whole = folder.bytes(name);
    let header = header(&whole);
    folder.load(name, &whole, &model).map(drop).unwrap();
    for cut in 0..header {
        assert!(folder.load(name, &whole[..cut], &model).is_err(), "cut at {cut} of {header}");
    }
    let (mut numbers, mut refused) = (Numbers(42), 0);
    for _ in 0..400 {
        refused += usize::from(folder.load(name, &numbers.spoil(&whole, header), &model).is_err());
    }
    assert!(refused > 200, "only {refused} were refused");
}

#[test]
fn a_spoilt_configuration_is_an_error() {
    // The last two bytes are a bracket and a newline, without which it is still whole.
    torture(CONFIG_FILE, |file| file.len() - 1);
}

#[test]
fn spoilt_weights_are_an_error() {
    torture(WEIGHTS_FILE, |file| 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize);
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let model = model();
    let folder = Folder::new("numbers", &model);
    let mut bytes = folder.bytes(WEIGHTS_FILE);
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = folder.load(WEIGHTS_FILE, &bytes, &model).err().unwrap().to_string();
    assert!(error.contains("tensor") && error.contains("not finite"), "{error}");
}

/// Any JSON, small.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "[a-z_.*(\\[{+]{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let keys = "[a-z_.*(\\[]{0,8}";
        let list = prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from);
        let object = prop::collection::vec((keys, inner), 0..4).prop_map(|pairs| pairs.into_iter().collect());
        prop_oneof![list, object]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_value_for_any_key(key in 0usize..24, value in any_json()) {
        let base = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]});
        let keys = ["peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules",
            "use_rslora", "use_dora", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern",
            "alpha_pattern", "modules_to_save", "base_model_name_or_path", "bias", "fan_in_fan_out", "invented"];
        let mut config = base;
        config[keys[key % keys.len()]] = value;
        if let Ok(config) = LoraConfig::from_json(&config) {
            prop_assert!(config.r > 0 && config.lora_alpha.is_finite());
            // What is accepted fits a model or is refused by it, without a huge rank being believed.
            let config = LoraConfig { r: config.r.min(64), rank_pattern: Vec::new(), ..config };
            let _ = Adapter::new(config, &model(), 1).map(drop);
        }
    }

    #[test]
    fn any_bytes_for_a_configuration(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(json) = serde_json::from_slice::<Value>(&bytes) {
            let _ = LoraConfig::from_json(&json);
        }
    }
}
