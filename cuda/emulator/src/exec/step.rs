//! One instruction of a group of lanes.

use super::machine::{Flow, Machine, Step, stop};
use super::warp::{Wait, Warp};
use crate::arith::{self, Operands};
use crate::error::FaultKind::{IllegalInstruction, Trap};
use crate::memory::{UNTAGGED, bits, space_of, tag};
use crate::program::{Alu, Combine, FrameCopy, Op, Pc, Reg, Space, Src, Type};

impl<'a> Machine<'a> {
    /// Executes the instruction at `pc` for `lanes`.
    pub(super) fn step(&mut self, warp: &mut Warp, pc: Pc, lanes: u32) -> Step<Flow> {
        let run = self.run;
        let Some(instruction) = run.loaded.kernel.code.get(pc as usize) else {
            return Err(stop(IllegalInstruction, Self::first(lanes), "the code ends without ret or exit"));
        };
        let active = match instruction.guard {
            None => lanes,
            Some((register, false)) => lanes & warp.predicate(register),
            Some((register, true)) => lanes & !warp.predicate(register),
        };
        self.count(pc, active);
        if active == 0 {
            return Ok(Flow::Next);
        }
        match &instruction.op {
            Op::Alu { alu, dst, reg_bytes, a, b, c, d } => self.alu(warp, alu, *dst, *reg_bytes, [a, b, c, d], active),
            Op::Setp { .. } => self.setp(warp, &instruction.op, active),
            Op::Pack { dst, part_bytes, parts } => self.pack(warp, *dst, *part_bytes, parts, active),
            Op::Unpack { part_bytes, parts, src } => self.unpack(warp, *part_bytes, parts, src, active),
            Op::Load { space, ty, reg_bytes, dst, address, strong } => {
                let addresses = self.addresses(warp, *space, address, active)?;
                self.load(warp, pc, *space, &addresses, (*ty, *reg_bytes, dst, *strong), active)?;
            }
            Op::Store { space, ty, src, address, strong } => {
                let addresses = self.addresses(warp, *space, address, active)?;
                self.store(warp, pc, *space, &addresses, (*ty, src, *strong), active)?;
            }
            Op::Cvta { space, to_generic, bytes, dst, src } => {
                self.cvta(warp, *space, *to_generic, *bytes, *dst, src, active);
            }
            Op::IsSpace { space, dst, src } => self.is_space(warp, *space, *dst, src, active),
            Op::Atomic { space, address, .. } => {
                let addresses = self.addresses(warp, *space, address, active)?;
                self.atomic(warp, pc, &instruction.op, *space, &addresses, active)?;
            }
            Op::Hint => {}
            Op::Fence if run.loaded.fences => self.blocks[warp.block].clocks.fence(warp.index, active),
            Op::Fence => {}
            Op::CopyAsync { .. } => self.copy_async(warp, pc, &instruction.op, active)?,
            Op::CommitGroup => warp.copies.commit(active),
            Op::WaitGroup(count) => self.wait_copies(warp, *count, active),
            Op::Branch { target, uniform } => return self.branch(warp, *target, *uniform, lanes, active),
            Op::BranchIndexed { index, targets, uniform } => {
                return self.branch_indexed(warp, index, (targets, *uniform), lanes, active);
            }
            Op::Call { target, arguments, .. } => {
                copy_frames(warp, arguments, active);
                bits(active).for_each(|lane| warp.calls[lane as usize].push(pc));
                return self.branch(warp, *target, false, lanes, active);
            }
            Op::Return => return self.ret(warp, pc, lanes, active),
            Op::Exit => {
                self.exit(warp, pc, active)?;
                return Ok(Flow::Rest(lanes & !active));
            }
            Op::Printf { format, arguments, result } => self.printf(warp, (*format, *arguments, *result), active)?,
            Op::AssertFail { message, file, line, function } => {
                return Err(self.assert_fail(warp, [*message, *file, *line, *function], Self::first(active)));
            }
            Op::Trap => return Err(stop(Trap, Self::first(active), "trap")),
            Op::ActiveMask { dst } => warp.set(*dst, active, &[u64::from(active); 32]),
            Op::Yield => {}
            Op::Barrier { aligned: false, .. } => {
                self.barrier(warp, pc, active)?;
                return Ok(Flow::Rest(lanes & !active));
            }
            Op::Barrier { .. }
            | Op::LoadMatrix { .. }
            | Op::StoreMatrix { .. }
            | Op::MoveMatrix { .. }
            | Op::Mma { .. }
            | Op::WarpSync { .. }
            | Op::Shuffle { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Redux { .. }
            | Op::Elect { .. } => return self.collective(warp, pc, lanes, active),
        }
        Ok(Flow::Next)
    }

    #[inline]
    fn alu(&mut self, warp: &mut Warp, alu: &Alu, dst: Reg, reg_bytes: u32, sources: [&Src; 4], active: u32) {
        let mut scratch = [[0; 32]; 4];
        let mut out = warp.registers[dst as usize];
        let mut carry = warp.carry;
        let [s0, s1, s2, s3] = &mut scratch;
        let operands = Operands {
            a: self.source(warp, sources[0], s0),
            b: self.source(warp, sources[1], s1),
            c: self.source(warp, sources[2], s2),
            d: self.source(warp, sources[3], s3),
        };
        // The decoder asked whether there is such an instruction.
        arith::eval(alu, operands, reg_bytes, active, &mut carry, &mut out);
        warp.registers[dst as usize] = out;
        warp.carry = carry;
    }

    fn setp(&mut self, warp: &mut Warp, op: &Op, active: u32) {
        let Op::Setp { compare, ty, ftz, combine, p, q, a, b, c } = op else { return };
        let mut scratch = [[0; 32]; 4];
        let [s0, s1, s2, _] = &mut scratch;
        let (a, b) = (self.source(warp, a, s0), self.source(warp, b, s1));
        let (low, high) = arith::compare(*compare, *ty, *ftz, a, b, active);
        let other = combine.map(|_| super::warp::mask_of(self.source(warp, c, s2)));
        let combined = |bits: u32| match (combine, other) {
            (Some(Combine::And), Some(other)) => bits & other,
            (Some(Combine::Or), Some(other)) => bits | other,
            (Some(Combine::Xor), Some(other)) => bits ^ other,
            _ => bits,
        };
        let pairs = matches!(ty, Type::F16x2 | Type::Bf16x2);
        let second = if pairs { high } else { !low };
        if let Some(p) = p {
            warp.set_predicate(*p, active, combined(low));
        }
        if let Some(q) = q {
            warp.set_predicate(*q, active, combined(second));
        }
    }

    fn pack(&mut self, warp: &mut Warp, dst: Reg, part_bytes: u32, parts: &[Src], active: u32) {
        let mut out = [0; 32];
        let mut scratch = [0; 32];
        for (index, part) in (0..).zip(parts) {
            let part = self.source(warp, part, &mut scratch);
            let bits = part_bytes * 8;
            for lane in 0..32 {
                out[lane] |= (part[lane] & low_bits(bits)) << (index * bits);
            }
        }
        warp.set(dst, active, &out);
    }

    fn unpack(&mut self, warp: &mut Warp, part_bytes: u32, parts: &[Option<Reg>], src: &Src, active: u32) {
        let value = *self.source(warp, src, &mut [0; 32]);
        let bits = part_bytes * 8;
        for (index, part) in (0..).zip(parts) {
            if let Some(part) = part {
                warp.set(*part, active, &value.map(|value| value >> (index * bits) & low_bits(bits)));
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one instruction")]
    fn cvta(&mut self, warp: &mut Warp, space: Space, to_generic: bool, bytes: u32, dst: Reg, src: &Src, active: u32) {
        let tag = tag(space);
        let value = *self.source(warp, src, &mut [0; 32]);
        // From generic, only the space's own tag goes: another's stays, and the access that uses it is a fault.
        let convert = |value: u64| match to_generic {
            true => value | tag,
            false if value & !UNTAGGED == tag => value & UNTAGGED,
            false => value,
        };
        warp.set(dst, active, &value.map(|value| convert(value) & low_bits(bytes * 8)));
    }

    fn is_space(&mut self, warp: &mut Warp, space: Space, dst: Reg, src: &Src, active: u32) {
        let value = *self.source(warp, src, &mut [0; 32]);
        let own = value.map(|value| value & !UNTAGGED == tag(space));
        let lies = |lane: u32| match (space, space_of(value[lane as usize])) {
            // What has no tag is global, but no window of another space.
            (Space::Shared, Some(Space::SharedCluster)) => {
                let rank = value[lane as usize] >> 24 & 0xffff_ffff;
                rank == 0 || rank == warp.block as u64 + 1
            }
            _ => own[lane as usize],
        };
        let mask = bits(active).filter(|&lane| lies(lane)).fold(0, |mask, lane| mask | 1 << lane);
        warp.set_predicate(dst, active, mask);
    }

    /// The active lanes go to `target`, the others on.
    fn branch(&mut self, warp: &mut Warp, target: Pc, uniform: bool, lanes: u32, active: u32) -> Step<Flow> {
        if active == lanes {
            return Ok(Flow::Jump(target));
        }
        if uniform {
            return Err(stop(IllegalInstruction, Self::first(active), "bra.uni, but the lanes go different ways"));
        }
        self.counters.divergent_branches += 1;
        warp.put(target, active, Wait::Ready);
        Ok(Flow::Rest(lanes & !active))
    }

    fn branch_indexed(
        &mut self,
        warp: &mut Warp,
        index: &Src,
        (targets, uniform): (&[Pc], bool),
        lanes: u32,
        active: u32,
    ) -> Step<Flow> {
        let index = *self.source(warp, index, &mut [0; 32]);
        let mut left = active;
        let mut ways = u32::from(lanes != active);
        while left != 0 {
            let first = Self::first(left);
            let number = index[first as usize];
            let Some(&target) = usize::try_from(number).ok().and_then(|number| targets.get(number)) else {
                let what = format!("brx.idx with index {number}, of {} targets", targets.len());
                return Err(stop(IllegalInstruction, first, what));
            };
            let same = bits(left).filter(|&lane| index[lane as usize] == number).fold(0, |mask, lane| mask | 1 << lane);
            if same == lanes {
                return Ok(Flow::Jump(target));
            }
            if uniform {
                return Err(stop(IllegalInstruction, first, "brx.idx.uni, but the lanes go different ways"));
            }
            warp.put(target, same, Wait::Ready);
            left &= !same;
            ways += 1;
        }
        self.counters.divergent_branches += u64::from(ways > 1);
        Ok(Flow::Rest(lanes & !active))
    }

    /// Back to each lane's own caller; the end for lanes that are in no function.
    fn ret(&mut self, warp: &mut Warp, pc: Pc, lanes: u32, active: u32) -> Step<Flow> {
        let run = self.run;
        let mut left = active;
        while left != 0 {
            let first = Self::first(left) as usize;
            let caller = warp.calls[first].last().copied();
            let same = bits(left)
                .filter(|&lane| warp.calls[lane as usize].last().copied() == caller)
                .fold(0, |mask, lane| mask | 1 << lane);
            left &= !same;
            let Some(caller) = caller else {
                self.exit(warp, pc, same)?;
                continue;
            };
            bits(same).for_each(|lane| {
                warp.calls[lane as usize].pop();
            });
            if let Op::Call { results, .. } = &run.loaded.kernel.code[caller as usize].op {
                copy_frames(warp, results, same);
            }
            if same == lanes {
                return Ok(Flow::Jump(caller + 1));
            }
            warp.put(caller + 1, same, Wait::Ready);
        }
        Ok(Flow::Rest(lanes & !active))
    }

    /// The end of threads. Others may have waited for just that.
    fn exit(&mut self, warp: &mut Warp, pc: Pc, lanes: u32) -> Step {
        warp.exit(pc, lanes);
        self.blocks[warp.block].exited[warp.index] = warp.exited;
        self.check_barriers(warp.block);
        self.settle(warp)
    }
}

fn copy_frames(warp: &mut Warp, copies: &[FrameCopy], lanes: u32) {
    for copy in copies {
        bits(lanes).for_each(|lane| warp.frame.copy(lane, copy.from, copy.to, copy.bytes));
    }
}

/// A mask of the low `bits` bits.
pub(super) fn low_bits(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}
