//! merge, quantize and inspect.

use crate::common::*;
use std::path::Path;

/// A small trained adapter of the fixture model.
fn adapter(temp: &Temp) -> String {
    let (rows, output) = (temp.rows(5), temp.arg("adapter"));
    let args = ["finetune", "--model", &model(), "--data", &rows, "--output", &output, "--max-steps", "3"];
    ok(&[&args[..], &["--method", "lora", "--learning-rate", "0.01"]].concat());
    output
}

fn loss(temp: &Temp, more: &[&str]) -> f64 {
    let rows = temp.rows(5);
    json(&ok(&[&["eval", "--data", &rows, "--json"], more].concat()).out)["loss"].as_f64().unwrap()
}

#[test]
fn a_merged_model_is_base_and_adapter() {
    let (temp, model) = (Temp::new(), model());
    let (adapter, output) = (adapter(&temp), temp.arg("merged"));
    let merge = ["merge", "--model", &model, "--adapter", &adapter, "--output", &output];
    let done = ok(&[&merge[..], &["--dtype", "f32"]].concat());
    let gap: f64 = done.out.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(done.out.starts_with("largest logit gap") && gap < 1e-4, "{}", done.out);
    let merged = loss(&temp, &["--model", &output]);
    assert!((merged - loss(&temp, &["--model", &model, "--adapter", &adapter])).abs() < 1e-5);
    assert!((merged - loss(&temp, &["--model", &model])).abs() > 1e-3, "the adapter does something");
    assert_eq!(json(&ok(&["inspect", &output, "--json"]).out)["config"]["tie_word_embeddings"], true);

    contains(&refused(&merge), &["merged", "--overwrite"]);
    ok(&[&merge[..], &["--overwrite"]].concat());
    let weights = json(&ok(&["inspect", &output, "--json"]).out);
    assert_eq!(keys(&weights["tensors"]["by_dtype"]), ["BF16"], "as stored, this time");
    contains(&refused(&["merge", "--model", &model, "--adapter", &adapter, "--output", &adapter]), &["adapter"]);
    contains(&refused(&["merge", "--model", &model, "--adapter", &model, "--output", &temp.arg("x")]), &["--model"]);
    assert!(!temp.path("x").exists());
}

#[test]
fn a_quantised_folder_computes_as_quant_does() {
    let (temp, model) = (Temp::new(), model());
    for (kind, more) in [("nf4", &[][..]), ("fp4", &["--no-double-quant"])] {
        let output = temp.arg(kind);
        let done = ok(&[&["quantize", "--model", &model, "--quant", kind, "--output", &output][..], more].concat());
        contains(&done.out, &["before", "after"]);
        let loaded = loss(&temp, &["--model", &output]);
        let quantised = loss(&temp, &[&["--model", &model, "--quant", kind][..], more].concat());
        assert_eq!(loaded, quantised, "{kind}");
        let config = &json(&ok(&["inspect", &output, "--json"]).out)["config"]["quantization_config"];
        assert_eq!((&config["quant_method"], &config["load_in_4bit"]), (&"bitsandbytes".into(), &true.into()));
        assert_eq!(config["bnb_4bit_quant_type"], kind);
        assert_eq!(config["bnb_4bit_use_double_quant"], more.is_empty());
    }
    let (base, output, adapter) = (temp.arg("nf4"), temp.arg("merged"), adapter(&temp));
    contains(&refused(&["quantize", "--model", &base, "--quant", "nf4", "--output", &output]), &["4 bits already"]);
    let merge = ["merge", "--model", &base, "--adapter", &adapter, "--output", &output];
    contains(&refused(&merge), &["--dequantize"]);
    assert!(!Path::new(&output).exists());
    ok(&[&merge[..], &["--dequantize"]].concat());
}

#[test]
fn inspect_says_what_is_there() {
    let (temp, base) = (Temp::new(), model());
    let inspect = |path: &str| {
        let done = ok(&["inspect", path, "--json"]);
        assert_eq!(done.out.lines().count(), 1);
        json(&done.out)
    };
    let model = inspect(&base);
    assert_eq!((&model["kind"], &model["config"]["vocab_size"]), (&"model".into(), &307.into()));
    assert_eq!(model["tensors"]["bytes"], 2 * model["tensors"]["elements"].as_u64().unwrap());
    assert_eq!(model["supported"], true);
    let weights = inspect(&format!("{base}/model.safetensors"));
    assert_eq!((&weights["kind"], &weights["tensors"]), (&"weights".into(), &model["tensors"]));
    let gguf = inspect(&fixture("models/gguf-llama/model.gguf"));
    assert_eq!((&gguf["kind"], &gguf["metadata"]["general.architecture"]), (&"model".into(), &"llama".into()));
    assert!(gguf["tensors"]["by_dtype"].as_object().unwrap().len() > 1);

    let output = adapter(&temp);
    let run = inspect(&output);
    assert_eq!((&run["kind"], &run["finished"], &run["adapter"]["r"]), (&"run".into(), &true.into(), &16.into()));
    assert_eq!(run["checkpoints"].as_array().unwrap().len(), 1);
    let checkpoint = inspect(&format!("{output}/checkpoint-3"));
    assert_eq!((&checkpoint["kind"], &checkpoint["state"]["step"]), (&"checkpoint".into(), &3.into()));
    assert_eq!(checkpoint["whole"], true);
    std::fs::write(format!("{output}/checkpoint-3/tokenizer.json"), "x").unwrap();
    assert_ne!(inspect(&format!("{output}/checkpoint-3"))["whole"], true);

    contains(&ok(&["inspect", &base]).out, &["kind: model", "vocab_size: 307", "by_dtype:", "KiB"]);
    std::fs::create_dir(temp.path("empty")).unwrap();
    contains(&refused(&["inspect", &temp.arg("empty")]), &["empty", "config.json"]);
}
