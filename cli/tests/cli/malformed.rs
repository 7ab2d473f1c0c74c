//! Files that are cut short, spoilt or hostile: exit 2, one line that names the file, and nothing left behind.

use crate::common::*;
use std::path::Path;

fn generate(model: &Path) -> String {
    refused(&["generate", "--model", &model.display().to_string(), "--prompt", "x"])
}

#[test]
fn a_spoilt_model_is_named() {
    let temp = Temp::new();
    let model = temp.model();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let path = model.join(name);
        let whole = std::fs::read(&path).unwrap();
        let cuts = [0, 1, 7, 9, whole.len() / 3, whole.len() - 2];
        let mut spoilt: Vec<Vec<u8>> = cuts.iter().map(|&n| whole[..n].to_vec()).collect();
        spoilt.push(vec![0xff; whole.len()]);
        spoilt.push(b"[[[[[[[[".repeat(500));
        for bytes in spoilt {
            std::fs::write(&path, bytes).unwrap();
            contains(&generate(&model), &[name]);
        }
        std::fs::write(&path, whole).unwrap();
    }
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let path = model.join(name);
        let whole = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        contains(&generate(&model), &[name]);
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn a_configuration_that_asks_for_the_unknown_is_named() {
    let temp = Temp::new();
    let model = temp.model();
    let config = json(&std::fs::read_to_string(model.join("config.json")).unwrap());
    for (key, value, part) in [
        ("model_type", "mamba".into(), "mamba"),
        ("hidden_act", "swish9".into(), "swish9"),
        ("rope_parameters", serde_json::json!({"rope_type": "spiral", "rope_theta": 1e4}), "spiral"),
        ("hidden_size", 640.into(), "model.safetensors"),
        ("hidden_size", (-1).into(), "hidden_size"),
        ("hidden_size", 9_999_999_999_999_u64.into(), "hidden_size"),
        ("num_hidden_layers", 3.into(), "model.layers.2"),
        ("num_attention_heads", 0.into(), "num_attention_heads"),
        ("vocab_size", 300.into(), "model"),
    ] {
        let mut spoilt = config.clone();
        assert!(spoilt[key] != value && !spoilt[key].is_null(), "{key}");
        spoilt[key] = value;
        std::fs::write(model.join("config.json"), spoilt.to_string()).unwrap();
        contains(&generate(&model), &[part]);
    }
}

#[test]
fn a_spoilt_gguf_is_named() {
    let temp = Temp::new();
    let whole = std::fs::read(fixture("models/gguf-llama/model.gguf")).unwrap();
    for n in [0, 3, 4, 8, 24, 40, 1000, whole.len() / 2, whole.len() - 1] {
        let path = temp.write("cut.gguf", &whole[..n]);
        contains(&refused(&["generate", "--model", &path, "--prompt", "x"]), &["cut.gguf"]);
        contains(&refused(&["inspect", &path]), &["cut.gguf"]);
    }
    let path = temp.write("pytorch_model.bin", "x");
    contains(&refused(&["generate", "--model", &path, "--prompt", "x"]), &["pytorch_model.bin", "safetensors"]);
}

#[test]
fn a_spoilt_template_is_named() {
    let (temp, model) = (Temp::new(), model());
    for text in [
        "{% for m in messages %}",
        "{{ messages[0",
        "{% endfor %}",
        "{{ raise_exception('not\nthis way') }}",
        "{{ 1 / 0 }}",
    ] {
        let template = temp.write("t.jinja", text);
        refused(&["generate", "--model", &model, "--prompt", "x", "--chat-template", &template]);
    }
    let missing = temp.arg("none.jinja");
    contains(&refused(&["generate", "--model", &model, "--prompt", "x", "--chat-template", &missing]), &["none.jinja"]);
    let bare = temp.model();
    std::fs::remove_file(bare.join("chat_template.jinja")).unwrap();
    contains(&generate(&bare), &["--raw", "--chat-template"]);
}

#[test]
fn spoilt_data_is_named_with_its_line() {
    let (temp, model) = (Temp::new(), model());
    let good = r#"{"prompt": "a", "completion": "b"}"#;
    let output = temp.arg("out");
    for (second, parts) in [
        ("{\"prompt\": \"a\"", &[][..]),
        ("[1]", &[]),
        ("{\"prompt\": \"a\"}", &["completion"]),
        ("{\"prompt\": \"a\", \"completion\": 5}", &["completion"]),
        ("{\"prompt\": \"a\", \"completion\": \"\"}", &[]),
    ] {
        let rows = temp.write("bad.jsonl", format!("{good}\n{second}\n"));
        let parts = [&["bad.jsonl:2: "], parts].concat();
        contains(&refused(&["finetune", "--model", &model, "--data", &rows, "--output", &output]), &parts);
        contains(&refused(&["eval", "--model", &model, "--data", &rows]), &parts);
    }
    for (name, bytes) in [("empty.jsonl", &b""[..]), ("blank.jsonl", b"\n\n"), ("latin.jsonl", b"{\"text\": \"\xe9\"}")]
    {
        let rows = temp.write(name, bytes);
        contains(&refused(&["finetune", "--model", &model, "--data", &rows, "--output", &output]), &[name]);
    }
    contains(&refused(&["eval", "--model", &model, "--data", &temp.arg("none.jsonl")]), &["none.jsonl"]);
    let rows = temp.write("good.jsonl", good);
    let short = ["finetune", "--model", &model, "--data", &rows, "--output", &output, "--max-length", "3"];
    contains(&refused(&short), &["--max-length"]);
    assert!(!Path::new(&output).exists(), "nothing is written before step 1");
}

#[test]
fn a_spoilt_adapter_is_named() {
    let (temp, model) = (Temp::new(), model());
    let source = fixture("train/llama-lora/adapter-final");
    let read = |name: &str| std::fs::read(Path::new(&source).join(name)).unwrap();
    let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    let with = |name: &str, config: &[u8], weights: &[u8]| {
        std::fs::create_dir_all(temp.path(name)).unwrap();
        temp.write(&format!("{name}/adapter_config.json"), config);
        temp.write(&format!("{name}/adapter_model.safetensors"), weights);
        temp.arg(name)
    };
    let generate =
        |model: &str, adapter: &str| refused(&["generate", "--model", model, "--adapter", adapter, "--prompt", "x"]);
    ok(&[
        "generate",
        "--model",
        &model,
        "--adapter",
        &with("good", &config, &weights),
        "--prompt",
        "x",
        "--max-new-tokens",
        "2",
    ]);
    for n in [0, 5, 200, weights.len() - 4] {
        contains(&generate(&model, &with("cut", &config, &weights[..n])), &["adapter_model.safetensors"]);
    }
    for text in ["", "{", "[]", "{\"peft_type\": \"IA3\"}"] {
        contains(&generate(&model, &with("config", text.as_bytes(), &weights)), &["adapter_config.json"]);
    }
    let other = fixture("train/base-qwen2");
    contains(&generate(&other, &with("other", &config, &weights)), &["adapter_model.safetensors", "base"]);
    contains(&generate(&model, &temp.arg("none")), &["none"]);
    contains(&generate(&model, &model), &["--model"]);
}
