//! When nobody can go on: who waits for what, and whose fault it is.

use std::fmt::Write;

use super::collective::name;
use super::machine::{Failure, Machine};
use super::warp::{Group, Wait, Warp};
use crate::error::FaultKind::{BarrierDivergence, Deadlock};
use crate::memory::bits;
use crate::program::Op;

impl Machine<'_> {
    /// A warp whose lanes all wait for each other, for what cannot come.
    pub(super) fn check_stuck(&self, warp: &Warp) -> Result<(), Failure> {
        let all_within = !warp.groups.is_empty() && warp.groups.iter().all(|group| group.wait == Wait::Warp);
        if all_within { Err(self.stuck(std::slice::from_ref(warp))) } else { Ok(()) }
    }

    /// The fault of warps of which none can go on.
    pub(super) fn stuck(&self, warps: &[Warp]) -> Failure {
        let waiting = || warps.iter().flat_map(|warp| warp.groups.iter().map(move |group| (warp, group)));
        let aligned = waiting().find(|(_, group)| group.wait == Wait::Warp && self.is_barrier(group));
        let uncounted = waiting().find(|(warp, group)| self.is_uncounted(warp, group));
        // All at one barrier with a count: the others have exited.
        let place = waiting().map(|(warp, group)| (warp.block, group.wait)).next();
        let same = waiting().all(|(warp, group)| Some((warp.block, group.wait)) == place);
        let one_barrier = same && place.is_some_and(|(_, wait)| wait != Wait::Warp);
        let first = aligned.or(uncounted).or_else(|| waiting().next());
        let diverges = aligned.is_some() || uncounted.is_some() || one_barrier;
        let Some((warp, group)) = first else {
            let what = "no thread can go on".into();
            return Failure { kind: Deadlock, block: 0, warp: 0, lane: 0, pc: 0, what };
        };
        let kind = if diverges { BarrierDivergence } else { Deadlock };
        Failure {
            kind,
            block: warp.block,
            warp: warp.index,
            lane: Self::first(group.lanes),
            pc: group.pc,
            what: self.roll_call(warps),
        }
    }

    fn is_barrier(&self, group: &Group) -> bool {
        matches!(self.op(group.pc), Op::Barrier { .. })
    }

    /// Whether lanes wait for all threads of the block.
    fn is_uncounted(&self, warp: &Warp, group: &Group) -> bool {
        match group.wait {
            Wait::Barrier(id) => self.blocks[warp.block].barriers[id].threads.is_none(),
            _ => false,
        }
    }

    /// Who waits where, who has exited where.
    fn roll_call(&self, warps: &[Warp]) -> String {
        let mut places: Vec<(String, u32, String)> = Vec::new();
        let mut add = |warp: &Warp, lanes: u32, place: String| {
            let Some(first) = bits(lanes).next() else { return };
            match places.iter_mut().find(|(known, ..)| *known == place) {
                Some((_, count, _)) => *count += lanes.count_ones(),
                None => places.push((place, lanes.count_ones(), self.thread_name(warp.index, first))),
            }
        };
        for warp in warps {
            for group in &warp.groups {
                let line = self.line_name(group.pc);
                let op = self.op(group.pc);
                let place = match group.wait {
                    Wait::Barrier(id) => {
                        let block = &self.blocks[warp.block];
                        let barrier = &block.barriers[id];
                        let sum = |lanes: &[u32]| lanes.iter().map(|lanes| lanes.count_ones()).sum();
                        let (there, wanted): (u32, u32) = match barrier.threads {
                            None => (sum(&barrier.arrived), sum(&block.all)),
                            Some(threads) => (barrier.count(&block.all), threads),
                        };
                        format!("at barrier {id}, {there} of {wanted} threads there, {line}")
                    }
                    Wait::Warp => format!("for lanes of its warp at {}, {line}", name(op)),
                    Wait::Ready => format!("for nothing, {line}"),
                };
                add(warp, group.lanes, place);
            }
            for lane in bits(warp.exited) {
                let line = self.line_name(warp.exits[lane as usize]);
                add(warp, 1 << lane, format!("no more: exited, {line}"));
            }
        }
        let mut text = String::from("nobody can go on");
        for (place, count, first) in &places {
            let others = if *count > 1 { format!(" and {} others", count - 1) } else { String::new() };
            // Writing to a string does not fail.
            let _ = write!(text, "; {first}{others} wait{} {place}", if *count > 1 { "" } else { "s" });
        }
        text
    }
}
