//! `kinglet bench decode`: reading a prompt and writing text, kinglet, transformers and llama.cpp, each in a process of
//! its own, in turns.

use crate::args::{Dtype, Quant};
use crate::bench::args::DecodeArgs;
use crate::bench::measure::{self, DecodeJob, Job, model_name};
use crate::bench::peaks::{Peaks, STREAM};
use crate::bench::process::{self, Answer, Process};
use crate::bench::pytorch::Pytorch;
use crate::bench::report::{Failures, Report, Row, skip};
use crate::bench::{Setting, check_model, machine, threads};
use crate::console::note;
use crate::device::{self, Choice};
use kinglet_tensor::{Error, Result};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicBool;

/// What is measured, and where the answers have it.
const METRICS: [(&str, &str); 4] = [
    ("prefill tokens/s", "prefill_tokens_per_second"),
    ("decode tokens/s", "decode_tokens_per_second"),
    ("MiB peak", "peak_mib"),
    ("s to first token", "first_token_seconds"),
];

const LLAMA_BENCH: &str = "llama-bench";
const LLAMA_PYTHON: &str = "llama-cpp-python";

/// Whom kinglet is measured beside.
enum Peer<'a> {
    /// The folder that it loads.
    Transformers(&'a Pytorch, PathBuf),
    /// The program llama-bench.
    LlamaBench,
    /// llama.cpp under its Python package.
    LlamaPython(&'a Pytorch),
}

impl Peer<'_> {
    fn column(&self) -> &'static str {
        match self {
            Peer::Transformers(..) => "transformers",
            Peer::LlamaBench | Peer::LlamaPython(_) => "llama.cpp",
        }
    }

    fn measure(&self, job: &DecodeJob, stop: &AtomicBool) -> Result<Answer> {
        match self {
            Peer::Transformers(pytorch, folder) => {
                ask(pytorch.start()?, &DecodeJob { model: folder.clone(), ..job.clone() }, None, stop)
            }
            Peer::LlamaPython(pytorch) => ask(pytorch.start()?, job, Some("llama_cpp"), stop),
            Peer::LlamaBench => llama_bench(job, stop).map(Answer::Measured),
        }
    }
}

/// # Errors
/// When the options have no sense, or kinglet fails.
pub(crate) fn run(args: &DecodeArgs, stop: &AtomicBool) -> Result<()> {
    if args.prompt_tokens == 0 || args.new_tokens < 2 {
        return Err(Error::invalid("--prompt-tokens must be at least 1, --new-tokens at least 2"));
    }
    check_model(&args.model)?;
    args.common.make_output()?;
    let device = device::open(&Choice { threads: args.common.threads, ..Choice::default() })?;
    let threads = threads(&device)?;
    let Setting { pytorch, rounds, mut about, mut notes } = Setting::new(&args.common, &device, 3, stop)?;
    about.insert("peak".into(), Peaks::new(device.as_cpu()?, STREAM)?.json());
    notes.push("MiB peak is the peak of resident memory (VmHWM), mapped pages included".into());
    let peers = peers(args, pytorch.as_ref(), &mut notes, stop)?;
    let (mut rows, mut failures) = (Vec::new(), Failures::default());
    for &quant in &args.quant {
        for &dtype in &args.dtype {
            let job = DecodeJob {
                model: args.model.clone(),
                quant,
                dtype,
                prompt_tokens: args.prompt_tokens,
                new_tokens: args.new_tokens,
                threads,
                spawned: 0.0,
            };
            match measure(&job, &peers, rounds, &mut notes, stop) {
                Ok(measured) => rows.extend(measured),
                Err(error) => failures.add(&name(&job), error, stop, &mut notes)?,
            }
        }
    }
    Report { bench: "decode", about, rows, notes }.publish(&args.common)?;
    failures.end()
}

fn peers<'a>(
    args: &DecodeArgs,
    pytorch: Option<&'a Pytorch>,
    notes: &mut Vec<String>,
    stop: &AtomicBool,
) -> Result<Vec<Peer<'a>>> {
    let mut peers = Vec::new();
    if args.common.no_peers {
        return Ok(peers);
    }
    if let Some(pytorch) = pytorch {
        let folder = pytorch.folder(&args.model, notes, stop)?;
        peers.extend(folder.map(|folder| Peer::Transformers(pytorch, folder)));
    }
    let is_gguf = args.model.extension().is_some_and(|e| e == "gguf");
    let llama = pytorch.filter(|pytorch| pytorch.has(LLAMA_PYTHON));
    let skipped = match llama {
        _ if !is_gguf => "it reads .gguf files alone",
        _ if on_path(LLAMA_BENCH) => {
            peers.push(Peer::LlamaBench);
            return Ok(peers);
        }
        Some(pytorch) => {
            peers.push(Peer::LlamaPython(pytorch));
            return Ok(peers);
        }
        None => {
            "there is no llama-bench on PATH and no llama-cpp-python in the environment: scripts/setup-pytorch --llama-cpp"
        }
    };
    skip(format!("llama.cpp is skipped: {skipped}"), notes);
    Ok(peers)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// All rounds of a job: a row for each metric.
fn measure(
    job: &DecodeJob,
    peers: &[Peer<'_>],
    rounds: usize,
    notes: &mut Vec<String>,
    stop: &AtomicBool,
) -> Result<Vec<Row>> {
    let name = name(job);
    note(&name);
    let columns: Vec<_> = peers.iter().map(|peer| (peer.column(), Vec::new())).collect();
    let row = |(unit, _)| Row { peers: columns.clone(), ..Row::new(name.clone(), unit) };
    let mut rows: Vec<Row> = METRICS.into_iter().map(row).collect();
    let mut peers: Vec<&Peer<'_>> = peers.iter().collect();
    for _ in 0..rounds {
        let Answer::Measured(answer) = ask(measure::start()?, job, None, stop)? else {
            return Err(Error::invalid("kinglet: an answer without figures"));
        };
        for (row, (_, key)) in rows.iter_mut().zip(METRICS) {
            row.ours.extend(answer[key].as_f64());
        }
        let mut failed = Vec::new();
        for peer in &peers {
            let column = peer.column();
            let why = match peer.measure(job, stop) {
                Ok(Answer::Measured(answer)) => {
                    for (row, (_, key)) in rows.iter_mut().zip(METRICS) {
                        let column = row.peers.iter_mut().find(|(name, _)| *name == column);
                        column.into_iter().for_each(|(_, values)| values.extend(answer[key].as_f64()));
                    }
                    continue;
                }
                Ok(Answer::Missing(module)) => format!("it has no module {module}"),
                Err(error) => error.to_string(),
            };
            process::check(stop)?;
            skip(format!("{column} is skipped for {name}: {why}"), notes);
            failed.push(column);
        }
        peers.retain(|peer| !failed.contains(&peer.column()));
        rows.iter_mut().for_each(|row| row.peers.retain(|(name, _)| !failed.contains(name)));
    }
    // llama-bench does not tell everything, nor does every system.
    rows.iter_mut().for_each(|row| row.peers.retain(|(_, values)| !values.is_empty()));
    rows.retain(|row| !row.ours.is_empty());
    Ok(rows)
}

fn name(job: &DecodeJob) -> String {
    let held = match job.quant {
        Quant::Nf4 => " NF4",
        Quant::Fp4 => " FP4",
        Quant::None => "",
    };
    let dtype = if job.dtype == Dtype::F32 { "f32" } else { "bf16" };
    format!("{}{held} {dtype}, {} + {} tokens", model_name(&job.model), job.prompt_tokens, job.new_tokens)
}

/// Gives `process` the job, under another name if one is given.
fn ask(mut process: Process, job: &DecodeJob, name: Option<&str>, stop: &AtomicBool) -> Result<Answer> {
    let job = Job::Decode(DecodeJob { spawned: machine::unix_time(), ..job.clone() });
    let mut job = serde_json::to_value(job).map_err(Error::invalid)?;
    if let Some(name) = name {
        job["job"] = name.into();
    }
    process.ask(&job, stop)
}

/// llama.cpp's own benchmark.
fn llama_bench(job: &DecodeJob, stop: &AtomicBool) -> Result<Value> {
    let number = |n: usize| n.to_string();
    let mut command = Command::new(LLAMA_BENCH);
    command.arg("-m").arg(&job.model).args(["-p", &number(job.prompt_tokens), "-n", &number(job.new_tokens)]);
    command.args(["-t", &number(job.threads), "-r", "3", "-o", "json"]);
    let (text, peak) = process::run(LLAMA_BENCH, &mut command, stop)?;
    llama_answer(&text, peak)
        .ok_or_else(|| Error::invalid(format!("{LLAMA_BENCH}: printed what is no result of two tests")))
}

/// The figures in llama-bench's JSON: a test of the prompt and one of new tokens.
fn llama_answer(text: &str, peak: Option<f64>) -> Option<Value> {
    let tests: Value = serde_json::from_str(text).ok()?;
    let speed = |key: &str| {
        let test = tests.as_array()?.iter().find(|test| test[key].as_u64().is_some_and(|n| n > 0))?;
        test["avg_ts"].as_f64()
    };
    Some(json!({
        "prefill_tokens_per_second": speed("n_prompt")?,
        "decode_tokens_per_second": speed("n_gen")?,
        "peak_mib": peak,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_benchs_json_is_read() {
        let text = r#"[{"n_prompt": 512, "n_gen": 0, "avg_ts": 504.5}, {"n_prompt": 0, "n_gen": 64, "avg_ts": 222.0}]"#;
        let answer = llama_answer(text, Some(200.0)).unwrap();
        assert_eq!(
            (answer["prefill_tokens_per_second"].as_f64(), answer["decode_tokens_per_second"].as_f64()),
            (Some(504.5), Some(222.0))
        );
        assert_eq!(llama_answer("[]", None), None);
        assert_eq!(llama_answer("no model", None), None);
    }

    #[test]
    fn names_say_how_it_is_held() {
        let job = DecodeJob {
            model: "x/m.gguf".into(),
            quant: Quant::Nf4,
            dtype: Dtype::F32,
            prompt_tokens: 8,
            new_tokens: 4,
            threads: 1,
            spawned: 0.0,
        };
        assert_eq!(name(&job), "m.gguf NF4 f32, 8 + 4 tokens");
    }
}
