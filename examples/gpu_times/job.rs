//! What is timed, and how.

use kinglet::tensor::philox::Key;
use kinglet::tensor::{TensorMut, ops};
use kinglet::{DType, Device, Error, Result, Tensor};
use serde_json::{Value, json};

/// An op that is ready to start, what it must move and what it must compute.
pub(crate) struct Job {
    bytes: usize,
    flops: usize,
    start: Box<dyn FnMut() -> Result<()>>,
}

impl Job {
    /// `bytes`: every operand read once, every result written once. `flops`: as usually counted, 0 where nobody counts them.
    /// `start` starts the op and drops what it gives.
    pub(crate) fn new<T>(bytes: usize, flops: usize, mut start: impl FnMut() -> Result<T> + 'static) -> Result<Self> {
        Ok(Job { bytes, flops, start: Box::new(move || start().map(drop)) })
    }

    /// Milliseconds of each of `count` starts in a row.
    fn time(&mut self, count: usize, device: &Device) -> Result<f64> {
        let cuda = device.as_cuda()?;
        let start = cuda.record()?;
        for _ in 0..count {
            (self.start)()?;
        }
        Ok(f64::from(start.elapsed(&cuda.record()?)?) / count as f64)
    }
}

/// A row of the table of ops: makes its job of each list of sizes that `benches/shapes` has for it.
pub(crate) struct Op {
    /// As in `benches/shapes` and in `benches/pytorch/gpu_ops.py`. Data is bf16 unless it says otherwise.
    pub(crate) name: &'static str,
    /// Whether PyTorch has one that does the same; else kinglet is timed alone.
    pub(crate) twin: bool,
    pub(crate) job: fn(&[usize], &Device) -> Result<Job>,
}

/// As many sizes as a job takes.
pub(crate) fn exactly<const N: usize>(sizes: &[usize]) -> Result<[usize; N]> {
    sizes.try_into().map_err(|_| Error::invalid(format!("sizes {sizes:?}, not {N} of them")))
}

/// Random numbers, the same in every run.
pub(crate) fn normal(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let seed = shape.iter().fold(1, |seed, &size| seed * 31 + size as u64);
    ops::normal(shape, 1.0, Key::derive(&[seed]), device)?.to_dtype(dtype)
}

pub(crate) fn bf16<const N: usize>(shape: [usize; N], device: &Device) -> Result<Tensor> {
    normal(&shape, DType::BF16, device)
}

/// Random ids below `limit`.
pub(crate) fn ids(shape: &[usize], limit: usize, device: &Device) -> Result<Tensor> {
    let id = |i: usize| (Key::derive(&[1]).words(i as u64)[0] as usize % limit) as i32;
    Tensor::from_vec((0..shape.iter().product()).map(id).collect(), shape, device)
}

pub(crate) fn place(x: &mut Tensor) -> Result<TensorMut<'_>> {
    x.as_mut().ok_or_else(|| Error::aliased("a tensor is held elsewhere"))
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A job, named by its op and sizes.
pub(crate) struct Timed {
    pub(crate) name: String,
    pub(crate) twin: bool,
    pub(crate) job: Job,
}

/// The medians of all jobs, each of which has its turn in every round. A turn fills 5 ms, so that the host's own part hides behind
/// work that is queued.
pub(crate) fn times(jobs: &mut [Timed], rounds: usize, device: &Device) -> Result<Vec<Value>> {
    let mut counts = Vec::new();
    for Timed { job, .. } in &mut *jobs {
        job.time(1, device)?;
        counts.push((5.0 / job.time(1, device)?).clamp(1.0, 100.0) as usize);
    }
    let mut samples = vec![Vec::new(); jobs.len()];
    for _ in 0..rounds {
        for ((Timed { job, .. }, &count), samples) in jobs.iter_mut().zip(&counts).zip(&mut samples) {
            samples.push(job.time(count, device)?);
        }
    }
    let rows = jobs.iter().zip(&mut samples).map(|(Timed { name, twin, job }, samples)| {
        let (milliseconds, Job { bytes, flops, .. }) = (median(samples), job);
        json!({ "op": name, "twin": twin, "milliseconds": milliseconds, "bytes": bytes, "flops": flops })
    });
    Ok(rows.collect())
}
