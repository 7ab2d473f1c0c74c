//! `kinglet inspect`: what is in a model, adapter, checkpoint, run or weight file.

use crate::args::InspectArgs;
use crate::console::{bytes, next, out, quoted};
use kinglet_models::fs::{Disk, verify_manifest};
use kinglet_models::gguf::{Array, Gguf, Metadata, Value as GgufValue};
use kinglet_models::mmap::Mapped;
use kinglet_models::safetensors::{open_file, open_folder};
use kinglet_models::{Config, Source, WeightFiles};
use kinglet_peft::{CONFIG_FILE, WEIGHTS_FILE};
use kinglet_tensor::{Error, Result};
use kinglet_train::Settings;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The state of a checkpoint.
const STATE: &str = "kinglet_state.json";

/// # Errors
/// When there is nothing that kinglet knows, or it is malformed.
pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let path = &args.path;
    let kind = std::fs::metadata(path).map_err(|e| Error::io(path.display(), e))?;
    let found = if kind.is_dir() { folder(path)? } else { file(path)? };
    if args.json {
        out(&found)?;
    } else {
        out(lines(&found, 0).trim_end())?;
    }
    let shown = quoted(path);
    match found["kind"].as_str() {
        Some("model") if found["supported"] != true => {}
        Some("model") => next(format!("generate --model {shown} --prompt 'Hello'")),
        Some("adapter" | "checkpoint") => {
            let base = found["adapter"]["base_model_name_or_path"].as_str().map(|base| quoted(Path::new(base)));
            let base = base.unwrap_or_else(|| "BASE".into());
            next(format!("generate --model {base} --adapter {shown} --prompt 'Hello'"));
        }
        Some("run") if found["finished"] == true => {
            next(format!("eval --model BASE --adapter {shown} --data ROWS.jsonl"))
        }
        Some("run") => next(format!("finetune --resume --output {shown}")),
        _ => next("inspect FOLDER"),
    }
    Ok(())
}

fn file(path: &Path) -> Result<Value> {
    let is_safetensors = path.extension().is_some_and(|e| e == "safetensors");
    if is_safetensors {
        return Ok(
            json!({"kind": "weights", "path": shown(path), "tensors": tensors(&open_file(path, Mapped::open)?)}),
        );
    }
    let gguf = Gguf::open(path, Mapped::open).map_err(|e| foreign(path).unwrap_or(e))?;
    Ok(json!({
        "kind": "model",
        "path": shown(path),
        "supported": supported(Config::from_gguf(&gguf)),
        "metadata": metadata(&gguf.metadata),
        "tensors": tensors(&gguf.weights),
    }))
}

/// Of a file that does not even pretend to be GGUF: what it may be, and what to give instead.
fn foreign(path: &Path) -> Option<Error> {
    if path.extension().is_some_and(|e| e == "gguf") {
        return None;
    }
    Source::open(path, Mapped::open).err()
}

/// Everything in a folder that kinglet knows. The last kind that fits is what the folder is.
fn folder(path: &Path) -> Result<Value> {
    let mut found = Map::new();
    found.insert("kind".into(), Value::Null);
    found.insert("path".into(), shown(path).into());
    let has = |name: &str| path.join(name).exists();
    if has("config.json") {
        found.insert("kind".into(), "model".into());
        found.insert("config".into(), read_json(&path.join("config.json"))?);
        found.insert("supported".into(), supported(Config::read(&path.join("config.json"))));
    }
    if has("model.safetensors") || has("model.safetensors.index.json") {
        found.insert("tensors".into(), tensors(&open_folder(path, Mapped::open)?));
    }
    if has(CONFIG_FILE) {
        found.insert("kind".into(), "adapter".into());
        found.insert("adapter".into(), read_json(&path.join(CONFIG_FILE))?);
    }
    if has(WEIGHTS_FILE) {
        found.insert("adapter_tensors".into(), tensors(&open_file(&path.join(WEIGHTS_FILE), Mapped::open)?));
    }
    if has(STATE) {
        found.insert("kind".into(), "checkpoint".into());
        let mut state = read_json(&path.join(STATE))?;
        if let Some(Value::Array(params)) = state.get("params") {
            state["params"] = params.len().into(); // their list says no more than the tensors above
        }
        found.insert("state".into(), state);
        found.insert("whole".into(), supported(verify_manifest(&Disk, path)));
    }
    if has(Settings::FILE) {
        found.insert("kind".into(), "run".into());
        found.insert("settings".into(), read_json(&path.join(Settings::FILE))?);
        found.insert("finished".into(), (has(CONFIG_FILE) || has("config.json")).into());
        found.insert("checkpoints".into(), json!(checkpoints(path)?));
    }
    if found["kind"].is_null() {
        let what = format!("holds neither config.json nor {CONFIG_FILE}, {STATE} or {}", Settings::FILE);
        return Err(Error::invalid(format!(
            "{}: {what}: give a model, an adapter, a checkpoint or a run",
            path.display()
        )));
    }
    Ok(Value::Object(found))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// `true`, or why not.
fn supported<T>(result: Result<T>) -> Value {
    result.map_or_else(|e| json!(e.to_string()), |_| json!(true))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path.display(), e))?;
    serde_json::from_str(&text).map_err(|e| Error::invalid(format!("{}: {e}", path.display())))
}

/// Steps of the checkpoints in a run, in order.
fn checkpoints(path: &Path) -> Result<Vec<u64>> {
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path.display(), e))?;
    let step = |name: String| name.strip_prefix("checkpoint-")?.parse().ok();
    let mut steps: Vec<u64> = entries.flatten().filter_map(|e| step(e.file_name().into_string().ok()?)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Numbers of tensors, elements and bytes, in all and by type.
fn tensors(weights: &WeightFiles) -> Value {
    let mut by_dtype: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut all = [0; 3];
    for entry in weights.entries.values() {
        let one = [1, entry.shape.iter().product(), entry.range.len()];
        let sum = by_dtype.entry(entry.dtype.name()).or_default();
        for (i, n) in one.into_iter().enumerate() {
            sum[i] += n;
            all[i] += n;
        }
    }
    let object = |[count, elements, bytes]: [usize; 3]| json!({"count": count, "elements": elements, "bytes": bytes});
    let mut found = object(all);
    found["by_dtype"] = by_dtype.into_iter().map(|(name, sums)| (name.to_string(), object(sums))).collect();
    found
}

/// GGUF metadata; a list only by its length, as a vocabulary would fill the screen.
fn metadata(metadata: &Metadata) -> Value {
    metadata.iter().map(|(key, value)| (key.to_string(), plain(value))).collect()
}

fn plain(value: &GgufValue) -> Value {
    match value {
        GgufValue::U8(v) => json!(v),
        GgufValue::I8(v) => json!(v),
        GgufValue::U16(v) => json!(v),
        GgufValue::I16(v) => json!(v),
        GgufValue::U32(v) => json!(v),
        GgufValue::I32(v) => json!(v),
        GgufValue::U64(v) => json!(v),
        GgufValue::I64(v) => json!(v),
        GgufValue::F32(v) => json!(v),
        GgufValue::F64(v) => json!(v),
        GgufValue::Bool(v) => json!(v),
        GgufValue::String(v) => json!(v),
        GgufValue::Array(list) => json!({"length": length(list)}),
    }
}

fn length(list: &Array) -> usize {
    match list {
        Array::U8(v) => v.len(),
        Array::I8(v) => v.len(),
        Array::U16(v) => v.len(),
        Array::I16(v) => v.len(),
        Array::U32(v) => v.len(),
        Array::I32(v) => v.len(),
        Array::U64(v) => v.len(),
        Array::I64(v) => v.len(),
        Array::F32(v) => v.len(),
        Array::F64(v) => v.len(),
        Array::Bool(v) => v.len(),
        Array::String(v) => v.len(),
        Array::Array(v) => v.len(),
    }
}

/// The same for a reader: a line a value, indented by depth.
fn lines(value: &Value, depth: usize) -> String {
    let Value::Object(object) = value else { return String::new() };
    let indent = "  ".repeat(depth);
    let line = |(key, value): (&String, &Value)| match value {
        Value::Object(inner) if !inner.is_empty() => format!("{indent}{key}:\n{}", lines(value, depth + 1)),
        Value::String(text) => format!("{indent}{key}: {}\n", text.escape_debug()),
        Value::Number(n) if key == "bytes" => {
            format!("{indent}{key}: {n} ({})\n", bytes(n.as_u64().unwrap_or_default() as usize))
        }
        other => format!("{indent}{key}: {other}\n"),
    };
    object.iter().map(line).collect()
}
