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

use std::panic::resume_unwind;
use std::sync::atomic::AtomicU64;

use cluster::{Work, Worker};
pub(crate) use loaded::Loaded;
pub(crate) use machine::Run;
pub(crate) use validate::validate;

use crate::counters::Counters;
use crate::error::{Error, Fault, Result};

/// Runs all blocks of a launch on up to `threads` threads of the host.
pub(crate) fn execute(run: &Run<'_>, threads: usize) -> Result<(Counters, String)> {
    let clusters: u64 = run.grid.iter().zip(run.cluster).map(|(&grid, cluster)| u64::from(grid / cluster)).product();
    let next = AtomicU64::new(0);
    let workers = threads.min(usize::try_from(clusters).unwrap_or(usize::MAX)).max(1);
    let works: Vec<Work> = std::thread::scope(|scope| {
        let work = || Worker::work(run, &next, clusters);
        // This thread is one of them; a thread that the host refuses is one less.
        let helpers: Vec<_> =
            (1..workers).filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let own = work();
        let others = helpers.into_iter().map(|helper| helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        others.chain([own]).collect()
    });
    let mut counters = Counters::default();
    let mut printed = Vec::new();
    let mut faults = Vec::new();
    for work in works {
        counters += work.counters;
        printed.extend(work.printed);
        faults.extend(work.fault);
    }
    printed.sort_by_key(|(cluster, _)| *cluster);
    let text =
        |last: u64| printed.iter().take_while(|(cluster, _)| *cluster <= last).map(|(_, text)| &**text).collect();
    match faults.into_iter().min_by_key(|(cluster, _)| *cluster) {
        Some((cluster, fault)) => Err(Error::Fault(Box::new(Fault { printed: text(cluster), ..fault }))),
        None => Ok((counters, text(u64::MAX))),
    }
}
