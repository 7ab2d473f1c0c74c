//! `kinglet bench op`: single operations, kinglet and PyTorch in turns, as shares of the peak of the same moment.

use crate::args::Dtype;
use crate::bench::args::OpArgs;
use crate::bench::jobs::{Job, OpName, Work, select};
use crate::bench::ops::{Prepared, prepare};
use crate::bench::peaks::{Peaks, SHORT_STREAM, STREAM};
use crate::bench::process::{Answer, Process, check};
use crate::bench::pytorch::Pytorch;
use crate::bench::report::{Failures, Report, Row, median, skip};
use crate::bench::{Setting, threads};
use crate::console::note;
use crate::device::{self, Choice};
use kinglet_tensor::{Device, Result};
use serde_json::{Value, json};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Threads of the other side spin for a while after their work; nobody is timed meanwhile.
const CALM: Duration = Duration::from_millis(30);

/// # Errors
/// When the options have no sense, or a side fails.
pub(crate) fn run(args: &OpArgs, stop: &AtomicBool) -> Result<()> {
    let jobs = select(args)?;
    args.common.make_output()?;
    let device = device::open(&Choice { threads: args.common.threads, ..Choice::default() })?;
    let threads = threads(&device)?;
    let usual_rounds = if args.quick { 2 } else { 5 };
    let Setting { pytorch, rounds, mut about, mut notes } = Setting::new(&args.common, &device, usual_rounds, stop)?;
    notes.extend(pytorch.as_ref().map(|pytorch| pytorch.tuned.clone()));
    let cpu = device.as_cpu()?;
    let mut bench = Bench {
        device: &device,
        peaks: Peaks::new(cpu, if args.quick { SHORT_STREAM } else { STREAM })?,
        worker: pytorch.as_ref().map(Pytorch::start).transpose()?,
        tuned: pytorch.as_ref().map_or("", |pytorch| pytorch.tuned_column),
        threads,
        rounds,
        seconds: if args.quick { 0.01 } else { 0.3 },
        notes,
        stop,
    };
    let (mut rows, mut failures) = (Vec::new(), Failures::default());
    for (i, job) in jobs.iter().enumerate() {
        note(format!("{}/{} {}", i + 1, jobs.len(), job.name()));
        match bench.measure(job) {
            Ok(row) => rows.push(row),
            Err(error) => failures.add(&job.name(), error, stop, &mut bench.notes)?,
        }
    }
    about.insert("peak".into(), bench.peaks.json());
    Report { bench: "op", about, rows, notes: bench.notes }.publish(&args.common)?;
    failures.end()
}

/// What stays the same from job to job.
struct Bench<'a> {
    device: &'a Device,
    peaks: Peaks<'a>,
    worker: Option<Process>,
    /// The name of PyTorch's tuned column.
    tuned: &'static str,
    threads: usize,
    rounds: usize,
    /// How long each side is timed in a round.
    seconds: f64,
    notes: Vec<String>,
    stop: &'a AtomicBool,
}

impl Bench<'_> {
    fn measure(&mut self, job: &Job) -> Result<Row> {
        let work = job.work();
        let mut ours = prepare(job, self.device)?;
        let mut row = Row::new(job.name(), work.unit());
        row.in_cache = matches!(work, Work::Bytes(bytes) if bytes < self.peaks.last_cache);
        let mut modes = if self.worker.is_some() { modes(job, self.tuned) } else { Vec::new() };
        row.peers = modes.iter().map(|(_, column)| (*column, Vec::new())).collect();
        for _ in 0..self.rounds {
            let peak = self.peaks.of(job, work);
            std::thread::sleep(CALM);
            check(self.stop)?;
            let speed = work.speed(self.device.enter(|| seconds(&mut ours, self.seconds))?);
            row.ours.push(speed);
            row.shares.extend(peak.map(|peak| speed / peak));
            let mut failed = Vec::new();
            for &(mode, column) in &modes {
                match self.theirs(job, mode)? {
                    Ok(seconds) => {
                        let peer = row.peers.iter_mut().find(|(name, _)| *name == column);
                        peer.into_iter().for_each(|(_, values)| values.push(work.speed(seconds)));
                    }
                    Err(why) => {
                        skip(format!("{column} is skipped for {}: {why}", job.name()), &mut self.notes);
                        failed.push(column);
                    }
                }
            }
            modes.retain(|(_, column)| !failed.contains(column));
            row.peers.retain(|(column, _)| !failed.contains(column));
            std::thread::sleep(CALM);
        }
        Ok(row)
    }

    /// The seconds that PyTorch needs, or why it does not do the job.
    fn theirs(&mut self, job: &Job, mode: &str) -> Result<std::result::Result<f64, String>> {
        let Some(worker) = &mut self.worker else { return Ok(Err("it does not run".into())) };
        let mut question = job.json();
        if let Value::Object(fields) = &mut question {
            let more = [
                ("job", json!("op")),
                ("mode", json!(mode)),
                ("threads", json!(self.threads)),
                ("seconds", json!(self.seconds)),
            ];
            fields.extend(more.map(|(name, value)| (name.to_string(), value)));
        }
        Ok(match worker.ask(&question, self.stop) {
            Ok(Answer::Measured(answer)) => answer["seconds"].as_f64().ok_or_else(|| format!("it answered {answer}")),
            Ok(Answer::Missing(module)) => Err(format!("it has no module {module}")),
            Err(error) => {
                check(self.stop)?;
                Err(error.to_string())
            }
        })
    }
}

/// PyTorch's settings for a job, with their columns: the tuned one changes products of f32 alone.
fn modes(job: &Job, tuned: &'static str) -> Vec<(&'static str, &'static str)> {
    let has_products = matches!(job.op, OpName::Gemm | OpName::Attention | OpName::CrossEntropy);
    match has_products && job.dtype == Dtype::F32 {
        true => vec![("default", "PyTorch"), ("tuned", tuned)],
        false => vec![("default", "PyTorch")],
    }
}

/// The median of calls that take `at_least` seconds together, at least three, after one to warm up: as ops.py does it.
fn seconds(run: &mut Prepared, at_least: f64) -> Result<f64> {
    run()?;
    let (mut times, mut whole) = (Vec::new(), 0.0);
    while times.len() < 3 || whole < at_least {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
        whole += times[times.len() - 1];
    }
    Ok(median(&times))
}
