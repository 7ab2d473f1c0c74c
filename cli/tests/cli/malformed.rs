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
    let bare = fixture("models/gguf-llama/model.gguf");
    let line = refused(&["generate", "--model", &bare, "--prompt", "x"]);
    contains(&line, &["model.gguf: ", "no tokenizer", "tokenizer.ggml.model"]);
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
        ("{\"text\": \"a\"}", &["format changes here", "`text`", "line 1 has `prompt`"]),
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
    let missing = refused(&["eval", "--model", &model, "--data", &temp.arg("none.jsonl")]);
    contains(&missing, &["none.jsonl: cannot read the rows: "]);
    contains(&refused(&["eval", "--model", &model, "--data", &model]), &["cannot read the rows: ", "directory"]);
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

#[test]
fn what_is_stored_beyond_the_configuration_is_a_warning_for_a_model_and_an_error_for_an_adapter() {
    let temp = Temp::new();
    let (whole, rows, adapter) = (model(), temp.rows(4), temp.arg("adapter"));
    let run = ["finetune", "--model", &whole, "--data", &rows, "--output", &adapter];
    ok(&[&run[..], &["--max-steps", "1", "--method", "lora"]].concat());

    let short = temp.model();
    let config = std::fs::read_to_string(short.join("config.json")).unwrap();
    let fewer = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert_ne!(fewer, config);
    std::fs::write(short.join("config.json"), fewer).unwrap();
    let short = short.display().to_string();
    let generate = ["generate", "--model", &short, "--prompt", "x", "--max-new-tokens", "1"];
    let said = ok(&generate).err;
    contains(&said, &["warning: ", "stored tensors", "not used", "model.layers.1.input_layernorm.weight"]);
    for command in [
        &["eval", "--model", &short, "--data", &rows][..],
        &["quantize", "--model", &short, "--quant", "nf4", "--output", &temp.arg("nf4")],
        &["finetune", "--model", &short, "--data", &rows, "--output", &temp.arg("out"), "--max-steps", "1"],
    ] {
        contains(&ok(command).err, &["warning: ", "model.layers.1.input_layernorm.weight"]);
    }
    let line = refused(&[&generate[..], &["--adapter", &adapter]].concat());
    contains(&line, &["adapter_model.safetensors", "model.layers.1.", "base"]);

    for complete in [&whole, &temp.arg("nf4"), &fixture("train/base-qwen2")] {
        let said = ok(&["generate", "--model", complete, "--prompt", "x", "--max-new-tokens", "1"]).err;
        assert!(!said.contains("not used"), "{said}");
    }
}

#[test]
fn inspect_says_what_a_foreign_file_is_and_what_to_give() {
    let temp = Temp::new();
    let rows = temp.rows(1);
    contains(&refused(&["inspect", &rows]), &["rows.jsonl", "Hugging Face folder or a .gguf file"]);
    contains(&refused(&["inspect", &format!("{}/tokenizer.json", model())]), &["tokenizer.json", "give its folder"]);
    contains(&refused(&["inspect", &temp.write("pytorch_model.bin", "x")]), &["pytorch_model.bin", "safetensors"]);
    let other = temp.model();
    std::fs::write(other.join("config.json"), "{\"model_type\": \"mamba\"}").unwrap();
    let done = ok(&["inspect", &other.display().to_string()]);
    contains(&done.out, &["supported: ", "mamba"]);
    assert!(!done.err.contains("generate"), "what cannot run is not suggested: {}", done.err);
}

#[test]
fn training_what_is_quantised_or_diverges_says_what_to_do() {
    let temp = Temp::new();
    let (model, rows, base, output) = (model(), temp.rows(4), temp.arg("nf4"), temp.arg("out"));
    ok(&["quantize", "--model", &model, "--quant", "nf4", "--output", &base]);
    let run = ["finetune", "--data", &rows, "--output", &output];
    let line = refused(&[&run[..], &["--model", &base, "--method", "full"]].concat());
    contains(&line, &["q_proj", "quantised", "--method lora or qlora", "--modules-to-save"]);
    let done =
        crate::common::run(&[&run[..], &["--model", &model, "--learning-rate", "1e38", "--max-steps", "3"]].concat());
    let last = done.err.lines().last().unwrap();
    assert_eq!(done.code, 2, "{}", done.err);
    contains(last, &["step 2", "data lines", "not finite", "try a lower --learning-rate"]);
}

#[test]
fn a_run_without_its_settings_is_not_resumed() {
    let temp = Temp::new();
    let (model, rows, output) = (model(), temp.rows(4), temp.arg("out"));
    let run = ["finetune", "--model", &model, "--data", &rows, "--output", &output, "--max-steps", "2"];
    ok(&run);
    let file = temp.path("out/kinglet_settings.json");
    let whole = std::fs::read_to_string(&file).unwrap();
    let resume = ["finetune", "--resume", "--output", &output];
    for spoilt in ["", "{", "[]", &whole[..whole.len() / 2], &whole.replace("lora-r", "lora-rank")] {
        std::fs::write(&file, spoilt).unwrap();
        contains(&refused(&resume), &["kinglet_settings.json", "restore", "--overwrite"]);
    }
    std::fs::remove_file(&file).unwrap();
    let long = [&run[..], &["--resume"]].concat();
    for command in [&resume[..], &run, &long] {
        contains(&refused(command), &["out", "without its kinglet_settings.json", "restore"]);
    }
}
