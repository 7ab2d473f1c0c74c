//! generate and eval.

use crate::common::*;
use std::io::Write;
use std::process::Stdio;

fn generate(more: &[&str]) -> Done {
    let model = model();
    ok(&[&["generate", "--model", &model, "--max-new-tokens", "6"], more].concat())
}

#[test]
fn a_prompt_comes_as_an_option_as_messages_or_on_stdin() {
    let temp = Temp::new();
    let plain = generate(&["--prompt", "What is 1?"]);
    let text = &plain.out;
    assert!(text.ends_with('\n') && text.len() > 1);
    contains(&plain.err, &["next: kinglet eval"]);

    let list = r#"[{"role": "user", "content": "What is 1?"}]"#;
    assert_eq!(&generate(&["--messages", &temp.write("list.json", list)]).out, text);
    let object = temp.write("object.json", format!("{{\"messages\": {list}}}"));
    assert_eq!(&generate(&["--messages", &object]).out, text);

    let mut child = command(&["generate", "--model", &model(), "--max-new-tokens", "6", "--prompt", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"What is 1?").unwrap();
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!((done.code, &done.out), (0, text), "{}", done.err);
}

#[test]
fn options_without_an_effect_are_not_dropped_in_silence() {
    let (temp, model) = (Temp::new(), model());
    let refuse = |more: &[&str]| refused(&[&["generate", "--model", &model], more].concat());
    // Standard input is empty.
    contains(&refuse(&["--prompt", "-"]), &["--prompt -", "empty"]);
    contains(&refuse(&["--prompt", "x", "--no-double-quant"]), &["--no-double-quant", "--quant"]);
    contains(&refuse(&["--prompt", "x", "--quant", "none", "--no-double-quant"]), &["--no-double-quant"]);
    let template = temp.write("t.jinja", "x");
    contains(&refuse(&["--prompt", "x", "--raw", "--chat-template", &template]), &["--raw", "--chat-template"]);
    contains(&generate(&["--prompt", "x", "--top-k", "5"]).err, &["warning: ", "--top-k", "--temperature 0"]);
    assert!(!generate(&["--prompt", "x", "--top-k", "5", "--temperature", "1"]).err.contains("warning"));
    // A prompt past the model's positions, whose text has no end but this.
    let long = "x".repeat(3000);
    let line = refuse(&["--prompt", &long, "--max-new-tokens", "1000000000000"]);
    contains(&line, &["KV cache for 1", "out of memory", "--max-new-tokens"]);
}

#[test]
fn a_system_message_and_raw_change_the_prompt() {
    let temp = Temp::new();
    let count = |more: &[&str]| json(&generate(&[more, &["--json"]].concat()).out)["prompt_tokens"].as_u64().unwrap();
    let plain = count(&["--prompt", "What is 1?"]);
    assert!(count(&["--prompt", "What is 1?", "--system", "Be brief."]) > plain);
    assert!(count(&["--prompt", "What is 1?", "--raw"]) < plain);
    let both = r#"[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1?"}]"#;
    let both = temp.write("both.json", both);
    assert_eq!(count(&["--messages", &both]), count(&["--prompt", "What is 1?", "--system", "Be brief."]));

    let model = model();
    let refuse = |more: &[&str]| refused(&[&["generate", "--model", &model], more].concat());
    contains(&refuse(&["--messages", &both, "--system", "x"]), &["--system"]);
    contains(&refuse(&["--prompt", "x", "--raw", "--system", "x"]), &["--system", "--raw"]);
    contains(&refuse(&["--messages", &both, "--raw"]), &["--messages", "--raw"]);
    for (name, text) in [("empty", "[]"), ("text", "\"x\""), ("torn", "[{"), ("role", "[{\"content\": 1}]")] {
        contains(&refuse(&["--messages", &temp.write(name, text)]), &[name]);
    }
    contains(&refuse(&["--messages", &temp.arg("missing.json")]), &["missing.json"]);
}

#[test]
fn json_has_the_text_and_why_it_ended() {
    let plain = generate(&["--prompt", "What is 1?"]).out;
    let done = generate(&["--prompt", "What is 1?", "--json"]);
    assert_eq!(done.out.lines().count(), 1);
    let value = json(&done.out);
    assert_eq!(keys(&value), ["text", "tokens", "finish_reason", "prompt_tokens", "seconds"]);
    assert_eq!(value["text"].as_str().unwrap(), plain.strip_suffix('\n').unwrap());
    let tokens = value["tokens"].as_array().unwrap().len();
    match value["finish_reason"].as_str().unwrap() {
        "length" => assert_eq!(tokens, 6),
        "stop" => assert!(tokens < 6),
        other => panic!("finish_reason {other}"),
    }
}

#[test]
fn a_seed_gives_the_same_text_again() {
    let hot =
        |seed: &str| generate(&["--prompt", "What is 1?", "--temperature", "2", "--top-k", "50", "--seed", seed]).out;
    assert_eq!(hot("1"), hot("1"));
    assert_ne!(hot("1"), hot("2"));
    let model = model();
    let args = ["generate", "--model", &model, "--prompt", "x", "--temperature=-1"];
    contains(&refused(&args), &["temperature"]);
}

#[test]
fn eval_prints_what_was_asked() {
    let (temp, model) = (Temp::new(), model());
    let rows = temp.rows(6);
    let eval = |more: &[&str]| {
        let done =
            ok(&[&["eval", "--model", &model, "--data", &rows, "--json", "--max-new-tokens", "4"], more].concat());
        assert_eq!(done.out.lines().count(), 1);
        json(&done.out)
    };
    let default = eval(&[]);
    assert_eq!(keys(&default), ["loss", "perplexity", "rows", "tokens"]);
    assert_eq!(default["rows"], 6);
    let (loss, perplexity) = (default["loss"].as_f64().unwrap(), default["perplexity"].as_f64().unwrap());
    assert!((loss.exp() / perplexity - 1.0).abs() < 1e-9, "{default}");
    assert_eq!(keys(&eval(&["--metrics", "loss"])), ["loss", "rows", "tokens"]);
    let exact = eval(&["--metrics", "exact-match"]);
    assert_eq!(keys(&exact), ["exact_match", "rows", "tokens"]);
    assert!((0.0..=1.0).contains(&exact["exact_match"].as_f64().unwrap()));
    assert_eq!(eval(&["--batch-size", "1"]), default);
    assert_eq!(eval(&["--batch-size", "5", "--threads", "1"]), default);
    assert_ne!(eval(&["--quant", "nf4"])["loss"], default["loss"]);

    let text = ok(&["eval", "--model", &model, "--data", &rows]).out;
    contains(&text, &["loss: ", "perplexity: ", "rows: 6", "tokens: "]);
    contains(&refused(&["eval", "--model", &model, "--data", &rows, "--metrics", "bleu"]), &["bleu"]);
    contains(&refused(&["eval", "--model", &model, "--data", &rows, "--batch-size", "0"]), &["--batch-size"]);
}

#[test]
fn answers_that_are_right_count() {
    let (temp, model) = (Temp::new(), model());
    let answer = |i| {
        let prompt = format!("What is {i}?");
        let done = ok(&["generate", "--model", &model, "--prompt", &prompt, "--max-new-tokens", "3", "--json"]);
        json(&done.out)["text"].as_str().unwrap().to_string()
    };
    let row = |i: i32, answer: String| serde_json::json!({"prompt": format!("What is {i}?"), "completion": answer});
    let rows = [row(1, format!(" {} ", answer(1))), row(2, answer(2)), row(3, "no such answer".into())];
    let rows = temp.write("rows.jsonl", rows.map(|r| r.to_string() + "\n").concat());
    let args =
        ["eval", "--model", &model, "--data", &rows, "--metrics", "exact-match", "--max-new-tokens", "3", "--json"];
    assert_eq!(json(&ok(&args).out)["exact_match"].as_f64().unwrap(), 2.0 / 3.0);
}

#[test]
fn everything_runs_in_bf16() {
    let (temp, model) = (Temp::new(), model());
    let (rows, output) = (temp.rows(6), temp.arg("out"));
    let loss = |dtype: &str| {
        let done = ok(&["eval", "--model", &model, "--data", &rows, "--json", "--metrics", "loss", "--dtype", dtype]);
        json(&done.out)["loss"].as_f64().unwrap()
    };
    let (half, full) = (loss("bf16"), loss("f32"));
    assert!(half != full && (half / full - 1.0).abs() < 0.01, "{half}, {full}");
    ok(&["finetune", "--model", &model, "--data", &rows, "--output", &output, "--dtype", "bf16", "--max-steps", "2"]);
    ok(&[
        "generate",
        "--model",
        &model,
        "--adapter",
        &output,
        "--dtype",
        "bf16",
        "--prompt",
        "x",
        "--max-new-tokens",
        "3",
    ]);
}
