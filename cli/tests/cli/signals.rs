//! What Ctrl-C and SIGTERM leave behind.
#![cfg(unix)]

use crate::common::*;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const SIGINT: i32 = 2;

pub(crate) fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "a minute without {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

#[test]
fn one_ctrl_c_ends_what_only_reads() {
    let (temp, model) = (Temp::new(), model());
    let (rows, prompt) = (temp.rows(100_000), "x".repeat(3000));
    // A prompt that is past the model's positions has no end but this.
    let long = ["generate", "--model", &model, "--prompt", &prompt, "--max-new-tokens", "200000"];
    let many = ["eval", "--model", &model, "--data", &rows, "--metrics", "exact-match"];
    for args in [&many[..], &long] {
        let mut child = spawn(args);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(child.try_wait().unwrap(), None, "{args:?}");
        interrupt(&child);
        wait_until("its end", || child.try_wait().unwrap().is_some());
        let done = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.signal(), Some(SIGINT), "{args:?}: {}: {said}", done.status);
    }
}

/// Interrupts `args` as soon as it writes beside `output`; whether it was in time.
fn interrupt_the_write(temp: &Temp, args: &[&str], output: &str) -> bool {
    let mut child = spawn(args);
    let is_writing = || names(&temp.0).iter().any(|name| name.starts_with(&format!(".{output}.kinglet-tmp-")));
    wait_until("a write or the end", || is_writing() || child.try_wait().unwrap().is_some());
    interrupt(&child);
    let status = child.wait().unwrap();
    let left = names(&temp.0);
    assert!(!left.iter().any(|name| name.contains(".kinglet-")), "{left:?}");
    match status.signal() {
        Some(signal) => assert_eq!(signal, SIGINT),
        None => assert!(status.success(), "it was over before the signal came"),
    }
    status.signal().is_some() && !temp.path(output).exists()
}

#[test]
fn one_ctrl_c_takes_away_what_is_half_written() {
    let (temp, model) = (Temp::new(), model());
    let (rows, adapter) = (temp.rows(4), temp.arg("adapter"));
    ok(&["finetune", "--model", &model, "--data", &rows, "--output", &adapter, "--max-steps", "1", "--method", "lora"]);
    let output = temp.arg("out");
    for args in [
        &["merge", "--model", &model, "--adapter", &adapter, "--output", &output][..],
        &["quantize", "--model", &model, "--quant", "nf4", "--output", &output],
    ] {
        let in_time = (0..100).any(|_| {
            let _ = std::fs::remove_dir_all(&output);
            interrupt_the_write(&temp, args, "out")
        });
        assert!(in_time, "{args:?}: a hundred signals came too late");
    }
}

#[test]
fn a_signal_before_step_1_writes_nothing_and_exits_0() {
    let (temp, model) = (Temp::new(), model());
    let (rows, output) = (temp.rows(20_000), temp.arg("out"));
    let child = spawn(&["finetune", "--model", &model, "--data", &rows, "--output", &output]);
    std::thread::sleep(Duration::from_millis(150));
    assert!(!temp.path("out").exists(), "it still reads the rows");
    terminate(&child);
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, 0, "{}", done.err);
    contains(&done.out, &["stopped before step 1"]);
    assert!(!temp.path("out").exists());
}

/// Steps and evaluations of a log, in its order.
fn rows_of(output: &Path) -> Vec<(u64, Option<f64>)> {
    let text = std::fs::read_to_string(output.join("log.jsonl")).unwrap_or_default();
    text.lines().map(json).map(|row| (row["step"].as_u64().unwrap(), row["eval_loss"].as_f64())).collect()
}

#[test]
fn a_signal_breaks_off_an_evaluation_and_resume_makes_up_for_it() {
    let (temp, model) = (Temp::new(), model());
    let (rows, whole, cut) = (temp.rows(5_000), temp.arg("whole"), temp.arg("cut"));
    let few = temp.write("few.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    let run = ["finetune", "--model", &model, "--data", &few, "--eval-data", &rows, "--eval-steps", "1"];
    let run = [&run[..], &["--max-steps", "2", "--save-steps", "0", "--output"]].concat();
    ok(&[&run[..], &[&whole]].concat());

    let child = spawn(&[&run[..], &[&cut]].concat());
    wait_until("a step", || rows_of_started(&temp.path("cut")));
    terminate(&child);
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, 0, "{}", done.err);
    contains(&done.out, &["stopped after step 1"]);
    assert_eq!(rows_of(&temp.path("cut")), [(1, None)], "the evaluation was broken off");
    ok(&["finetune", "--resume", "--output", &cut]);
    assert_eq!(rows_of(&temp.path("cut")), rows_of(&temp.path("whole")));
    assert_eq!(rows_of(&temp.path("cut")).len(), 4);
}

fn rows_of_started(output: &Path) -> bool {
    std::fs::read_to_string(output.join("log.jsonl")).is_ok_and(|text| text.contains('\n'))
}

/// A limit on the size of a file, as a full disk that can be had without being root.
#[test]
fn a_save_that_does_not_fit_leaves_the_checkpoint_before_it() {
    let (temp, model) = (Temp::new(), model());
    let (rows, output) = (temp.rows(20), temp.arg("out"));
    let run = ["finetune", "--model", &model, "--data", &rows, "--output", &output, "--save-steps", "1"];
    let child = spawn(&[&run[..], &["--max-steps", "2000"]].concat());
    wait_until("a checkpoint", || temp.path("out/checkpoint-1").exists());
    terminate(&child);
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, 0, "{}", done.err);
    let before = names(&temp.path("out"));
    let made = before.iter().filter(|name| name.starts_with("checkpoint-")).count();

    // In units of 512 or 1024 bytes: the adapter fits, the state does not.
    let limited = format!("trap '' XFSZ; ulimit -f 200; exec {} finetune --resume --output {output}", binary());
    let done: Done = Command::new("sh").args(["-c", &limited]).output().unwrap().into();
    assert_eq!(done.code, 2, "{}", done.err);
    let line = done.err.lines().last().unwrap();
    contains(line, &["kinglet: ", "kinglet_state.safetensors", "cannot write", "too large"]);
    assert_eq!(names(&temp.path("out")), before, "nothing is left of the save");
    let step = json(&ok(&["inspect", &temp.arg(&format!("out/checkpoint-{made}")), "--json"]).out);
    assert_eq!((&step["whole"], &step["state"]["step"]), (&true.into(), &(made as u64).into()));
}
