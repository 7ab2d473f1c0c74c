//! finetune: the plan, run.toml, output rules.

use crate::common::*;
use serde_json::Value;
use std::path::Path;

/// A run of three steps.
fn args<'a>(model: &'a str, rows: &'a str, output: &'a str) -> Vec<&'a str> {
    let fixed = ["--max-steps", "3", "--per-device-train-batch-size", "2", "--threads", "2"];
    [&["finetune", "--model", model, "--data", rows, "--output", output], &fixed[..]].concat()
}

fn log(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("log.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let (temp, model) = (Temp::new(), model());
    let (rows, output) = (temp.rows(5), temp.arg("out"));
    let done = ok(&[&args(&model, &rows, &output)[..], &["--dry-run", "--max-length", "30"]].concat());
    contains(
        &done.out,
        &["rows: 5", "cut", "target tokens: ", "trainable parameters: ", "%", "steps: 3", "peak memory: "],
    );
    contains(&done.err, &["next: ", "--dry-run"]);
    assert!(!Path::new(&output).exists());
}

#[test]
fn a_run_writes_what_others_load() {
    let (temp, model) = (Temp::new(), model());
    let (rows, output) = (temp.rows(5), temp.arg("out"));
    let done = ok(&[&args(&model, &rows, &output)[..], &["--eval-data", &rows, "--eval-steps", "2"]].concat());
    assert_eq!(done.out.lines().count(), 1, "results only: {}", done.out);
    contains(&done.out, &["3 steps", "loss", "eval loss", "out"]);
    contains(&done.err, &["rows: 5", "step 1/3: loss ", "step 3/3", "tokens/s", "eval loss", "next: kinglet eval"]);

    let log = log(Path::new(&output));
    let steps: Vec<&Value> = log.iter().filter(|row| row.get("loss").is_some()).collect();
    assert_eq!(steps.iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(keys(steps[0]), ["step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch"]);
    assert_eq!(log.iter().filter(|row| row.get("eval_loss").is_some()).count(), 2);
    let files = names(Path::new(&output));
    for name in
        ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "checkpoint-3"]
    {
        assert!(files.iter().any(|file| file == name), "{name} is not in {files:?}");
    }

    let from = |adapter: &str| {
        let args =
            ["generate", "--model", &model, "--adapter", adapter, "--prompt", "What is 1?", "--max-new-tokens", "5"];
        ok(&args).out
    };
    assert_eq!(from(&output), from(&temp.arg("out/checkpoint-3")));
    let eval = |more: &[&str]| {
        let done = ok(&[&["eval", "--model", &model, "--data", &rows, "--json"], more].concat());
        json(&done.out)["loss"].as_f64().unwrap()
    };
    let trained = eval(&["--adapter", &output, "--quant", "nf4"]);
    let logged = log.last().unwrap()["eval_loss"].as_f64().unwrap();
    assert!((trained - logged).abs() < 1e-6, "eval {trained}, in the run {logged}");
    assert!(trained < eval(&["--quant", "nf4"]), "training lowers the loss");
}

#[test]
fn run_toml_is_beaten_by_flags_and_its_faults_have_a_line() {
    let (temp, model) = (Temp::new(), model());
    let (rows, output) = (temp.rows(5), temp.arg("out"));
    let head = format!("model = {model:?}\ndata = {rows:?}\noutput = {output:?}\n");
    let good = temp.write("run.toml", format!("{head}lora_r = 4\nmax-steps = 7\ntarget-modules = [\"q_proj\"]\n"));
    let done = ok(&["finetune", &good, "--dry-run", "--max-steps", "2"]);
    contains(&done.out, &["steps: 2 "]);
    let flags = ["--lora-r", "4", "--target-modules", "q_proj", "--max-steps", "2", "--dry-run"];
    assert_eq!(
        ok(&[&["finetune", "--model", &model, "--data", &rows, "--output", &output][..], &flags].concat()).out,
        done.out
    );

    for (line, parts) in [
        ("lora-rank = 4", &["line 4", "lora-rank"][..]),
        ("lora-r = \"four\"", &["line 4", "lora-r"]),
        ("lora-r = ", &["line 4"]),
        ("packing = true\nno_packing = true", &["packing"]),
        ("method = \"dora\"", &["line 4", "dora"]),
    ] {
        let bad = temp.write("bad.toml", format!("{head}{line}\n"));
        contains(&refused(&["finetune", &bad]), &[&["bad.toml"], parts].concat());
    }
    contains(&refused(&["finetune", &temp.arg("none.toml")]), &["none.toml"]);
    assert!(!Path::new(&output).exists());
}

#[test]
fn values_without_sense_are_refused_before_anything_is_read() {
    for (option, value) in
        [("--lora-r", "0"), ("--learning-rate", "nan"), ("--lora-dropout", "1"), ("--warmup-ratio", "2")]
    {
        let args = ["finetune", "--model", "m", "--data", "d", "--output", "o", option, value];
        contains(&refused(&args), &[option]);
    }
}

#[test]
fn an_output_is_never_overwritten_by_accident() {
    let (temp, model) = (Temp::new(), model());
    let (rows, output) = (temp.rows(5), temp.arg("out"));
    let run = args(&model, &rows, &output);
    ok(&run);
    let before = std::fs::read(temp.path("out/adapter_model.safetensors")).unwrap();
    contains(&refused(&run), &["out", "--resume", "--overwrite"]);

    let again = ok(&[&run[..], &["--resume"]].concat());
    contains(&again.out, &["finished", "nothing to do"]);
    ok(&["finetune", "--resume", "--output", &output]);
    assert_eq!(std::fs::read(temp.path("out/adapter_model.safetensors")).unwrap(), before);
    contains(&refused(&["finetune", "--resume", "--output", &output, "--seed", "7"]), &["--seed", "7"]);

    ok(&[&run[..], &["--overwrite", "--seed", "7"]].concat());
    assert_ne!(std::fs::read(temp.path("out/adapter_model.safetensors")).unwrap(), before);

    std::fs::create_dir(temp.path("foreign")).unwrap();
    temp.write("foreign/thesis.txt", "years of work");
    for more in [&[][..], &["--overwrite"], &["--resume"]] {
        let foreign = temp.arg("foreign");
        contains(&refused(&[&args(&model, &rows, &foreign)[..], more].concat()), &["foreign", "thesis.txt"]);
    }
    assert_eq!(names(&temp.path("foreign")), ["thesis.txt"]);
    let file = temp.write("file", "x");
    contains(&refused(&args(&model, &rows, &file)), &["file"]);
}

#[test]
fn resuming_what_never_began_starts_and_says_so() {
    let (temp, model) = (Temp::new(), model());
    let (rows, output) = (temp.rows(5), temp.arg("out"));
    let done = ok(&[&args(&model, &rows, &output)[..], &["--resume"]].concat());
    contains(&done.err, &["step 1"]);
    contains(&refused(&["finetune", "--resume", "--output", &temp.arg("nothing")]), &["--model", "--data"]);
}
