//! Shared memory as lanes see it: their own block's, or another block's of the cluster; bytes that nobody wrote, and races.

use super::access::{Loaded, Stored, check_place};
use super::machine::{Block, Machine, Step, stop};
use super::traffic;
use super::warp::Warp;
use crate::arith::Lanes;
use crate::error::FaultKind::{AsyncCopy, OutOfBounds, Race, Uninitialised};
use crate::memory::{Clash, Clocks, Now, Touch, bits};
use crate::program::{Op, Pc, Src, Type};

/// Where an address in shared memory lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The block's number in the cluster.
    pub(super) block: usize,
    pub(super) offset: u32,
}

/// How an instruction touches shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Load,
    StrongLoad,
    Store,
    StrongStore,
    Atomic,
    /// An asynchronous copy sets out.
    Issue,
    /// It was waited for.
    Land,
}

impl How {
    fn verb(self) -> &'static str {
        match self {
            How::Load | How::StrongLoad => "a load",
            How::Store | How::StrongStore => "a store",
            How::Atomic => "an atomic",
            How::Issue | How::Land => "an asynchronous copy",
        }
    }
}

impl Machine<'_> {
    /// Where a lane's access lies, once it is aligned and in bounds.
    pub(super) fn shared_place(&self, warp: &Warp, lane: u32, what: &str, address: u64, bytes: u32) -> Step<Place> {
        let rank = address >> 24;
        let block = if rank == 0 { warp.block } else { rank as usize - 1 };
        let offset = address & 0xff_ffff;
        let Some(target) = self.blocks.get(block) else {
            let blocks = self.blocks.len();
            let what = format!("{what} at {address:#x} in shared memory, block {block} of a cluster of {blocks}");
            return Err(stop(OutOfBounds, lane, what));
        };
        let size = target.shared.bytes();
        check_place(lane, what, offset, bytes.into(), size.into(), "shared memory").map_err(|mut stop| {
            stop.what += &self.near(offset as u32);
            stop
        })?;
        Ok(Place { block, offset: offset as u32 })
    }

    /// Where each lane's access lies.
    pub(super) fn shared_places(
        &self,
        warp: &Warp,
        how: How,
        addresses: &Lanes,
        bytes: u32,
        active: u32,
    ) -> Step<[Place; 32]> {
        let size = u64::from(self.blocks[warp.block].shared.bytes());
        let mut places = addresses.map(|address| Place { block: warp.block, offset: address as u32 });
        let (mut high, mut any) = (0, 0);
        for lane in bits(active) {
            high = high.max(addresses[lane as usize]);
            any |= addresses[lane as usize];
        }
        let aligned = any & u64::from(bytes - 1) == 0;
        if aligned && high < size && u64::from(bytes) <= size - high {
            return Ok(places);
        }
        // Another block's memory, or a fault.
        for lane in bits(active) {
            places[lane as usize] = self.shared_place(warp, lane, how.verb(), addresses[lane as usize], bytes)?;
        }
        Ok(places)
    }

    /// The variable at or before an offset of shared memory, for messages.
    fn near(&self, offset: u32) -> String {
        let variables = &self.run.kernel().shared_variables;
        let before = variables.iter().filter(|(_, start, _)| *start <= offset).max_by_key(|(_, start, _)| *start);
        match before {
            Some((name, start, bytes)) if offset - start < *bytes => format!(" ({name} + {})", offset - start),
            _ if self.run.dynamic_shared > 0 && offset >= self.run.dynamic_offset => {
                format!(" (dynamic shared memory + {})", offset - self.run.dynamic_offset)
            }
            Some((name, start, bytes)) => format!(" ({} bytes behind {name} of {bytes} bytes)", offset - start - bytes),
            None => String::new(),
        }
    }

    /// Checks that somebody wrote the bytes that lanes read.
    pub(super) fn check_shared_written(&self, how: How, places: &[Place; 32], bytes: u32, active: u32) -> Step {
        if !self.run.checks.uninitialised {
            return Ok(());
        }
        for lane in bits(active) {
            let Place { block, offset } = places[lane as usize];
            if let Some(missing) = self.blocks[block].shared.first_missing(offset, bytes) {
                let what = format!(
                    "{} of {bytes} bytes at {offset:#x} in shared memory{}: nobody wrote byte {missing} of it",
                    how.verb(),
                    self.near(offset)
                );
                return Err(stop(Uninitialised, lane, what));
            }
        }
        Ok(())
    }

    /// Notes who touches what, and finds what nothing orders. Lanes in `places` with the same place count as one where they
    /// are neighbours. Shared memory of another block of the cluster is not watched.
    pub(super) fn touch(
        &mut self,
        warp: &Warp,
        pc: Pc,
        how: How,
        places: &[Place; 32],
        bytes: u32,
        active: u32,
    ) -> Step {
        if self.blocks[warp.block].shadow.is_none() {
            return Ok(());
        }
        // Reads of one place may be noted one by one; writes of one instruction to one place must not clash.
        let merges_all = matches!(how, How::Store | How::Issue) && !ascends(places, active);
        let mut left = active;
        while left != 0 {
            let first = left.trailing_zeros();
            let Place { block, offset } = places[first as usize];
            let same = |lane: &u32| places[*lane as usize] == places[first as usize];
            let join = |mask: u32, lane: u32| mask | 1 << lane;
            let lanes = match merges_all {
                true => bits(left).filter(same).fold(0, join),
                false => bits(left).take_while(same).fold(0, join),
            };
            left &= !lanes;
            if block == warp.block {
                let now = Now { warp: warp.index, lanes, pc };
                if let Some(clash) = self.note(warp.block, how, offset, bytes, now) {
                    self.judge(how, offset, bytes, clash)?;
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, block: usize, how: How, offset: u32, bytes: u32, now: Now) -> Option<Clash> {
        let Block { shadow: Some(shadow), clocks, .. } = &mut self.blocks[block] else {
            return None;
        };
        let mut found = None;
        for unit in shadow.units(offset, bytes) {
            let clash = match how {
                How::Load => shadow.read(clocks, unit, now),
                How::Store => shadow.write(clocks, unit, now),
                How::StrongLoad => shadow.strong_read(clocks, unit, now),
                How::Atomic | How::StrongStore => shadow.atomic(clocks, unit, now),
                How::Issue => shadow.issue(clocks, unit, now),
                How::Land => {
                    shadow.land(clocks, unit, now);
                    None
                }
            };
            found = found.or(clash);
        }
        found
    }

    /// A clash as a fault, if it is looked for.
    #[cold]
    fn judge(&self, how: How, offset: u32, bytes: u32, clash: Clash) -> Step {
        let checks = self.run.checks;
        let kind = if clash.touch == Touch::Copy { AsyncCopy } else { Race };
        if !(if kind == Race { checks.races } else { checks.async_copies }) {
            return Ok(());
        }
        let earlier = match clash.touch {
            Touch::Read => "a load",
            Touch::Write => "a store",
            Touch::Atomic if matches!(self.op(clash.pc), Op::Store { .. }) => "a strong store",
            Touch::Atomic => "an atomic",
            Touch::Copy => "an asynchronous copy",
        };
        let what = format!(
            "{} of {bytes} bytes at {offset:#x} in shared memory{}, and before it {earlier} by {} at {}, with nothing \
             that orders them",
            how.verb(),
            self.near(offset),
            self.thread_name(clash.warp, clash.lane),
            self.line_name(clash.pc),
        );
        Err(stop(kind, clash.now, what))
    }

    /// Counts a request to shared memory.
    pub(super) fn count_shared(&mut self, addresses: &Lanes, bytes: u32, active: u32, reads: bool) {
        let all = u64::from(active.count_ones() * bytes);
        self.counters.shared_requests += 1;
        self.counters.bank_conflicts += traffic::bank_conflicts(addresses, bytes, active);
        if reads {
            self.counters.shared_read_bytes += all;
        } else {
            self.counters.shared_write_bytes += all;
        }
    }

    pub(super) fn load_shared(
        &mut self,
        warp: &mut Warp,
        pc: Pc,
        addresses: &Lanes,
        to: Loaded<'_>,
        active: u32,
    ) -> Step {
        let (ty, _, registers, strong) = to;
        let how = if strong { How::StrongLoad } else { How::Load };
        let each = ty.bytes();
        let bytes = each * registers.len() as u32;
        let places = self.shared_places(warp, how, addresses, bytes, active)?;
        self.touch(warp, pc, how, &places, bytes, active)?;
        self.check_shared_written(how, &places, bytes, active)?;
        if strong {
            self.signal(warp, &places, active, Clocks::hear);
        }
        self.count_shared(addresses, bytes, active, true);
        for (index, register) in (0..).zip(registers) {
            let Some(register) = register else { continue };
            let to = &mut warp.registers[*register as usize];
            for lane in bits(active) {
                let Place { block, offset } = places[lane as usize];
                to[lane as usize] = self.blocks[block].shared.load(offset + index * each, each);
            }
        }
        Ok(())
    }

    pub(super) fn store_shared(
        &mut self,
        warp: &mut Warp,
        pc: Pc,
        addresses: &Lanes,
        from: Stored<'_>,
        active: u32,
    ) -> Step {
        let (ty, sources, strong) = from;
        let how = if strong { How::StrongStore } else { How::Store };
        let each = ty.bytes();
        let bytes = each * sources.len() as u32;
        let places = self.shared_places(warp, how, addresses, bytes, active)?;
        if strong {
            self.signal(warp, &places, active, Clocks::say);
        } else {
            self.check_one_value(warp, pc, &places, from, active)?;
        }
        self.touch(warp, pc, how, &places, bytes, active)?;
        self.count_shared(addresses, bytes, active, false);
        let mut scratch = [0; 32];
        for (index, src) in (0..).zip(sources) {
            let values = self.source(warp, src, &mut scratch);
            for lane in bits(active) {
                let Place { block, offset } = places[lane as usize];
                self.blocks[block].shared.store(offset + index * each, each, values[lane as usize]);
            }
        }
        for lane in bits(active) {
            let Place { block, offset } = places[lane as usize];
            self.blocks[block].shared.mark(offset, bytes);
        }
        Ok(())
    }

    /// Tells the clocks of strong accesses: what fences around them order. `how` is what each lane does.
    pub(super) fn signal(
        &mut self,
        warp: &Warp,
        places: &[Place; 32],
        active: u32,
        how: impl Fn(&mut Clocks, usize, u32, u32),
    ) {
        if !self.run.loaded.fences || !self.run.checks.races {
            return;
        }
        for lane in bits(active) {
            let Place { block, offset } = places[lane as usize];
            if block == warp.block {
                how(&mut self.blocks[block].clocks, warp.index, lane, offset);
            }
        }
    }

    /// Lanes that store different values to one place in one instruction: which one stays is not defined.
    fn check_one_value(&self, warp: &Warp, pc: Pc, places: &[Place; 32], from: Stored<'_>, active: u32) -> Step {
        if !self.run.checks.races || ascends(places, active) {
            return Ok(());
        }
        let key = |lane: u32| places[lane as usize];
        let (ty, sources, _) = from;
        for lane in bits(active) {
            let Some(other) = bits(active).take_while(|&other| other < lane).find(|&other| key(other) == key(lane))
            else {
                continue;
            };
            let differs = |src: &Src| (self.value(warp, src, lane) ^ self.value(warp, src, other)) & width(ty) != 0;
            if sources.iter().any(differs) {
                let offset = places[lane as usize].offset;
                let what = format!(
                    "a store at {offset:#x} in shared memory{}, and in the same instruction ({}) a store of another value by {}",
                    self.near(offset),
                    self.line_name(pc),
                    self.thread_name(warp.index, other)
                );
                return Err(stop(Race, lane, what));
            }
        }
        Ok(())
    }
}

/// Whether each lane's place lies behind the one before: then no two are the same.
fn ascends(places: &[Place; 32], active: u32) -> bool {
    let mut last = None;
    bits(active).all(|lane| last.replace(places[lane as usize]).is_none_or(|last| last < places[lane as usize]))
}

/// The bits of a type.
fn width(ty: Type) -> u64 {
    super::step::low_bits(ty.bytes() * 8)
}
