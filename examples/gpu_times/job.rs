//! What is timed, and how.

use kinglet::tensor::philox::Key;
use kinglet::tensor::{TensorMut, ops};
use kinglet::{DType, Device, Error, Result, Tensor};
use serde_json::{Value, json};
use std::any::Any;

/// An op that is ready to start, what it must move and what it must compute.
pub(crate) struct Job {
    bytes: usize,
    flops: usize,
    start: Box<dyn FnMut() -> Result<Box<dyn Any>>>,
    /// What the last start gave.
    result: Option<Box<dyn Any>>,
}

impl Job {
    /// `bytes`: every operand read once, every result written once. `flops`: as usually counted, 0 where nobody counts them.
    pub(crate) fn new<T: 'static>(
        bytes: usize,
        flops: usize,
        mut start: impl FnMut() -> Result<T> + 'static,
    ) -> Result<Self> {
        let start = move || start().map(|made| Box::new(made) as Box<dyn Any>);
        Ok(Job { bytes, flops, start: Box::new(start), result: None })
    }

    /// How many jobs of its kind are to take turns, so that none finds operands or results of its own in L2: together they move
    /// twice as much as that holds. The virtual GPU has none: two, so that turns are known to work.
    fn copies(&self, device: &Device) -> Result<usize> {
        Ok(match device.as_cuda()?.info().l2_bytes {
            0 => 2,
            l2 => (2 * l2 as usize).div_ceil(self.bytes),
        })
    }

    /// The result stays until the next is there, so that copies have different ones.
    fn start(&mut self) -> Result<()> {
        self.result = Some((self.start)()?);
        Ok(())
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

/// Copies of a job that take turns, named by their op and sizes.
pub(crate) struct Timed {
    name: String,
    twin: bool,
    copies: Vec<Job>,
    next: usize,
}

impl Timed {
    pub(crate) fn new(op: &Op, sizes: &[usize], device: &Device) -> Result<Self> {
        let name = format!("{} {}", op.name, sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("x"));
        let job = || (op.job)(sizes, device).map_err(|e| e.context(&name));
        let mut copies = vec![job()?];
        for _ in 1..copies[0].copies(device)? {
            copies.push(job()?);
        }
        Ok(Timed { name, twin: op.twin, copies, next: 0 })
    }

    /// Milliseconds of each of `count` starts in a row.
    fn time(&mut self, count: usize, device: &Device) -> Result<f64> {
        let cuda = device.as_cuda()?;
        let start = cuda.record()?;
        for _ in 0..count {
            self.copies[self.next].start()?;
            self.next = (self.next + 1) % self.copies.len();
        }
        Ok(f64::from(start.elapsed(&cuda.record()?)?) / count as f64)
    }

    fn row(&self, samples: &mut [f64]) -> Value {
        let (Timed { name, twin, copies, .. }, milliseconds) = (self, median(samples));
        let Job { bytes, flops, .. } = copies[0];
        json!({
            "op": name, "twin": twin, "milliseconds": milliseconds, "bytes": bytes, "flops": flops, "copies": copies.len()
        })
    }
}

/// The medians of all jobs, each of which has its turn in every round. A turn fills 5 ms, so that the host's own part hides behind
/// work that is queued.
pub(crate) fn times(jobs: &mut [Timed], rounds: usize, device: &Device) -> Result<Vec<Value>> {
    let mut counts = Vec::new();
    for job in &mut *jobs {
        // Each copy once: its memory is there.
        job.time(job.copies.len(), device)?;
        counts.push((5.0 / job.time(1, device)?).clamp(1.0, 100.0) as usize);
    }
    let mut samples = vec![Vec::new(); jobs.len()];
    for _ in 0..rounds {
        for ((job, &count), samples) in jobs.iter_mut().zip(&counts).zip(&mut samples) {
            samples.push(job.time(count, device)?);
        }
    }
    Ok(jobs.iter().zip(&mut samples).map(|(job, samples)| job.row(samples)).collect())
}
