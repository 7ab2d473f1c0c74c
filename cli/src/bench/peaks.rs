//! What the machine can do at most, measured in the run whose figures it explains.

use crate::args::Dtype;
use crate::bench::jobs::{Job, Work};
use crate::bench::machine;
use crate::bench::report::median;
use kinglet_tensor::Result;
use kinglet_tensor::cpu::Cpu;
use kinglet_tensor::cpu::peak::{self, Streams};
use serde_json::Value;

/// Bytes of each stream that bandwidth is measured with: more than the caches of most machines.
pub(crate) const STREAM: usize = 512 << 20;
/// The same under --quick.
pub(crate) const SHORT_STREAM: usize = 16 << 20;

/// The machine's peaks, measured again beside each job; in Gflop/s and GB/s.
pub(crate) struct Peaks<'a> {
    cpu: &'a Cpu,
    streams: Streams,
    f32: Vec<f64>,
    bf16: Vec<f64>,
    /// Of whole streams.
    bandwidth: Vec<peak::Bandwidth>,
    /// Bytes of the last cache; what moves fewer lies in it.
    pub(crate) last_cache: f64,
}

impl<'a> Peaks<'a> {
    /// All of them, once.
    ///
    /// # Errors
    /// When there is no memory for streams of so many bytes.
    pub(crate) fn new(cpu: &'a Cpu, stream: usize) -> Result<Self> {
        let streams = Streams::new(cpu, stream)?;
        let last_cache = machine::last_cache().map_or(0.0, |bytes| bytes as f64);
        let mut peaks = Peaks { cpu, streams, f32: vec![], bf16: vec![], bandwidth: vec![], last_cache };
        // Each at least once, for the report.
        peaks.f32.push(peak::f32_flops(cpu));
        peaks.bf16.extend(peak::bf16_flops(cpu));
        peaks.bandwidth.push(peaks.streams.measure(cpu, usize::MAX));
        Ok(peaks)
    }

    /// The peak of just now that bounds a job, in the unit of its speed; `None` where the machine has no such instruction.
    pub(crate) fn of(&mut self, job: &Job, work: Work) -> Option<f64> {
        let found = match (work, job.dtype) {
            // What a job moves in cache is a share of what streams of its size move there.
            (Work::Bytes(bytes), _) if bytes < self.last_cache => self.streams.measure(self.cpu, bytes as usize).best(),
            (Work::Bytes(_), _) => {
                let bandwidth = self.streams.measure(self.cpu, usize::MAX);
                self.bandwidth.push(bandwidth);
                bandwidth.best()
            }
            (Work::Flops(_), Dtype::F32) => {
                let flops = peak::f32_flops(self.cpu);
                self.f32.push(flops);
                flops
            }
            (Work::Flops(_), Dtype::Bf16) => {
                let flops = peak::bf16_flops(self.cpu)?;
                self.bf16.push(flops);
                flops
            }
        };
        Some(found / 1e9)
    }

    /// The medians over the run.
    pub(crate) fn json(&self) -> Value {
        let of = |pick: fn(&peak::Bandwidth) -> f64| median(&self.bandwidth.iter().map(pick).collect::<Vec<_>>());
        let bandwidth = peak::Bandwidth {
            read: of(|b| b.read),
            copy: of(|b| b.copy),
            triad: of(|b| b.triad),
            update: of(|b| b.update),
        };
        let bf16 = (!self.bf16.is_empty()).then(|| median(&self.bf16));
        machine::peaks(median(&self.f32), bf16, &bandwidth)
    }
}
