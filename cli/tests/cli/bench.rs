//! `kinglet bench` on small shapes, alone and beside a stand-in for PyTorch.
#![cfg(unix)]

use crate::common::*;
use crate::signals::{interrupt, wait_until};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

const ABOUT: &str = r#"*'"about"'*) echo '{"versions": {"torch": "2.0"}, "tuned_error": 1e-7}' ;;"#;

/// A program in the place of Python, which answers lines by the cases of a shell; and a folder with a worker.
fn python(temp: &Temp, cases: &str) -> (String, String) {
    let scripts = temp.path("scripts");
    std::fs::create_dir_all(&scripts).unwrap();
    std::fs::write(scripts.join("worker.py"), "").unwrap();
    let program =
        temp.write("python", format!("#!/bin/sh\nwhile read -r line; do case $line in {ABOUT} {cases} esac; done\n"));
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    (program, scripts.display().to_string())
}

#[test]
fn operations_are_measured_alone_and_saved() {
    let temp = Temp::new();
    let output = temp.arg("tables/new");
    let done = ok(&["bench", "op", "gemm", "rms-norm", "--quick", "--no-peers", "--threads", "1", "--output", &output]);
    contains(&done.out, &["| gemm 64x64x64 bf16 tt ", "GFLOP/s", "GB/s", "- cpu: ", "- peak: f32_gflops "]);
    assert_eq!(names(&temp.path("tables/new")), ["op.json", "op.md"]);
    let text = |name| std::fs::read_to_string(temp.path("tables/new").join(name)).unwrap();
    assert_eq!(text("op.md").trim_end(), done.out.trim_end());
    let saved = json(&text("op.json"));
    let mut parts = keys(&saved);
    parts.sort_unstable();
    assert_eq!(parts, ["about", "bench", "date", "notes", "rows"]);
    let rows = saved["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2 + 4 + 2);
    for row in rows {
        assert!(row["kinglet"]["median"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["kinglet"]["all"].as_array().unwrap().len(), 2, "{row}");
        assert_eq!(row["peers"], serde_json::json!({}));
    }
    assert_eq!(saved["about"]["threads"], 1);
    assert!(saved["about"]["peak"]["f32_gflops"].as_f64().unwrap() > 0.0);
}

#[test]
fn every_operation_runs_on_small_shapes() {
    let done = ok(&["bench", "op", "--quick", "--no-peers", "--rounds", "1", "--json"]);
    let report = json(&done.out);
    let jobs: Vec<&str> = report["rows"].as_array().unwrap().iter().map(|row| row["job"].as_str().unwrap()).collect();
    for op in [
        "gemm",
        "attention",
        "nf4-dequantize",
        "nf4-gemm",
        "nf4-linear",
        "nf4-quantize",
        "adamw",
        "cross-entropy",
        "rms-norm",
        "swiglu",
        "rope",
    ] {
        assert!(jobs.iter().any(|job| job.starts_with(&format!("{op} "))), "{op}: {jobs:?}");
    }
}

#[test]
fn a_shape_and_a_dtype_can_be_given() {
    let args = ["bench", "op", "gemm", "--shape", "16x8x24", "--dtype", "f32", "--quick", "--no-peers", "--json"];
    let report = json(&ok(&args).out);
    assert_eq!(report["rows"][0]["job"], "gemm 16x8x24 f32 nn");
    assert_eq!(report["rows"].as_array().unwrap().len(), 2);
    contains(&refused(&["bench", "op", "gemm", "--shape", "16x8"]), &["--shape has 2 sizes", "gemm needs 3"]);
    contains(&refused(&["bench", "op", "gemm", "--shape", "0x1x1"]), &["64x64x64"]);
    contains(&refused(&["bench", "op", "--shape", "1x1x1"]), &["<OP>"]);
    contains(&refused(&["bench", "op", "adamw", "--dtype", "bf16"]), &["--dtype"]);
    contains(&refused(&["bench", "op", "gem"]), &["gem", "gemm"]);
}

#[test]
fn what_is_missing_is_said() {
    // The tests run where there is no .venv and no benches/pytorch.
    let done = ok(&["bench", "op", "gemm", "--quick", "--dtype", "f32", "--json"]);
    let reason = "PyTorch is skipped: .venv/bin/python: is not there: scripts/setup-pytorch makes it";
    contains(&done.err, &[reason]);
    contains(json(&done.out)["notes"][0].as_str().unwrap(), &[reason]);
    contains(&refused(&["bench", "op", "--python", "no/python"]), &["--python", "no/python", "scripts/setup-pytorch"]);
    contains(&refused(&["bench", "op", "--python", "/bin/sh"]), &["benches/pytorch/worker.py", "--scripts"]);
    contains(&refused(&["bench", "step"]), &["--model", "--random-shape"]);
    contains(&refused(&["bench", "step", "--model", "no/such"]), &["--model no/such", "is not there"]);
    contains(&refused(&["bench", "decode", "--model", "no/such"]), &["--model no/such", "is not there"]);
    contains(&refused(&["bench", "decode"]), &["--model"]);
    contains(&refused(&["bench", "step", "--random-shape", "8b"]), &["8b", "7b"]);
    contains(&refused(&["bench", "step", "--model", &model(), "--sweep", "depth"]), &["length, width or threads"]);
}

#[test]
fn a_peer_is_measured_in_turns_and_skipped_where_it_fails() {
    let temp = Temp::new();
    let cases = r#"*'"tuned"'*) echo '{"error": "RuntimeError: no such kernel"}' ;;
        *nf4*) echo '{"missing": "bitsandbytes"}' ;;
        *) echo "$line" >> "$0.log"; echo '{"seconds": 0.001}' ;;"#;
    let (program, scripts) = python(&temp, cases);
    let args = [
        "bench",
        "op",
        "gemm",
        "nf4-linear",
        "--shape",
        "8x8x8",
        "--quick",
        "--python",
        &program,
        "--scripts",
        &scripts,
    ];
    contains(&refused(&args), &["nf4-linear needs 2"]);
    let args = ["bench", "op", "gemm", "nf4-linear", "--quick", "--json", "--python", &program, "--scripts", &scripts];
    let done = ok(&args);
    let report = json(&done.out);
    // 64³ multiply-adds in a millisecond.
    assert_eq!(report["rows"][0]["peers"]["PyTorch"]["all"], serde_json::json!([0.52429, 0.52429]));
    assert_eq!(keys(&report["rows"][0]["peers"]), ["PyTorch"]);
    assert_eq!(report["about"]["versions"]["torch"], "2.0");
    contains(&done.err, &["PyTorch tuned is skipped for gemm 64x64x64 f32 nn: PyTorch: RuntimeError: no such kernel"]);
    contains(&done.err, &["PyTorch is skipped for nf4-linear 128x64 bf16: it has no module bitsandbytes"]);
    contains(&report["notes"].to_string(), &["true f32"]);
    let asked = std::fs::read_to_string(temp.path("python.log")).unwrap();
    let first = json(asked.lines().next().unwrap());
    assert_eq!((&first["op"], &first["shape"]), (&"gemm".into(), &serde_json::json!([64, 64, 64])));
    assert_eq!(asked.lines().count(), 6 * 2, "two rounds of six products");
}

#[test]
fn a_peer_that_dies_says_why() {
    let temp = Temp::new();
    let (program, scripts) = python(&temp, "*) echo 'ImportError: libtorch' >&2; exit 3 ;;");
    let args = ["bench", "op", "swiglu", "--quick", "--json", "--python", &program, "--scripts", &scripts];
    let done = ok(&args);
    contains(&done.err, &["PyTorch is skipped for swiglu", "exit status: 3", "ImportError: libtorch"]);
    assert_eq!(json(&done.out)["rows"][0]["peers"], serde_json::json!({}));
}

#[test]
fn steps_of_a_small_model_are_measured() {
    let step = ["bench", "step", "--no-peers", "--rounds", "2", "--steps", "1", "--threads", "1", "--length", "16"];
    let base = model();
    let args = [&step[..], &["--model", &base, "--method", "full,lora,qlora", "--batch", "2", "--json"]].concat();
    let report = json(&ok(&args).out);
    let rows = report["rows"].as_array().unwrap();
    let units = ["tokens/s", "MiB peak", "s to step 1"];
    assert_eq!(rows.len(), 3 * units.len());
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row["unit"], units[i % 3]);
        assert!(row["kinglet"]["min"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["kinglet"]["all"].as_array().unwrap().len(), 2);
    }
    contains(rows[6]["job"].as_str().unwrap(), &["base-llama QLoRA f32, 2 x 16, 1 threads"]);
}

#[test]
fn random_weights_have_the_shape_of_a_configuration() {
    let temp = Temp::new();
    let config = temp.write(
        "tiny.json",
        r#"{"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "tie_word_embeddings": false}"#,
    );
    let step = ["bench", "step", "--config", &config, "--no-peers", "--rounds", "1", "--steps", "1", "--threads", "1"];
    let args = [&step[..], &["--method", "qlora", "--dtype", "bf16", "--gradient-checkpointing"]].concat();
    let done = ok(&[&args[..], &["--sweep", "length=8,16"]].concat());
    contains(&done.out, &["tiny.json QLoRA bf16 checkpointing, 1 x 8, 1 threads", "1 x 16, 1 threads", "tokens/s"]);
    assert!(!done.out.contains("s to step 1"), "the time to invent weights is nobody's: {}", done.out);
    let traced = ok(&[&args[..], &["--length", "8", "--trace"]].concat());
    contains(&traced.out, &["kernel", "linear", "adamw", "between kernels", "step"]);
}

#[test]
fn decoding_is_measured() {
    let args =
        ["bench", "decode", "--model", &model(), "--quant", "none,nf4", "--dtype", "f32", "--prompt-tokens", "16"];
    let done = ok(&[&args[..], &["--new-tokens", "4", "--rounds", "1", "--no-peers", "--json"]].concat());
    let report = json(&done.out);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2 * 4);
    assert_eq!(rows[4]["job"], "base-llama NF4 f32, 16 + 4 tokens");
    assert_eq!(rows[5]["unit"], "decode tokens/s");
    assert!(rows.iter().all(|row| row["kinglet"]["median"].as_f64().unwrap() > 0.0), "{rows:?}");
}

#[test]
fn one_ctrl_c_ends_what_was_started() {
    let temp = Temp::new();
    let (program, scripts) = python(&temp, r#"*) echo $$ > "$0.pid"; exec sleep 1000 ;;"#);
    let mut child = spawn(&["bench", "op", "gemm", "--quick", "--python", &program, "--scripts", &scripts]);
    let file = temp.path("python.pid");
    let pid = || std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n'));
    wait_until("a job of the peer", || pid().is_some() || child.try_wait().unwrap().is_some());
    interrupt(&child);
    wait_until("its end", || child.try_wait().unwrap().is_some());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.signal(), Some(2), "{}", String::from_utf8_lossy(&done.stderr));
    let pid = pid().unwrap();
    assert!(!Command::new("kill").args(["-0", pid.trim()]).output().unwrap().status.success(), "the peer still runs");
}
