//! Resuming: a run that is killed again and again, and goes on with another number of threads each time, ends with
//! the bytes of one that nobody disturbed. And what the signals that ask a run to stop do.
#![cfg(unix)]

use crate::common::*;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

const STEPS: usize = 64;

/// When a run is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after its start: while it loads the model or restores a checkpoint.
    Start(Duration),
    /// So long after it has made so many steps.
    Steps(usize, Duration),
    /// While it writes a checkpoint.
    Save,
}

const MOMENTS: [Moment; 7] = [
    Moment::Steps(1, Duration::from_micros(300)),
    Moment::Start(Duration::from_millis(3)),
    Moment::Save,
    Moment::Steps(2, Duration::from_micros(2100)),
    Moment::Start(Duration::from_millis(41)),
    Moment::Save,
    Moment::Steps(3, Duration::from_micros(7300)),
];

/// A new run with everything that a resume could get wrong: shuffle, dropout, accumulation, packing, warm-up, decay
/// and many epochs. It saves every other step, so that a kill can lose a step and leave its row in the log.
fn run_args(temp: &Temp, method: &str, output: &str) -> Vec<String> {
    let fixed = ["finetune", "--model", &model(), "--data", &temp.rows(40), "--output", output].map(String::from);
    let adapter = if method == "full" { "" } else { "--lora-r 4 --lora-dropout 0.1" };
    let options = format!(
        "--method {method} {adapter} --packing --max-length 64 --per-device-train-batch-size 2 \
         --gradient-accumulation-steps 2 --warmup-steps 5 --weight-decay 0.01 --learning-rate 0.002 \
         --max-steps {STEPS} --save-steps 2 --save-total-limit 2 --threads 2"
    );
    fixed.into_iter().chain(options.split_whitespace().map(String::from)).collect()
}

fn resume_args<'a>(output: &'a str, threads: &'a str) -> [&'a str; 6] {
    ["finetune", "--resume", "--output", output, "--threads", threads]
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// The log's text without the one field that depends on the clock.
fn timeless(output: &Path) -> String {
    let without = |line: &str| {
        let (head, tail) = line.split_once("\"tokens_per_second\":").unwrap();
        let (_, tail) = tail.split_once(',').unwrap();
        format!("{head}{tail}\n")
    };
    std::fs::read_to_string(output.join("log.jsonl")).unwrap().lines().map(without).collect()
}

/// Steps in the log.
fn steps(output: &Path) -> usize {
    std::fs::read_to_string(output.join("log.jsonl")).unwrap_or_default().matches('\n').count()
}

/// Whether there is a checkpoint that process `id` has begun and not finished.
fn is_saving(output: &Path, id: u32) -> bool {
    let own = format!(".kinglet-tmp-{id}-");
    output.is_dir() && names(output).iter().any(|name| name.starts_with(".checkpoint-") && name.contains(&own))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "a minute without {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Lets a run go on until the moment and kills it; whether it was hit in the middle of a save.
fn kill_at(mut child: Child, moment: Moment, output: &Path) -> bool {
    // Not fewer than the steps that are not lost, so that what comes beyond them is new.
    let before = steps(output);
    match moment {
        Moment::Start(delay) => std::thread::sleep(delay),
        Moment::Steps(n, delay) => {
            wait_until("a step", || steps(output) >= before + n);
            std::thread::sleep(delay);
        }
        Moment::Save => wait_until("a save", || is_saving(output, child.id())),
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "{moment:?}: the run was over before it could be killed");
    is_saving(output, child.id())
}

fn survives_kills(method: &str, weights: &str) {
    let temp = Temp::new();
    let (whole, cut) = (temp.arg("whole"), temp.arg("cut"));
    ok(&borrowed(&run_args(&temp, method, &whole)));

    let mut child = spawn(&borrowed(&run_args(&temp, method, &cut)));
    let mut threads = ["1", "3", "2"].into_iter().cycle();
    let mut next = || threads.next().unwrap();
    for moment in MOMENTS {
        // The save may be over when the signal arrives: then the next one is aimed at.
        while !kill_at(child, moment, Path::new(&cut)) && matches!(moment, Moment::Save) {
            child = spawn(&resume_args(&cut, next()));
        }
        child = spawn(&resume_args(&cut, next()));
    }
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, 0, "{}", done.err);

    let (whole, cut) = (Path::new(&whole), Path::new(&cut));
    assert_eq!(steps(whole), STEPS);
    assert_eq!(timeless(whole), timeless(cut));
    let last = format!("checkpoint-{STEPS}");
    for file in [weights, &format!("{last}/{weights}"), &format!("{last}/kinglet_state.safetensors")] {
        let bytes = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert!(bytes(whole) == bytes(cut), "{method}: {file} differs");
    }
    assert_eq!(names(whole), names(cut), "nothing is left of what was killed");
}

#[test]
fn a_killed_lora_run_ends_with_the_same_bytes() {
    survives_kills("lora", "adapter_model.safetensors");
}

#[test]
fn a_killed_qlora_run_ends_with_the_same_bytes() {
    survives_kills("qlora", "adapter_model.safetensors");
}

#[test]
fn a_killed_full_run_ends_with_the_same_bytes() {
    survives_kills("full", "model.safetensors");
}

#[test]
fn the_first_signal_saves_and_resume_goes_on_to_the_same_bytes() {
    let temp = Temp::new();
    let (whole, cut) = (temp.arg("whole"), temp.arg("cut"));
    ok(&borrowed(&run_args(&temp, "qlora", &whole)));

    let child = spawn(&borrowed(&run_args(&temp, "qlora", &cut)));
    wait_until("a step", || steps(Path::new(&cut)) >= 3);
    terminate(&child);
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, 0, "{}", done.err);
    contains(&done.out, &["stopped after step"]);
    contains(&done.err, &["next: kinglet finetune --resume"]);
    let made = steps(Path::new(&cut));
    assert!(made < STEPS, "it was stopped");
    assert!(temp.path("cut").join(format!("checkpoint-{made}")).is_dir());
    assert!(!temp.path("cut/adapter_config.json").exists(), "a run that is not finished has no result");
    let early = ["generate", "--model", &model(), "--adapter", &cut, "--prompt", "x"];
    contains(&refused(&early), &["not finished", "checkpoint-N"]);

    contains(&ok(&resume_args(&cut, "1")).err, &[&format!("after step {made}")]);
    assert_eq!(timeless(Path::new(&cut)), timeless(Path::new(&whole)));
    let bytes = |folder: &str| std::fs::read(Path::new(folder).join("adapter_model.safetensors")).unwrap();
    assert_eq!(bytes(&cut), bytes(&whole));
}

#[test]
fn what_changes_no_number_may_change_on_the_way() {
    let temp = Temp::new();
    let (model, rows, output) = (model(), temp.rows(20), temp.arg("out"));
    let steps = ["--per-device-train-batch-size", "2", "--max-steps", "6", "--save-steps", "1"];
    let child = spawn(&[&["finetune", "--model", &model, "--data", &rows, "--output", &output], &steps[..]].concat());
    wait_until("a step", || self::steps(Path::new(&output)) >= 1);
    terminate(&child);
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, 0, "{}", done.err);
    let free = ["--save-total-limit", "1", "--save-steps", "2", "--logging-steps", "3", "--threads", "1", "--no-mmap"];
    ok(&[&["finetune", "--resume", "--output", &output][..], &free].concat());
    let kept = names(Path::new(&output)).into_iter().filter(|name| name.starts_with("checkpoint-"));
    assert_eq!(kept.collect::<Vec<_>>(), ["checkpoint-6"]);
}

#[test]
fn the_second_signal_ends_at_once() {
    let (temp, model) = (Temp::new(), model());
    let (rows, output) = (temp.rows(10_000), temp.arg("out"));
    // One step, of seconds: all rows, one after the other.
    let long = ["--gradient-accumulation-steps", "10000", "--max-steps", "1", "--per-device-train-batch-size", "1"];
    let mut child =
        spawn(&[&["finetune", "--model", &model, "--data", &rows, "--output", &output], &long[..]].concat());
    wait_until("a run", || temp.path("out/log.jsonl").exists());
    terminate(&child);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(child.try_wait().unwrap(), None, "the first signal waits for the step to end");
    terminate(&child);
    wait_until("its end", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}
