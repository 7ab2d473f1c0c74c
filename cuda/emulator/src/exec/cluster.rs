//! A cluster of blocks from its first instruction to its last.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::barrier::{BARRIERS, Barrier};
use super::machine::{Block, Failure, Machine, Run};
use super::warp::{Warp, thread_position};
use crate::counters::Counters;
use crate::error::Fault;
use crate::memory::{Clocks, Shadow, Shared, Strong};
use crate::program::Pc;

/// What a worker keeps from cluster to cluster.
pub(crate) struct Worker<'a> {
    machine: Machine<'a>,
    warps: Vec<Warp>,
}

/// What a worker's clusters did together.
pub(crate) struct Work {
    pub(crate) counters: Counters,
    /// What each cluster printed, with its number.
    pub(crate) printed: Vec<(u64, String)>,
    /// The first cluster that failed, and how.
    pub(crate) fault: Option<(u64, Fault)>,
}

impl<'a> Worker<'a> {
    fn new(run: &'a Run<'a>) -> Self {
        let blocks = run.cluster.iter().product::<u32>() as usize;
        let per_block = run.threads().div_ceil(32) as usize;
        let watched = run.shared_bytes > 0 && (run.checks.races || run.checks.async_copies);
        let loaded = run.loaded;
        let marks = Strong { atomics: loaded.shared_atomics, loads: loaded.strong_loads };
        let shadow = || Shadow::new(run.shared_bytes, loaded.unit_shift, per_block, marks);
        let block = || Block {
            index: [0; 3],
            shared: Shared::new(run.shared_bytes),
            clocks: Clocks::new(per_block),
            shadow: watched.then(shadow),
            barriers: (0..BARRIERS).map(|_| Barrier::default()).collect(),
            all: Vec::new(),
            exited: vec![0; per_block],
        };
        let warp = |index| Warp::new(run.kernel(), index / per_block, index % per_block, run.block);
        let warps: Vec<Warp> = (0..blocks * per_block).map(warp).collect();
        let all: Vec<u32> = warps[..per_block].iter().map(|warp| warp.all).collect();
        let machine = Machine {
            run,
            cluster: 0,
            blocks: (0..blocks).map(|_| Block { all: all.clone(), ..block() }).collect(),
            opening: Vec::new(),
            hints: vec![0; loaded.kernel.code.len()],
            counters: Counters::default(),
            executed: 0,
            random: 0,
            printed: String::new(),
        };
        Self { machine, warps }
    }

    /// Runs clusters, whichever is next, until none is left or one failed.
    pub(crate) fn work(run: &'a Run<'a>, next: &AtomicU64, clusters: u64) -> Work {
        let mut worker = Self::new(run);
        let mut printed = Vec::new();
        let mut fault = None;
        loop {
            let cluster = next.fetch_add(1, Relaxed);
            if cluster >= clusters || run.failed.load(Relaxed) < cluster {
                break;
            }
            worker.begin(cluster);
            let done = worker.run();
            let text = std::mem::take(&mut worker.machine.printed);
            if !text.is_empty() {
                printed.push((cluster, text));
            }
            if let Err(failure) = done {
                run.failed.fetch_min(cluster, Relaxed);
                fault = Some((cluster, worker.fault(failure)));
                break;
            }
        }
        Work { counters: worker.machine.counters, printed, fault }
    }

    /// Puts everything in its first state for a cluster.
    fn begin(&mut self, cluster: u64) {
        let run = self.machine.run;
        self.machine.cluster = cluster;
        self.machine.executed = 0;
        self.machine.random = run.seed ^ cluster.wrapping_mul(0xd134_2543_de82_ef95);
        self.machine.opening.clear();
        let clusters = [0, 1].map(|axis| u64::from(run.grid[axis] / run.cluster[axis]));
        let position =
            [cluster % clusters[0], cluster / clusters[0] % clusters[1], cluster / (clusters[0] * clusters[1])];
        for (rank, block) in self.machine.blocks.iter_mut().enumerate() {
            let inside = thread_position(rank as u32, run.cluster);
            block.index = std::array::from_fn(|axis| position[axis] as u32 * run.cluster[axis] + inside[axis]);
            block.shared.renew();
            block.clocks.block_sync();
            if let Some(shadow) = &mut block.shadow {
                shadow.renew();
            }
            block.barriers.iter_mut().for_each(|barrier| *barrier = Barrier::default());
            block.exited.fill(0);
        }
        self.warps.iter_mut().for_each(Warp::renew);
    }

    /// Runs the warps in turns until all threads exited.
    fn run(&mut self) -> Result<(), Failure> {
        let mut order: Vec<usize> = (0..self.warps.len()).collect();
        loop {
            self.shuffle(&mut order);
            let mut any = false;
            for &index in &order {
                if self.warps[index].is_ready() {
                    any = true;
                    let instructions = 128 + (self.machine.random() % 1024) as u32;
                    self.machine.turn(&mut self.warps[index], instructions)?;
                    self.open_barriers();
                }
            }
            if self.machine.is_pointless() || self.warps.iter().all(|warp| warp.live() == 0) {
                return Ok(());
            }
            if !any {
                return Err(self.machine.stuck(&self.warps));
            }
        }
    }

    fn open_barriers(&mut self) {
        while let Some((block, id)) = self.machine.opening.pop() {
            self.machine.open(block, id, &mut self.warps);
        }
    }

    /// Another order of the warps, by the seed (Fisher-Yates).
    fn shuffle(&mut self, order: &mut [usize]) {
        for last in (1..order.len()).rev() {
            let other = (self.machine.random() % (last as u64 + 1)) as usize;
            order.swap(last, other);
        }
    }

    /// A failure with all that a reader needs.
    fn fault(&self, failure: Failure) -> Fault {
        let run = self.machine.run;
        let kernel = run.kernel();
        let line = kernel.lines.get(failure.pc as usize).copied().unwrap_or_default();
        let named = |(file, number): (u32, u32)| Some((kernel.files.get(file as usize)?.clone(), number));
        Fault {
            kind: failure.kind,
            kernel: kernel.name.clone(),
            function: function_at(&kernel.functions, failure.pc).filter(|name| *name != kernel.name),
            block: self.machine.blocks[failure.block].index,
            thread: thread_position(failure.warp as u32 * 32 + failure.lane, run.block),
            ptx_line: line.ptx,
            source: line.source.and_then(named),
            caller: line.caller.and_then(named),
            what: failure.what,
            printed: String::new(),
        }
    }
}

/// The function that an instruction belongs to.
fn function_at(functions: &[(Pc, String)], pc: Pc) -> Option<String> {
    let before = functions.iter().filter(|(first, _)| *first <= pc);
    before.max_by_key(|(first, _)| *first).map(|(_, name)| name.clone())
}
