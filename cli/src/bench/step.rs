//! `kinglet bench step`: a training step of kinglet and of PyTorch, each in a process of its own, in turns.

use crate::args::{Dtype, Method};
use crate::bench::args::{StepArgs, Subject, Sweep};
use crate::bench::measure::{self, Job, StepJob, model_name};
use crate::bench::peaks::{Peaks, STREAM};
use crate::bench::process::{Answer, Process, check};
use crate::bench::pytorch::Pytorch;
use crate::bench::report::{Failures, Report, Row};
use crate::bench::shapes::RandomShape;
use crate::bench::{Setting, check_model, machine, threads};
use crate::console::{note, out};
use crate::device::{self, Choice};
use kinglet_models::fs::read_text;
use kinglet_tensor::{Error, Result};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// What is measured of a step, and where the answers have it.
const METRICS: [(&str, &str); 3] =
    [("tokens/s", "tokens_per_second"), ("MiB peak", "peak_mib"), ("s to step 1", "ready_seconds")];

/// # Errors
/// When the options have no sense, or kinglet fails.
pub(crate) fn run(args: &StepArgs, stop: &AtomicBool) -> Result<()> {
    let device = device::open(&Choice { threads: args.common.threads, ..Choice::default() })?;
    let threads = threads(&device)?;
    let jobs = jobs(args, threads)?;
    args.subject.model.as_deref().map_or(Ok(()), check_model)?;
    args.common.make_output()?;
    if args.trace {
        return jobs.iter().try_for_each(|(_, job)| trace(job, stop));
    }
    let Setting { mut pytorch, rounds, mut about, mut notes } = Setting::new(&args.common, &device, 3, stop)?;
    about.insert("peak".into(), Peaks::new(device.as_cpu()?, STREAM)?.json());
    let mut folder = None;
    if let Some(pytorch) = &pytorch {
        notes.push(pytorch.tuned.clone());
        if let Some(model) = args.subject.model.as_deref() {
            folder = pytorch.folder(model, &mut notes, stop)?;
        }
    }
    if args.subject.model.is_some() && folder.is_none() {
        pytorch = None; // it was said why
    }
    notes.push("MiB peak is the peak of resident memory (VmHWM), mapped pages included; of random weights, after they were made".into());
    let (mut rows, mut failures) = (Vec::new(), Failures::default());
    for (i, (name, job)) in jobs.iter().enumerate() {
        note(format!("{}/{} {name}", i + 1, jobs.len()));
        let theirs = StepJob { model: folder.clone().or_else(|| job.model.clone()), ..job.clone() };
        match measure(name, job, pytorch.as_ref().map(|p| (p, &theirs)), rounds, stop) {
            Ok((measured, skipped)) => {
                rows.extend(measured);
                notes.extend(skipped);
            }
            Err(error) => failures.add(name, error, stop, &mut notes)?,
        }
    }
    Report { bench: "step", about, rows, notes }.publish(&args.common)?;
    failures.end()
}

/// The jobs that the options ask for, with their names.
fn jobs(args: &StepArgs, threads: usize) -> Result<Vec<(String, StepJob)>> {
    if args.length < 2 || args.steps == 0 || args.lora_r == 0 || args.batch.contains(&0) {
        return Err(Error::invalid("--length must be at least 2; --steps, --batch and --lora-r at least 1"));
    }
    let settings = settings(args);
    let mut jobs = Vec::new();
    for subject in subjects(args)? {
        for &(method, dtype, checkpointing, batch) in &settings {
            for (length, threads) in sizes(args, threads) {
                let job = StepJob {
                    model: subject.model.clone(),
                    config: subject.config.clone(),
                    method,
                    dtype,
                    batch,
                    length,
                    checkpointing,
                    lora_r: args.lora_r,
                    steps: args.steps,
                    threads,
                    spawned: 0.0,
                    mode: String::new(),
                    trace: args.trace,
                };
                jobs.push((name(&subject.name, &job), job));
            }
        }
    }
    Ok(jobs)
}

/// A model, or what random ones are made of.
struct Chosen {
    name: String,
    model: Option<std::path::PathBuf>,
    config: Option<serde_json::Map<String, Value>>,
}

fn subjects(args: &StepArgs) -> Result<Vec<Chosen>> {
    let random = |shape: RandomShape| Chosen { name: shape.name(), model: None, config: Some(shape.config()) };
    let Subject { model, config, random_shape } = &args.subject;
    if let Some(Sweep::Width(shapes)) = &args.sweep {
        if random_shape.is_none() {
            return Err(Error::invalid("--sweep width is over random shapes: give --random-shape, not a model"));
        }
        return Ok(shapes.iter().copied().map(random).collect());
    }
    Ok(vec![match (model, config, random_shape) {
        (Some(model), _, _) => Chosen { name: model_name(model), model: Some(model.clone()), config: None },
        (_, Some(file), _) => Chosen { name: model_name(file), model: None, config: Some(read_config(file)?) },
        (_, _, Some(shape)) => random(*shape),
        _ => return Err(Error::invalid("--model, --config or --random-shape is needed")),
    }])
}

fn read_config(file: &Path) -> Result<serde_json::Map<String, Value>> {
    let text = read_text(file, "the configuration")?;
    serde_json::from_str(&text).map_err(|e| Error::invalid(format!("{}: {e}", file.display())))
}

/// Method, dtype, checkpointing and batch of each job.
fn settings(args: &StepArgs) -> Vec<(Method, Dtype, bool, usize)> {
    let plain =
        args.method.is_empty() && args.dtype.is_empty() && args.batch.is_empty() && !args.gradient_checkpointing;
    if plain && args.sweep.is_none() && !args.trace {
        let kinds = [
            (Method::Full, Dtype::F32, false),
            (Method::Lora, Dtype::F32, false),
            (Method::Lora, Dtype::Bf16, false),
            (Method::Qlora, Dtype::Bf16, false),
            (Method::Lora, Dtype::Bf16, true),
        ];
        return kinds.iter().flat_map(|&(m, d, c)| [1, 4].map(|batch| (m, d, c, batch))).collect();
    }
    fn or<T: Copy>(given: &[T], usual: T) -> Vec<T> {
        if given.is_empty() { vec![usual] } else { given.to_vec() }
    }
    let mut settings = Vec::new();
    for method in or(&args.method, Method::Lora) {
        for dtype in or(&args.dtype, Dtype::F32) {
            let each = or(&args.batch, 1).into_iter();
            settings.extend(each.map(|batch| (method, dtype, args.gradient_checkpointing, batch)));
        }
    }
    settings
}

/// Length and threads of each job.
fn sizes(args: &StepArgs, threads: usize) -> Vec<(usize, usize)> {
    match &args.sweep {
        Some(Sweep::Length(lengths)) => lengths.iter().map(|&length| (length, threads)).collect(),
        Some(Sweep::Threads(counts)) => counts.iter().map(|&threads| (args.length, threads)).collect(),
        Some(Sweep::Width(_)) | None => vec![(args.length, threads)],
    }
}

fn name(subject: &str, job: &StepJob) -> String {
    let method = match job.method {
        Method::Full => "full",
        Method::Lora => "LoRA",
        Method::Qlora => "QLoRA",
    };
    let dtype = if job.dtype == Dtype::F32 { "f32" } else { "bf16" };
    let checkpointing = if job.checkpointing { " checkpointing" } else { "" };
    format!("{subject} {method} {dtype}{checkpointing}, {} x {}, {} threads", job.batch, job.length, job.threads)
}

/// PyTorch's settings for a job, with their columns. Adapters and moments are f32 in all of them; bf16 weights or
/// autocast are two ways to bf16. PEFT's recipe for QLoRA makes all that is not quantised f32, with autocast or without; as loaded it
/// stays bf16.
fn modes(job: &StepJob, tuned: &'static str) -> Vec<(&'static str, &'static str)> {
    match (job.method, job.dtype) {
        (Method::Qlora, Dtype::F32) => vec![("default", "PyTorch")],
        (Method::Qlora, Dtype::Bf16) => {
            vec![("default", "PyTorch"), ("autocast", "PyTorch autocast"), ("as_loaded", "PyTorch as loaded")]
        }
        (_, Dtype::F32) => vec![("default", "PyTorch"), ("tuned", tuned)],
        (_, Dtype::Bf16) => vec![("default", "PyTorch"), ("autocast", "PyTorch autocast")],
    }
}

/// All rounds of a job: a row for each metric, and what was skipped.
fn measure(
    name: &str,
    ours: &StepJob,
    pytorch: Option<(&Pytorch, &StepJob)>,
    rounds: usize,
    stop: &AtomicBool,
) -> Result<(Vec<Row>, Vec<String>)> {
    let mut modes = pytorch.map_or_else(Vec::new, |(pytorch, _)| modes(ours, pytorch.tuned_column));
    let columns: Vec<_> = modes.iter().map(|(_, column)| (*column, Vec::new())).collect();
    let row = |(unit, _)| Row { peers: columns.clone(), ..Row::new(name.into(), unit) };
    let mut rows: Vec<Row> = METRICS.into_iter().map(row).collect();
    let mut skipped = Vec::new();
    for _ in 0..rounds {
        let answer = match ask(measure::start()?, ours, stop)? {
            Answer::Measured(answer) => answer,
            Answer::Missing(module) => return Err(Error::invalid(format!("kinglet has no module {module}"))),
        };
        for (row, (_, key)) in rows.iter_mut().zip(METRICS) {
            row.ours.extend(answer[key].as_f64());
        }
        let Some((pytorch, theirs)) = pytorch else { continue };
        modes.retain(|&(mode, column)| {
            let job = StepJob { mode: mode.into(), ..theirs.clone() };
            let why = match pytorch.start_with(job.threads).and_then(|process| ask(process, &job, stop)) {
                Ok(Answer::Measured(answer)) => {
                    for (row, (_, key)) in rows.iter_mut().zip(METRICS) {
                        let peer = row.peers.iter_mut().find(|(name, _)| *name == column);
                        peer.into_iter().for_each(|(_, values)| values.extend(answer[key].as_f64()));
                    }
                    return true;
                }
                Ok(Answer::Missing(module)) => format!("it has no module {module}"),
                Err(error) => error.to_string(),
            };
            rows.iter_mut().for_each(|row| row.peers.retain(|(name, _)| *name != column));
            skipped.push(format!("{column} is skipped for {name}: {why}"));
            false
        });
        check(stop)?;
    }
    skipped.iter().for_each(note);
    // Where the system does not tell the memory there is no such row.
    rows.retain(|row| !row.ours.is_empty());
    Ok((rows, skipped))
}

fn ask(mut process: Process, job: &StepJob, stop: &AtomicBool) -> Result<Answer> {
    let job = Job::Step(StepJob { spawned: machine::unix_time(), ..job.clone() });
    process.ask(&serde_json::to_value(job).map_err(Error::invalid)?, stop)
}

/// Prints the kernels of a step, the longest first.
fn trace(job: &StepJob, stop: &AtomicBool) -> Result<()> {
    let Answer::Measured(answer) = ask(measure::start()?, job, stop)? else { return Ok(()) };
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let whole = number(&answer["step_ms"]);
    out(format!("{:28} {:>8} {:>10} {:>6}", "kernel", "launches", "ms a step", "share"))?;
    let mut rest = whole;
    for row in answer["kernels"].as_array().into_iter().flatten() {
        let (name, ms) = (row["kernel"].as_str().unwrap_or_default(), number(&row["ms"]));
        rest -= ms;
        out(format!("{name:28} {:>8} {ms:>10.2} {:>5.1}%", number(&row["launches"]), 100.0 * ms / whole))?;
    }
    out(format!("{:28} {:>8} {rest:>10.2} {:>5.1}%", "between kernels", "", 100.0 * rest / whole))?;
    out(format!("{:28} {:>8} {whole:>10.2}", "step", ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::bench::args::What;
    use clap::Parser;

    fn names(line: &str) -> Result<Vec<String>> {
        let args = ["kinglet", "bench", "step"].into_iter().chain(line.split_whitespace());
        let Some(Command::Bench(args)) = Cli::try_parse_from(args).unwrap().command else { panic!("no bench") };
        let What::Step(args) = args.what else { panic!("no step") };
        Ok(jobs(&args, 2)?.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn without_settings_it_is_ten_usual_steps() {
        let names = names("--random-shape 135m").unwrap();
        assert_eq!(names.len(), 10);
        assert_eq!(names[0], "135m full f32, 1 x 512, 2 threads");
        assert_eq!(names[9], "135m LoRA bf16 checkpointing, 4 x 512, 2 threads");
    }

    #[test]
    fn lists_are_multiplied_and_sweeps_vary_one_thing() {
        assert_eq!(names("--model m --method lora,qlora --batch 1,4 --dtype bf16").unwrap().len(), 4);
        assert_eq!(
            names("--model a/m.gguf --sweep length=64,128").unwrap(),
            ["m.gguf LoRA f32, 1 x 64, 2 threads", "m.gguf LoRA f32, 1 x 128, 2 threads"]
        );
        assert_eq!(names("--random-shape 135m --sweep width --method qlora").unwrap().len(), 3);
        assert_eq!(names("--model m --sweep threads").unwrap()[0], "m LoRA f32, 1 x 512, 1 threads");
        assert!(names("--model m --sweep width").is_err());
        assert!(names("--model m --batch 0").is_err());
    }
}
