//! `bar` and `barrier`: threads of a block that meet.

use super::machine::{Block, Machine, Step, stop};
use super::warp::{Wait, Warp, mask_of};
use crate::error::FaultKind::{BarrierDivergence, IllegalInstruction};
use crate::memory::{Arrival, bits};
use crate::program::{BarrierKind, Op, Pc, Src};

/// Barriers of a block.
pub(crate) const BARRIERS: u64 = 16;

/// One of a block's 16 barriers.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    /// The instruction that came first since it last opened; `None` while nobody is there.
    pub(crate) first: Option<Pc>,
    /// The thread count that the instruction named; `None` is all of the block.
    pub(crate) threads: Option<u32>,
    reduces: bool,
    /// Lanes of each warp that are there.
    pub(crate) arrived: Vec<u32>,
    /// What the counted ones brought for the order of accesses.
    arrivals: Vec<Arrival>,
    /// Some went on without waiting.
    passed: bool,
    /// How many predicates held.
    held: u32,
}

/// What the barrier of an instruction is asked for.
struct Call {
    id: usize,
    kind: BarrierKind,
    threads: Option<u32>,
    lanes: u32,
    /// Lanes whose predicate holds.
    held: u32,
}

impl<'a> Machine<'a> {
    /// `bar.sync` and its kin for the lanes of a group that are ready for it (for an aligned one: all of the warp).
    pub(super) fn barrier(&mut self, warp: &mut Warp, pc: Pc, lanes: u32) -> Step {
        let run = self.run;
        let Op::Barrier { kind, id, threads, predicate, .. } = &run.loaded.kernel.code[pc as usize].op else {
            return Ok(());
        };
        let held = mask_of(self.source(warp, predicate, &mut [0; 32]));
        let mut left = lanes;
        while left != 0 {
            // Lanes may name different barriers; those that name the same come together.
            let first = Self::first(left);
            let key = |machine: &Self, lane| (machine.value(warp, id, lane), machine.count_of(warp, threads, lane));
            let (number, count) = key(self, first);
            let same =
                bits(left).filter(|&lane| key(self, lane) == (number, count)).fold(0, |mask, lane| mask | 1 << lane);
            left &= !same;
            if number >= BARRIERS {
                return Err(stop(IllegalInstruction, first, format!("barrier {number}: there are 16, from 0")));
            }
            if let Some(count) = count.filter(|&count| count == 0 || count % 32 != 0 || count > 1024) {
                let what = format!("a barrier of {count} threads: the count must be a multiple of 32, up to 1024");
                return Err(stop(IllegalInstruction, first, what));
            }
            let threads = count.map(|count| count as u32);
            let call = Call { id: number as usize, kind: *kind, threads, lanes: same, held: held & same };
            self.arrive(warp, pc, &call)?;
            match kind {
                BarrierKind::Arrive => warp.put(pc + 1, same, Wait::Ready),
                _ => warp.put(pc, same, Wait::Barrier(call.id)),
            }
        }
        Ok(())
    }

    fn count_of(&self, warp: &Warp, threads: &Option<Src>, lane: u32) -> Option<u64> {
        threads.as_ref().map(|threads| self.value(warp, threads, lane))
    }

    /// Lanes come to a barrier; it is noted for opening when they were the last.
    fn arrive(&mut self, warp: &Warp, pc: Pc, call: &Call) -> Step {
        let first = Self::first(call.lanes);
        let block = &mut self.blocks[warp.block];
        let barrier = &mut block.barriers[call.id];
        let reduces = !matches!(call.kind, BarrierKind::Sync | BarrierKind::Arrive);
        if let Some(other) = barrier.first {
            let id = call.id;
            if barrier.threads != call.threads {
                let count = |threads: Option<u32>| threads.map_or("all".into(), |threads| threads.to_string());
                let (here, there) = (count(call.threads), count(barrier.threads));
                let line = self.line_name(other);
                let what = format!("barrier {id} of {here} threads here, of {there} threads at {line}");
                return Err(stop(BarrierDivergence, first, what));
            }
            if barrier.reduces != reduces {
                let what = format!("barrier {id} is red here and sync or arrive at {}", self.line_name(other));
                return Err(stop(BarrierDivergence, first, what));
            }
            let again = barrier.arrived[warp.index] & call.lanes;
            if again != 0 {
                let what = format!(
                    "the thread is at barrier {id} already (since {}), which has not opened",
                    self.line_name(other)
                );
                return Err(stop(BarrierDivergence, Self::first(again), what));
            }
        } else {
            let arrived = vec![0; block.all.len()];
            *barrier = Barrier { first: Some(pc), threads: call.threads, reduces, arrived, ..Barrier::default() };
        }
        barrier.arrived[warp.index] |= call.lanes;
        barrier.held += call.held.count_ones();
        barrier.passed |= call.kind == BarrierKind::Arrive;
        if call.threads.is_some() {
            barrier.arrivals.push(block.clocks.arrive(warp.index, call.lanes));
        }
        if call.kind != BarrierKind::Arrive {
            self.counters.barriers += 1;
        }
        self.check_open(warp.block, call.id);
        Ok(())
    }

    /// Notes a barrier for opening if all that it waits for are there.
    fn check_open(&mut self, block: usize, id: usize) {
        let Block { barriers, all, exited, .. } = &self.blocks[block];
        let barrier = &barriers[id];
        let lenient = !self.run.checks.exits_at_barriers;
        let there = |(warp, &arrived): (usize, &u32)| arrived | if lenient { exited[warp] } else { 0 };
        let full = match barrier.threads {
            None => barrier.arrived.iter().enumerate().zip(all).all(|(arrived, &all)| there(arrived) == all),
            Some(threads) => barrier.count(all) >= threads,
        };
        if barrier.first.is_some() && full && !self.opening.contains(&(block, id)) {
            self.opening.push((block, id));
        }
    }

    /// After threads ended: barriers that count only the living may open.
    pub(super) fn check_barriers(&mut self, block: usize) {
        if !self.run.checks.exits_at_barriers {
            (0..BARRIERS as usize).for_each(|id| self.check_open(block, id));
        }
    }

    /// Opens a barrier: all that wait there go on.
    pub(super) fn open(&mut self, block_index: usize, id: usize, warps: &mut [Warp]) {
        let run = self.run;
        let block = &mut self.blocks[block_index];
        let barrier = std::mem::take(&mut block.barriers[id]);
        let whole = barrier.arrived.iter().zip(&block.all).all(|(arrived, all)| arrived == all);
        if barrier.threads.is_none() || whole && !barrier.passed {
            block.clocks.block_sync();
        } else {
            let waiting = |group: &&super::warp::Group| group.wait == Wait::Barrier(id);
            let lanes = |warp: &Warp| warp.groups.iter().filter(waiting).fold(0, |mask, group| mask | group.lanes);
            let waiting = warps.iter().filter(|warp| warp.block == block_index).map(|warp| (warp.index, lanes(warp)));
            block.clocks.release(&barrier.arrivals, waiting);
        }
        let arrived: u32 = barrier.arrived.iter().map(|lanes| lanes.count_ones()).sum();
        for warp in warps.iter_mut().filter(|warp| warp.block == block_index) {
            for at in 0..warp.groups.len() {
                let group = &mut warp.groups[at];
                if group.wait != Wait::Barrier(id) {
                    continue;
                }
                let (pc, lanes) = (group.pc, group.lanes);
                group.wait = Wait::Ready;
                group.pc += 1;
                if let Op::Barrier { kind, dst: Some(dst), .. } = run.loaded.kernel.code[pc as usize].op {
                    let value = match kind {
                        BarrierKind::RedPopc => u64::from(barrier.held),
                        BarrierKind::RedAnd => u64::from(barrier.held == arrived),
                        _ => u64::from(barrier.held > 0),
                    };
                    warp.set(dst, lanes, &[value; 32]);
                }
            }
        }
    }
}

impl Barrier {
    /// How many threads are there; a warp that the block does not fill counts whole once all that it has are there.
    pub(crate) fn count(&self, all: &[u32]) -> u32 {
        let count = |(&arrived, &all): (&u32, &u32)| if arrived == all { 32 } else { arrived.count_ones() };
        self.arrived.iter().zip(all).map(count).sum()
    }
}
