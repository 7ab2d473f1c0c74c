//! Instructions that lanes of a warp execute together: they wait until all that they name have come.

use super::machine::{Flow, Machine, Step, stop};
use super::warp::{Wait, Warp, mask_of};
use crate::arith::Lanes;
use crate::error::FaultKind::IllegalInstruction;
use crate::memory::bits;
use crate::program::{Op, Pc, ReduxOp, Shuffle, Src, Type, Vote};

/// Lanes that take part in an instruction, and where each of them stands: mostly one place.
pub(super) type Parts = Vec<(Pc, u32)>;

/// All lanes of some parts.
pub(super) fn lanes_of(parts: &[(Pc, u32)]) -> u32 {
    parts.iter().fold(0, |mask, (_, lanes)| mask | lanes)
}

impl<'a> Machine<'a> {
    /// Executes the instruction if all that take part are here; else its lanes wait.
    pub(super) fn collective(&mut self, warp: &mut Warp, pc: Pc, lanes: u32, active: u32) -> Step<Flow> {
        let op = self.op(pc);
        let complete = match member_mask(op) {
            None => active == warp.live(),
            Some(mask) => {
                let mut scratch = [0; 32];
                let masks = self.source(warp, mask, &mut scratch);
                let first = masks[Self::first(active) as usize] as u32;
                if let Some(lane) = bits(active).find(|&lane| masks[lane as usize] as u32 >> lane & 1 == 0) {
                    let mask = masks[lane as usize];
                    let what = format!("{} with mask {mask:#010x}, which lacks the lane itself ({lane})", name(op));
                    return Err(stop(IllegalInstruction, lane, what));
                }
                first & warp.live() == active && bits(active).all(|lane| masks[lane as usize] as u32 == first)
            }
        };
        if complete && !matches!(op, Op::Barrier { .. }) {
            self.execute(warp, &[(pc, active)])?;
            return Ok(Flow::Next);
        }
        warp.put(pc, active, Wait::Warp);
        self.settle(warp)?;
        Ok(Flow::Rest(lanes & !active))
    }

    pub(super) fn op(&self, pc: Pc) -> &'a Op {
        let run = self.run;
        &run.loaded.kernel.code[pc as usize].op
    }

    /// Executes what waits in a warp and now has all its lanes.
    pub(super) fn settle(&mut self, warp: &mut Warp) -> Step {
        while let Some(parts) = self.complete_set(warp) {
            let pc = parts[0].0;
            warp.take_waiting(lanes_of(&parts));
            let done = match self.op(pc) {
                Op::Barrier { .. } => self.barrier(warp, pc, lanes_of(&parts)),
                _ => self.execute(warp, &parts).map(|()| {
                    parts.iter().for_each(|&(pc, lanes)| warp.put(pc + 1, lanes, Wait::Ready));
                }),
            };
            done.map_err(|mut stop| {
                let part = parts.iter().find(|(_, lanes)| lanes >> stop.lane & 1 == 1);
                stop.pc.get_or_insert(part.map_or(pc, |part| part.0));
                stop
            })?;
        }
        Ok(())
    }

    /// Waiting lanes that are all that their instruction asks for.
    fn complete_set(&self, warp: &Warp) -> Option<Parts> {
        for group in warp.waits_for_warp() {
            let op = self.op(group.pc);
            let Some(mask) = member_mask(op) else {
                let there =
                    warp.waits_for_warp().filter(|other| other.pc == group.pc).fold(0, |m, other| m | other.lanes);
                if there == warp.live() {
                    return Some(vec![(group.pc, there)]);
                }
                continue;
            };
            for lane in bits(group.lanes) {
                let wanted = self.value(warp, mask, lane) as u32;
                let part = |other: &super::warp::Group| {
                    let other_op = self.op(other.pc);
                    let other_mask = member_mask(other_op).filter(|_| same_kind(op, other_op))?;
                    let same = |&lane: &u32| self.value(warp, other_mask, lane) as u32 == wanted;
                    let lanes = bits(other.lanes).filter(same).fold(0, |mask, lane| mask | 1 << lane);
                    (lanes != 0).then_some((other.pc, lanes))
                };
                let mut parts: Parts = warp.waits_for_warp().filter_map(part).collect();
                // The group itself comes first.
                parts.sort_by_key(|(pc, _)| *pc != group.pc);
                if lanes_of(&parts) == wanted & warp.live() {
                    return Some(parts);
                }
            }
        }
        None
    }

    /// The value of an operand in all lanes that take part, each from its own instruction.
    pub(super) fn gather(
        &self,
        warp: &Warp,
        parts: &[(Pc, u32)],
        operand: impl Fn(&'a Op) -> Option<&'a Src>,
    ) -> Lanes {
        let mut out = [0; 32];
        let mut scratch = [0; 32];
        for &(pc, lanes) in parts {
            if let Some(src) = operand(self.op(pc)) {
                let values = self.source(warp, src, &mut scratch);
                bits(lanes).for_each(|lane| out[lane as usize] = values[lane as usize]);
            }
        }
        out
    }

    fn execute(&mut self, warp: &mut Warp, parts: &[(Pc, u32)]) -> Step {
        match self.op(parts[0].0) {
            Op::WarpSync { .. } => {
                self.blocks[warp.block].clocks.warp_sync(warp.index, lanes_of(parts), warp.all);
                Ok(())
            }
            Op::Shuffle { mode, .. } => self.shuffle(warp, *mode, parts),
            Op::Vote { vote, .. } => {
                self.vote(warp, *vote, parts);
                Ok(())
            }
            Op::Match { all, ty, .. } => {
                self.matches(warp, *all, *ty, parts);
                Ok(())
            }
            Op::Redux { op, ty, .. } => {
                self.redux(warp, *op, *ty, parts);
                Ok(())
            }
            Op::Elect { .. } => {
                let leader = lanes_of(parts).trailing_zeros();
                for &(pc, lanes) in parts {
                    if let Op::Elect { dst, elected, .. } = self.op(pc) {
                        warp.set_predicate(*elected, lanes, 1 << leader);
                        if let Some(dst) = dst {
                            warp.set(*dst, lanes, &[u64::from(leader); 32]);
                        }
                    }
                }
                Ok(())
            }
            _ => self.matrix(warp, parts[0].0, parts[0].1),
        }
    }

    fn shuffle(&mut self, warp: &mut Warp, mode: Shuffle, parts: &[(Pc, u32)]) -> Step {
        let operand = |which: usize| {
            move |op: &'a Op| match op {
                Op::Shuffle { a, b, c, .. } => Some([a, b, c][which]),
                _ => None,
            }
        };
        let [values, distances, clamps] = [0, 1, 2].map(|which| self.gather(warp, parts, operand(which)));
        let all = lanes_of(parts);
        let mut out = [0; 32];
        let mut in_range = 0;
        for lane in bits(all) {
            let (distance, clamp) = (distances[lane as usize] as u32 & 31, clamps[lane as usize] as u32);
            let segment = clamp >> 8 & 31;
            let low = lane & segment;
            let limit = low | clamp & 31 & !segment;
            // As the ISA has it; `None` is out of the segment, and the lane then reads itself.
            let from = match mode {
                Shuffle::Up => lane.checked_sub(distance).filter(|&from| from >= limit),
                Shuffle::Down => Some(lane + distance).filter(|&from| from <= limit),
                Shuffle::Bfly => Some(lane ^ distance).filter(|&from| from <= limit),
                Shuffle::Idx => Some(low | distance & !segment).filter(|&from| from <= limit),
            };
            in_range |= u32::from(from.is_some()) << lane;
            let from = from.unwrap_or(lane);
            if all >> from & 1 == 0 {
                let state = match (warp.all >> from & 1, warp.exited >> from & 1) {
                    (0, _) => "the block has no such thread",
                    (_, 1) => "that thread has exited",
                    _ => "the mask does not name it",
                };
                let what = format!("shfl.sync reads lane {from}, whose value is not defined: {state}");
                return Err(stop(IllegalInstruction, lane, what));
            }
            out[lane as usize] = values[from as usize];
        }
        for &(pc, lanes) in parts {
            if let Op::Shuffle { dst, in_range: predicate, .. } = self.op(pc) {
                if let Some(dst) = dst {
                    warp.set(*dst, lanes, &out);
                }
                if let Some(predicate) = predicate {
                    warp.set_predicate(*predicate, lanes, in_range);
                }
            }
        }
        Ok(())
    }

    fn vote(&mut self, warp: &mut Warp, vote: Vote, parts: &[(Pc, u32)]) {
        let all = lanes_of(parts);
        let predicate = |op: &'a Op| match op {
            Op::Vote { predicate, .. } => Some(predicate),
            _ => None,
        };
        let held = mask_of(&self.gather(warp, parts, predicate)) & all;
        for &(pc, lanes) in parts {
            let Op::Vote { dst, .. } = self.op(pc) else { continue };
            let yes = match vote {
                Vote::All => held == all,
                Vote::Any => held != 0,
                Vote::Uni => held == 0 || held == all,
                Vote::Ballot => {
                    warp.set(*dst, lanes, &[u64::from(held); 32]);
                    continue;
                }
            };
            warp.set_predicate(*dst, lanes, if yes { u32::MAX } else { 0 });
        }
    }

    fn matches(&mut self, warp: &mut Warp, all: bool, ty: Type, parts: &[(Pc, u32)]) {
        let members = lanes_of(parts);
        let value = |op: &'a Op| match op {
            Op::Match { a, .. } => Some(a),
            _ => None,
        };
        let width = super::step::low_bits(ty.bytes() * 8);
        let values = self.gather(warp, parts, value).map(|value| value & width);
        let equal_to = |value: u64| {
            bits(members).filter(|&lane| values[lane as usize] == value).fold(0, |m, lane| m | 1u32 << lane)
        };
        let mut out = [0; 32];
        for lane in bits(members) {
            let equal = equal_to(values[lane as usize]);
            out[lane as usize] = u64::from(if all && equal != members { 0 } else { equal });
        }
        let agree = bits(members).all(|lane| out[lane as usize] == u64::from(members));
        for &(pc, lanes) in parts {
            if let Op::Match { dst, equal, .. } = self.op(pc) {
                if let Some(dst) = dst {
                    warp.set(*dst, lanes, &out);
                }
                if let Some(equal) = equal {
                    warp.set_predicate(*equal, lanes, if agree { u32::MAX } else { 0 });
                }
            }
        }
    }

    fn redux(&mut self, warp: &mut Warp, op: ReduxOp, ty: Type, parts: &[(Pc, u32)]) {
        let value = |op: &'a Op| match op {
            Op::Redux { a, .. } => Some(a),
            _ => None,
        };
        let values = self.gather(warp, parts, value);
        let signed = ty.is_signed();
        let combine = |x: u32, y: u32| match op {
            ReduxOp::Add => x.wrapping_add(y),
            ReduxOp::And => x & y,
            ReduxOp::Or => x | y,
            ReduxOp::Xor => x ^ y,
            ReduxOp::Min if signed => (x as i32).min(y as i32) as u32,
            ReduxOp::Max if signed => (x as i32).max(y as i32) as u32,
            ReduxOp::Min => x.min(y),
            ReduxOp::Max => x.max(y),
        };
        let all = bits(lanes_of(parts)).map(|lane| values[lane as usize] as u32);
        let value = u64::from(all.reduce(combine).unwrap_or(0));
        for &(pc, lanes) in parts {
            if let Op::Redux { dst, .. } = self.op(pc) {
                warp.set(*dst, lanes, &[value; 32]);
            }
        }
    }
}

/// The lanes that an instruction names; `None` for an aligned one, which all of the warp execute at the same place.
fn member_mask(op: &Op) -> Option<&Src> {
    match op {
        Op::WarpSync { mask }
        | Op::Shuffle { mask, .. }
        | Op::Vote { mask, .. }
        | Op::Match { mask, .. }
        | Op::Redux { mask, .. }
        | Op::Elect { mask, .. } => Some(mask),
        _ => None,
    }
}

/// Whether lanes at two instructions meet: the same name and qualifiers.
fn same_kind(a: &Op, b: &Op) -> bool {
    match (a, b) {
        (Op::WarpSync { .. }, Op::WarpSync { .. }) | (Op::Elect { .. }, Op::Elect { .. }) => true,
        (Op::Shuffle { mode, .. }, Op::Shuffle { mode: other, .. }) => mode == other,
        (Op::Vote { vote, .. }, Op::Vote { vote: other, .. }) => vote == other,
        (Op::Match { all, ty, .. }, Op::Match { all: other, ty: other_ty, .. }) => all == other && ty == other_ty,
        (Op::Redux { op, ty, .. }, Op::Redux { op: other, ty: other_ty, .. }) => op == other && ty == other_ty,
        _ => false,
    }
}

/// What messages call an instruction of several lanes.
pub(super) fn name(op: &Op) -> &'static str {
    match op {
        Op::WarpSync { .. } => "bar.warp.sync",
        Op::Shuffle { .. } => "shfl.sync",
        Op::Vote { .. } => "vote.sync",
        Op::Match { .. } => "match.sync",
        Op::Redux { .. } => "redux.sync",
        Op::Elect { .. } => "elect.sync",
        Op::LoadMatrix { .. } => "ldmatrix",
        Op::StoreMatrix { .. } => "stmatrix",
        Op::MoveMatrix { .. } => "movmatrix",
        Op::Mma { .. } => "mma.sync",
        Op::Barrier { .. } => "bar",
        _ => "an instruction",
    }
}
