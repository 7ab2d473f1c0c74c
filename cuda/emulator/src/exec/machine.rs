//! The state of one cluster of blocks while it runs, and the loop that runs a warp.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::barrier::Barrier;
use super::loaded::Loaded;
use super::warp::{Group, Wait, Warp};
use crate::counters::Counters;
use crate::error::FaultKind;
use crate::gpu::Checks;
use crate::memory::{Clocks, Shadow, Shared, Table, bits};
use crate::program::{Kernel, Pc};

/// A launch: what all its blocks have in common.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) loaded: &'a Loaded,
    pub(crate) table: &'a Table,
    /// The tagged addresses of the module's variables.
    pub(crate) variables: &'a [u64],
    pub(crate) params: &'a [u8],
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) cluster: [u32; 3],
    pub(crate) explicit_cluster: bool,
    pub(crate) dynamic_shared: u32,
    /// Where dynamic shared memory begins.
    pub(crate) dynamic_offset: u32,
    /// All shared memory of a block.
    pub(crate) shared_bytes: u32,
    pub(crate) target: u32,
    pub(crate) checks: Checks,
    pub(crate) seed: u64,
    /// The number of this launch on its GPU.
    pub(crate) launch: u64,
    pub(crate) instruction_limit: u64,
    /// The first cluster that failed: those behind it need not go on.
    pub(crate) failed: AtomicU64,
}

impl Run<'_> {
    pub(crate) fn kernel(&self) -> &Kernel {
        &self.loaded.kernel
    }

    /// Threads of a block.
    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// Multiprocessors of the GPU that is played: an A100's, an H100's, an RTX 4090's.
    pub(crate) fn multiprocessors(&self) -> u32 {
        match self.target {
            80 => 108,
            90 => 132,
            _ => 128,
        }
    }
}

/// A block of the cluster that runs.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) index: [u32; 3],
    pub(crate) shared: Shared,
    pub(crate) clocks: Clocks,
    pub(crate) shadow: Option<Shadow>,
    pub(crate) barriers: Vec<Barrier>,
    /// The lanes of each warp: all, and those that exited.
    pub(crate) all: Vec<u32>,
    pub(crate) exited: Vec<u32>,
}

/// A fault while its place is still a lane of the present instruction.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) kind: FaultKind,
    pub(crate) lane: u32,
    pub(crate) what: String,
    /// Another instruction than the present one.
    pub(crate) pc: Option<Pc>,
}

/// The result of a part of an instruction.
pub(crate) type Step<T = ()> = Result<T, Box<Stop>>;

/// A fault of a lane of the present instruction.
#[cold]
pub(crate) fn stop(kind: FaultKind, lane: u32, what: impl Into<String>) -> Box<Stop> {
    Box::new(Stop { kind, lane, what: what.into(), pc: None })
}

/// A fault with its place.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FaultKind,
    /// The block's number in the cluster.
    pub(crate) block: usize,
    pub(crate) warp: usize,
    pub(crate) lane: u32,
    pub(crate) pc: Pc,
    pub(crate) what: String,
}

/// Where a group goes after an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flow {
    /// To the next instruction.
    Next,
    /// To another.
    Jump(Pc),
    /// Only these lanes to the next; the others went elsewhere.
    Rest(u32),
}

/// The state of a cluster without its warps, and what the launch's worker keeps from block to block.
pub(crate) struct Machine<'a> {
    pub(crate) run: &'a Run<'a>,
    /// The cluster's number in the grid.
    pub(crate) cluster: u64,
    pub(crate) blocks: Vec<Block>,
    /// Barriers that all have reached: (block, number).
    pub(crate) opening: Vec<(usize, usize)>,
    /// For each instruction, where it found its last address.
    pub(crate) hints: Vec<u32>,
    pub(crate) counters: Counters,
    /// Instructions of this cluster.
    pub(crate) executed: u64,
    pub(crate) random: u64,
    pub(crate) printed: String,
}

impl Machine<'_> {
    /// The next number of this cluster's sequence (splitmix64).
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Runs a warp for some instructions, or until it waits.
    pub(crate) fn turn(&mut self, warp: &mut Warp, instructions: u32) -> Result<(), Failure> {
        let mut left = instructions;
        while left > 0 && self.opening.is_empty() {
            // Lanes that stay apart for long may wait for each other: then another group than the lowest has its turn.
            let pick = warp.loses_patience().then(|| self.random());
            let Some(group) = warp.take_group(pick) else {
                return self.check_stuck(warp);
            };
            let share = warp.share(left);
            // The lowest group goes on until it reaches the next: so lanes that parted meet again.
            let limit = if pick.is_some() { Pc::MAX } else { warp.lowest_ready() };
            let used = self.go(warp, group, limit, share)?;
            warp.apart += used;
            left -= used;
        }
        Ok(())
    }

    /// Runs a group until it reaches `limit`, waits, parts, or had its share of instructions; how many it used.
    fn go(&mut self, warp: &mut Warp, mut group: Group, limit: Pc, share: u32) -> Result<u32, Failure> {
        let mut used = 0;
        while used < share && group.pc < limit {
            used += 1;
            self.executed += 1;
            warp.clock += 1;
            let limit = self.run.instruction_limit;
            let done = if self.executed > limit {
                let what = format!("the block executed {limit} warp instructions");
                Err(stop(FaultKind::InstructionLimit, Self::first(group.lanes), what))
            } else {
                self.step(warp, group.pc, group.lanes)
            };
            match done {
                Ok(Flow::Next) => group.pc += 1,
                Ok(Flow::Jump(target)) => group.pc = target,
                Ok(Flow::Rest(lanes)) => {
                    group.pc += 1;
                    group.lanes = lanes;
                    break;
                }
                Err(stop) => {
                    let Stop { kind, lane, what, pc } = *stop;
                    let pc = pc.unwrap_or(group.pc);
                    return Err(Failure { kind, block: warp.block, warp: warp.index, lane, pc, what });
                }
            }
        }
        warp.put(group.pc, group.lanes, Wait::Ready);
        Ok(used)
    }

    /// The coordinates of a thread, for messages.
    pub(crate) fn thread_name(&self, warp: usize, lane: u32) -> String {
        let [x, y, z] = super::warp::thread_position(warp as u32 * 32 + lane, self.run.block);
        format!("thread ({x}, {y}, {z})")
    }

    /// "PTX line 12 (kernel.cu:7)", for messages.
    pub(crate) fn line_name(&self, pc: Pc) -> String {
        let kernel = self.run.kernel();
        let Some(line) = kernel.lines.get(pc as usize) else {
            return "an unknown line".into();
        };
        let file = line.source.and_then(|(file, number)| Some((kernel.files.get(file as usize)?, number)));
        match file {
            Some((file, number)) => format!("PTX line {} ({file}:{number})", line.ptx),
            None => format!("PTX line {}", line.ptx),
        }
    }

    /// Whether a cluster before this one failed: then nobody asks for this one.
    pub(crate) fn is_pointless(&self) -> bool {
        self.run.failed.load(Relaxed) < self.cluster
    }

    /// Counts an instruction that lanes execute.
    #[inline]
    pub(crate) fn count(&mut self, pc: Pc, active: u32) {
        let lanes = u64::from(active.count_ones());
        self.counters.warp_instructions += 1;
        self.counters.lane_instructions += lanes;
        self.counters.idle_lanes += 32 - lanes;
        self.run.loaded.costs[pc as usize].add_to(&mut self.counters, lanes);
    }

    /// The first lane of a mask, for faults of all of them.
    pub(crate) fn first(lanes: u32) -> u32 {
        bits(lanes).next().unwrap_or(0)
    }
}
