//! Runs kernels: blocks in parallel on the host's threads, each block in one deterministic order.
//!
//! Lanes of a warp that stand at the same instruction execute together, the lowest instruction first; warps take turns in an
//! order that the seed gives. See the crate's README for what is a fault.

mod access;
mod atomics;
mod barrier;
mod cluster;
mod collective;
mod copies;
mod format;
mod host;
mod loaded;
mod machine;
mod matrix;
mod operands;
mod shared;
mod step;
mod stuck;
mod traffic;
mod validate;
mod warp;

use std::sync::atomic::AtomicU64;

use cluster::{Work, Worker};
pub(crate) use loaded::Loaded;
pub(crate) use machine::Run;
pub(crate) use validate::validate;

use crate::counters::Counters;
use crate::error::{Error, Result};

/// Runs all blocks of a launch on up to `threads` threads of the host.
pub(crate) fn execute(run: &Run<'_>, threads: usize) -> Result<(Counters, String)> {
    let clusters: u64 = run.grid.iter().zip(run.cluster).map(|(&grid, cluster)| u64::from(grid / cluster)).product();
    let next = AtomicU64::new(0);
    let workers = threads.min(usize::try_from(clusters).unwrap_or(usize::MAX));
    let works: Vec<Work> = if workers <= 1 {
        vec![Worker::work(run, &next, clusters)]
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(|| Worker::work(run, &next, clusters))).collect();
            handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    };
    let mut counters = Counters::default();
    let mut printed = Vec::new();
    let mut faults = Vec::new();
    for work in works {
        counters += work.counters;
        printed.extend(work.printed);
        faults.extend(work.fault);
    }
    if let Some((_, fault)) = faults.into_iter().min_by_key(|(cluster, _)| *cluster) {
        return Err(Error::Fault(Box::new(fault)));
    }
    printed.sort_by_key(|(cluster, _)| *cluster);
    Ok((counters, printed.into_iter().map(|(_, text)| text).collect()))
}
