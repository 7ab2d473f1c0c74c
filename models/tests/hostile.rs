//! Files that nobody vouches for: every reader gets each format cut at every byte, with single
//! bytes changed at random, and with hostile numbers. An error is right, and so is a file that is
//! still whole; a panic, an abort or a huge allocation is not.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/hostile.rs"]
mod hostile;

use hostile::{Numbers, survive};
use std::path::{Path, PathBuf};

use kinglet_models::gguf::{self, Array, Value, Writer};
use kinglet_models::mmap::Mapped;
use kinglet_models::safetensors::{self, TensorSpec};
use kinglet_models::{Config, Source, StoredType, fs};
use kinglet_tensor::Result;
use proptest::prelude::*;

/// The most address space that the whole of this test may ever take. The readers' files here have
/// a few KiB; one believed count would ask for gigabytes.
const MAX_ADDRESS_SPACE_KB: usize = 2 << 20;

/// The most address space that this process ever had, in KiB.
#[cfg(target_os = "linux")]
fn peak_address_space_kb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[cfg(not(target_os = "linux"))]
fn peak_address_space_kb() -> usize {
    0
}

/// Gives `read` the file cut at each byte of its header, and `flips` times with one to three random
/// bits of the header changed. Returns how many of the changed files were refused.
fn torture<T>(file: &[u8], header: usize, flips: usize, mut read: impl FnMut(&[u8]) -> Result<T>) -> usize {
    assert!(survive(|| read(file)), "the file is whole to begin with");
    for cut in 0..header {
        assert!(!survive(|| read(&file[..cut])), "cut at {cut} of {}", file.len());
    }
    let (mut refused, mut numbers) = (0, Numbers(42));
    for _ in 0..flips {
        refused += usize::from(!survive(|| read(&numbers.spoil(file, header))));
    }
    let peak = peak_address_space_kb();
    assert!(peak < MAX_ADDRESS_SPACE_KB, "{peak} KiB of address space");
    refused
}

/// Gives `read` the file with hostile numbers in place of each eight bytes of its header.
fn hostile_numbers<T>(file: &[u8], header: usize, mut read: impl FnMut(&[u8]) -> Result<T>) {
    for at in 0..header - 8 {
        for number in [0u64, 1, 0x7F, 1 << 20, 1 << 31, 1 << 32, 1 << 40, i64::MAX as u64, u64::MAX - 7, u64::MAX] {
            let mut bytes = file.to_vec();
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            survive(|| read(&bytes));
        }
    }
    let peak = peak_address_space_kb();
    assert!(peak < MAX_ADDRESS_SPACE_KB, "{peak} KiB of address space");
}

fn small_gguf() -> Vec<u8> {
    let mut file = Writer::default();
    file.key("general.architecture", &Value::String("llama".into()));
    file.key("general.alignment", &Value::U32(32));
    for (name, value) in [
        ("block_count", 2),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 4),
    ] {
        file.key(&format!("llama.{name}"), &Value::U32(value));
    }
    file.key("llama.attention.layer_norm_rms_epsilon", &Value::F32(1e-5));
    file.key("tokenizer.ggml.tokens", &Value::Array(Array::String(vec!["a".into(), "bc".into()])));
    file.key("tokenizer.ggml.scores", &Value::Array(Array::F32(vec![0.0, 1.0])));
    file.key("nested", &Value::Array(Array::Array(vec![Array::U8(vec![1, 2]), Array::Bool(vec![true])])));
    file.tensor("token_embd.weight", StoredType::Q8_0, &[2, 32], &[1; 68]);
    file.tensor("output_norm.weight", StoredType::F32, &[32], &[2; 128]);
    file.finish()
}

fn small_safetensors() -> Vec<u8> {
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec { name: name.into(), dtype, shape: shape.into() };
    let specs = [
        spec("model.embed_tokens.weight", StoredType::F32, &[3, 4]),
        spec("model.norm.weight", StoredType::BF16, &[4]),
        spec("flags", StoredType::Bool, &[3]),
    ];
    let mut file = Vec::new();
    safetensors::write_file(&mut file, &specs, |spec, out| {
        let bytes = vec![1; spec.dtype.bytes(&spec.shape).unwrap()];
        out.write_all(&bytes).map_err(|e| kinglet_tensor::Error::io("cannot write", e))
    })
    .unwrap();
    file
}

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 10, "hidden_size": 8,
    "intermediate_size": 6, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": null,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "eos_token_id": [1, 2], "tie_word_embeddings": true,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192}}"#;

fn read_config(bytes: &[u8]) -> Result<Config> {
    let invalid = |e: &dyn std::fmt::Display| kinglet_tensor::Error::invalid(format!("not JSON: {e}"));
    let object = serde_json::from_slice(bytes).map_err(|e| invalid(&e))?;
    let config = Config::from_json(object)?;
    // What the decoder does first with a config that was accepted.
    let frequencies = config.rope.frequencies(config.head_dim, config.max_positions);
    assert_eq!(frequencies.inv_freq.len(), config.head_dim / 2);
    config.to_json("float32")?;
    Ok(config)
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("kinglet-hostile-{name}-{}", std::process::id()))
}

#[test]
fn gguf_headers() {
    let file = small_gguf();
    let header = file.len() - 96 - 128;
    let refused = torture(&file, header, 2000, gguf::parse);
    assert!(refused > 1000, "only {refused} were refused");
    hostile_numbers(&file, header, gguf::parse);
    for cut in header..file.len() {
        assert!(!survive(|| gguf::parse(&file[..cut])), "cut at {cut} within the data");
    }
}

#[test]
fn gguf_files_as_models() {
    let file = small_gguf();
    let path = temporary("model.gguf");
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Source::open(&path, Mapped::open_unmapped)
    };
    let refused = torture(&file, file.len() - 96 - 128, 400, open);
    assert!(refused > 200, "only {refused} were refused");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn safetensors_headers() {
    let file = small_safetensors();
    let data = 48 + 8 + 3;
    let read = |bytes: &[u8]| safetensors::read_entries(bytes, 0);
    let refused = torture(&file, file.len() - data, 2000, read);
    assert!(refused > 1000, "only {refused} were refused");
    hostile_numbers(&file, file.len() - data, read);
    for cut in file.len() - data..file.len() {
        assert!(!survive(|| safetensors::read_entries(&file[..cut], 0)), "cut at {cut} within the data");
    }
}

#[test]
fn configs() {
    let refused = torture(CONFIG.as_bytes(), CONFIG.len(), 2000, read_config);
    assert!(refused > 1000, "only {refused} were refused");
}

/// A folder in which one file's bytes are replaced again and again.
fn with_file<T>(folder: &Path, name: &str, read: impl Fn(&Path) -> Result<T>) -> impl FnMut(&[u8]) -> Result<T> {
    move |bytes| {
        std::fs::write(folder.join(name), bytes).unwrap();
        read(folder)
    }
}

#[test]
fn shard_indexes_and_manifests() {
    let folder = temporary("folder");
    let _ = std::fs::remove_dir_all(&folder);
    fs::write_folder_atomic(&fs::Disk, &folder, false, |f| {
        f.write_bytes("one.safetensors", &small_safetensors())?;
        f.write_bytes("config.json", CONFIG.as_bytes())
    })
    .unwrap();
    let index = br#"{"metadata": {"total_size": 59}, "weight_map": {"model.norm.weight": "one.safetensors"}}"#;
    let open = |folder: &Path| safetensors::open_folder(folder, Mapped::open_unmapped);
    torture(index, index.len(), 400, with_file(&folder, safetensors::INDEX, open));

    let manifest = std::fs::read(folder.join(fs::MANIFEST)).unwrap();
    let verify = |folder: &Path| fs::verify_manifest(&fs::Disk, folder);
    // The last byte is the newline, without which it is still whole.
    let refused = torture(&manifest, manifest.len() - 1, 400, with_file(&folder, fs::MANIFEST, verify));
    assert!(refused > 200, "only {refused} were refused");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn deep_json_is_an_error_not_a_stack_overflow() {
    let deep = format!("{{\"model_type\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(!survive(|| read_config(deep.as_bytes())));
    let mut file = (deep.len() as u64).to_le_bytes().to_vec();
    file.extend(deep.as_bytes());
    assert!(!survive(|| safetensors::read_entries(&file, 0)));
}

/// Any JSON, small.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "[a-z_]{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Into::into))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_bytes_behind_the_magic_of_gguf(tail in prop::collection::vec(any::<u8>(), 0..300), version in 0u32..5) {
        let mut file = b"GGUF".to_vec();
        file.extend(version.to_le_bytes());
        file.extend(&tail);
        survive(|| gguf::parse(&file));
    }

    #[test]
    fn any_gguf_tensor(dims in prop::collection::vec(prop_oneof![0u64..70, any::<u64>()], 0..6), id in 0u32..32, offset in any::<u64>()) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(1u64.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(1u64.to_le_bytes());
        file.push(b't');
        file.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| file.extend(d.to_le_bytes()));
        file.extend(id.to_le_bytes());
        file.extend(offset.to_le_bytes());
        file.resize(4096, 0);
        survive(|| {
            let (_, entries) = gguf::parse(&file)?;
            check_ranges(entries.values().map(|e| e.range.clone()), file.len());
            Ok(())
        });
    }

    #[test]
    fn any_safetensors_header(
        shapes in prop::collection::vec(prop::collection::vec(prop_oneof![0u64..5, any::<u64>()], 0..4), 0..4),
        offsets in prop::collection::vec((prop_oneof![0u64..64, any::<u64>()], prop_oneof![0u64..64, any::<u64>()]), 4),
        dtype in prop::sample::select(vec!["F32", "BF16", "U8", "I64", "BOOL", "F8_E5M2", "F4", ""]),
    ) {
        let tensor = |(i, shape): (usize, &Vec<u64>)| {
            let (start, end) = offsets[i];
            (format!("t{i}"), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}))
        };
        let header: serde_json::Map<_, _> = shapes.iter().enumerate().map(tensor).collect();
        let header = serde_json::Value::Object(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend([0; 64]);
        survive(|| {
            let entries = safetensors::read_entries(&file, 0)?;
            check_ranges(entries.iter().map(|e| e.range.clone()), file.len());
            Ok(())
        });
    }

    #[test]
    fn any_value_for_any_key_of_a_config(key in 0usize..32, value in json()) {
        let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(CONFIG).unwrap();
        let extra = ["sliding_window", "use_sliding_window", "layer_types", "no_rope_layers", "rope_parameters"];
        let keys: Vec<String> = object.keys().cloned().chain(extra.map(String::from)).collect();
        for model_type in ["llama", "mistral", "qwen2", "qwen3", "smollm3"] {
            object.remove("architectures");
            object["model_type"] = model_type.into();
            object.insert(keys[key % keys.len()].clone(), value.clone());
            let text = serde_json::to_vec(&object).unwrap();
            survive(|| read_config(&text));
        }
    }

    #[test]
    fn any_value_for_any_setting_of_a_rotation(
        kind in prop::sample::select(vec!["linear", "dynamic", "llama3", "yarn", "longrope", "default"]),
        key in prop::sample::select(vec!["factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
            "original_max_position_embeddings", "attention_factor", "mscale", "short_factor", "rope_theta", "truncate"]),
        value in json(),
    ) {
        let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(CONFIG).unwrap();
        let mut settings = serde_json::json!({"rope_type": kind, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "short_factor": [2.0], "long_factor": [4.0]});
        settings[key] = value;
        object.insert("rope_scaling".into(), settings);
        let text = serde_json::to_vec(&object).unwrap();
        survive(|| read_config(&text));
    }
}

/// What a reader accepted lies within the file.
fn check_ranges(ranges: impl Iterator<Item = std::ops::Range<usize>>, len: usize) {
    for range in ranges {
        assert!(range.start <= range.end && range.end <= len, "{range:?} of {len} bytes");
    }
}
