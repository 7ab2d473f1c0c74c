//! Twenty steps of LoRA and QLoRA take the course that PEFT and bitsandbytes take.

use crate::common::{case, fixtures, log, output, train};
use kinglet_models::mmap::Mapped;
use kinglet_models::safetensors::open_file;
use kinglet_train::{End, Start};

/// How far a step may be off, relative.
const TOLERANCE: f64 = 1e-3;

fn close(ours: &serde_json::Value, golden: &serde_json::Value, what: &str) {
    let (ours, golden) = (ours.as_f64().unwrap(), golden.as_f64().unwrap());
    assert!((ours - golden).abs() <= TOLERANCE * golden.abs(), "{what}: {ours}, PEFT has {golden}");
}

fn follows_peft(name: &str) {
    let folder = output(&format!("curve-{name}"));
    let (settings, golden) = case(name, &folder);
    let outcome = train(&settings, Start::New, 2).unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Finished, 20));
    let rows = log(&folder);
    let steps = golden["steps"].as_array().unwrap();
    assert_eq!(rows.len(), steps.len());
    for (row, step) in rows.iter().zip(steps) {
        assert_eq!(row["step"], step["step"]);
        for key in ["loss", "learning_rate", "grad_norm"] {
            close(&row[key], &step[key], &format!("{name}, step {}, {key}", row["step"]));
        }
    }
    same_adapter(
        &folder.join("adapter_model.safetensors"),
        &fixtures().join(name).join("adapter-final/adapter_model.safetensors"),
    );
}

/// The trained weights have PEFT's names and shapes, and their values up to the drift of 20 steps.
fn same_adapter(ours: &std::path::Path, theirs: &std::path::Path) {
    let (ours, theirs) = (open_file(ours, Mapped::open).unwrap(), open_file(theirs, Mapped::open).unwrap());
    assert!(ours.entries.keys().eq(theirs.entries.keys()));
    let (mut gap, mut size) = (0.0f64, 0.0f64);
    for (name, entry) in &ours.entries {
        let other = theirs.get(name).unwrap();
        assert_eq!(entry.shape, other.shape, "{name}");
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let (a, b) = (ours.bytes(entry).unwrap(), theirs.bytes(other).unwrap());
        for (a, b) in floats(a.as_ref()).iter().zip(floats(b.as_ref())) {
            gap += f64::from(a - b).powi(2);
            size += f64::from(b).powi(2);
        }
    }
    assert!(gap.sqrt() <= 1e-2 * size.sqrt(), "weights are {} off", (gap / size).sqrt());
}

#[test]
fn lora_on_llama() {
    follows_peft("llama-lora");
}

#[test]
fn qlora_on_llama() {
    follows_peft("llama-qlora");
}

#[test]
fn rank_stabilised_lora_with_patterns_on_qwen2() {
    follows_peft("qwen2-rslora");
}

#[test]
fn qlora_on_qwen2() {
    follows_peft("qwen2-qlora");
}
