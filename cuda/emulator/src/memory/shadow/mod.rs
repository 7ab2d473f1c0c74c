//! Who touched each byte of shared memory last: what finds races.
//!
//! The bytes are watched in *units*, as large as the smallest store of the kernel (1 to 16 bytes). Every store then covers
//! whole units, so two accesses clash on a byte exactly when one is a write and they touch the same unit. A unit keeps its
//! last write, and for each warp its latest reads, strong reads and atomics since. An older access is forgotten when a newer one knows it:
//! whoever is ordered behind the newer is ordered behind both. So nothing is missed, and nothing invented.

mod clocks;
#[cfg(test)]
mod tests;

pub(crate) use clocks::{Arrival, Clocks, bits};

use std::collections::HashMap;

use crate::program::Pc;

/// The label of an asynchronous copy that its thread did not wait for: nobody is ordered behind it.
const PENDING: u32 = u32::MAX;

/// How an access touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Touch {
    #[default]
    Read,
    Write,
    /// An atomic or a strong store.
    Atomic,
    /// An asynchronous copy on its way, or landed: a write of the thread that issued it, at the moment of its wait.
    Copy,
}

/// An access of some lanes of a warp.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Access {
    label: u32,
    lanes: u32,
    pc: Pc,
    warp: u8,
    touch: Touch,
}

/// An earlier access that nothing orders before the present one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clash {
    /// What the earlier one was.
    pub(crate) touch: Touch,
    /// Its warp.
    pub(crate) warp: usize,
    /// Its lane.
    pub(crate) lane: u32,
    /// Its instruction.
    pub(crate) pc: Pc,
    /// The lane of the present one.
    pub(crate) now: u32,
}

/// The present access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) warp: usize,
    pub(crate) lanes: u32,
    pub(crate) pc: Pc,
}

/// The latest accesses of one warp to a unit.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    label: u32,
    lanes: u32,
    pc: Pc,
}

#[derive(Clone, Copy, Debug, Default)]
struct Unit {
    write: Access,
    /// The warps that read since the last write: their marks count.
    readers: u32,
    /// The same for strong reads.
    strong_readers: u32,
    /// The same for atomics.
    atomics: u32,
}

/// The accesses of one kind since the last write: one mark for each unit and warp.
#[derive(Clone, Debug)]
struct Marks {
    touch: Touch,
    warps: usize,
    latest: Vec<Mark>,
    /// Older marks that a newer one does not stand for: only where lanes of a warp parted between barriers.
    older: HashMap<usize, Vec<Mark>>,
}

/// The history of one block's shared memory.
#[derive(Clone, Debug)]
pub(crate) struct Shadow {
    shift: u32,
    units: Vec<Unit>,
    reads: Marks,
    strong_reads: Marks,
    atomics: Marks,
}

/// Which strong accesses a kernel has: those that do not race with each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strong {
    /// Atomics and strong stores.
    pub(crate) atomics: bool,
    pub(crate) loads: bool,
}

impl Shadow {
    /// For `bytes` of shared memory in units of `1 << shift` bytes and so many warps.
    pub(crate) fn new(bytes: u32, shift: u32, warps: usize, strong: Strong) -> Self {
        let units = (bytes as usize).div_ceil(1 << shift);
        let if_any = |any: bool| if any { units } else { 0 };
        Self {
            shift,
            units: vec![Unit::default(); units],
            reads: Marks::new(Touch::Read, units, warps),
            strong_reads: Marks::new(Touch::Read, if_any(strong.loads), warps),
            atomics: Marks::new(Touch::Atomic, if_any(strong.atomics), warps),
        }
    }

    /// The units of a range of bytes.
    #[inline]
    pub(crate) fn units(&self, offset: u32, bytes: u32) -> std::ops::RangeInclusive<usize> {
        (offset >> self.shift) as usize..=((offset + bytes - 1) >> self.shift) as usize
    }

    /// Notes a read; an earlier write or atomic that nothing orders before it.
    #[inline]
    pub(crate) fn read(&mut self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let clash = self.check_write(clocks, unit, now).or_else(|| self.check_atomics(clocks, unit, now));
        self.reads.note(clocks, unit, &mut self.units[unit].readers, now);
        clash
    }

    /// Notes a strong read; an earlier write, that is no atomic and not strong, that nothing orders before it.
    pub(crate) fn strong_read(&mut self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let clash = self.check_write(clocks, unit, now);
        self.strong_reads.note(clocks, unit, &mut self.units[unit].strong_readers, now);
        clash
    }

    /// Notes an atomic or a strong store; an earlier read or write, that is not strong, that nothing orders before it.
    pub(crate) fn atomic(&mut self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let clash = self.check_write(clocks, unit, now).or_else(|| self.check_reads(clocks, unit, now));
        self.atomics.note(clocks, unit, &mut self.units[unit].atomics, now);
        clash
    }

    /// Notes a write; any earlier access that nothing orders before it.
    pub(crate) fn write(&mut self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let clash = self.check_all(clocks, unit, now);
        self.set_write(unit, now, clocks.label(now.warp), Touch::Write);
        clash
    }

    /// Notes that an asynchronous copy is on its way.
    pub(crate) fn issue(&mut self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let clash = self.check_all(clocks, unit, now);
        self.set_write(unit, now, PENDING, Touch::Copy);
        clash
    }

    /// Notes that the thread waited for the copy: from here on it is a write of that thread.
    pub(crate) fn land(&mut self, clocks: &Clocks, unit: usize, now: Now) {
        self.set_write(unit, now, clocks.label(now.warp), Touch::Copy);
    }

    /// Forgets everything: the next block begins, and with it copies that nobody waited for end.
    pub(crate) fn renew(&mut self) {
        self.units.fill(Unit::default());
    }

    fn set_write(&mut self, unit: usize, now: Now, label: u32, touch: Touch) {
        let write = Access { label, lanes: now.lanes, pc: now.pc, warp: now.warp as u8, touch };
        self.units[unit] = Unit { write, ..Unit::default() };
    }

    fn check_all(&self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let earlier = self.check_write(clocks, unit, now).or_else(|| self.check_atomics(clocks, unit, now));
        let strong = || self.strong_reads.check(clocks, unit, self.units[unit].strong_readers, now);
        earlier.or_else(|| self.check_reads(clocks, unit, now)).or_else(strong)
    }

    #[inline]
    fn check_write(&self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let write = &self.units[unit].write;
        if clocks.settled(usize::from(write.warp), write.label) {
            return None;
        }
        clocks.clash(write, now.warp, now.lanes)
    }

    fn check_atomics(&self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        self.atomics.check(clocks, unit, self.units[unit].atomics, now)
    }

    fn check_reads(&self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        self.reads.check(clocks, unit, self.units[unit].readers, now)
    }
}

impl Marks {
    fn new(touch: Touch, units: usize, warps: usize) -> Self {
        Self { touch, warps, latest: vec![Mark::default(); units * warps], older: HashMap::new() }
    }

    /// Adds an access. `known` has a bit for each warp whose marks count.
    #[inline]
    fn note(&mut self, clocks: &Clocks, unit: usize, known: &mut u32, now: Now) {
        let at = unit * self.warps + now.warp;
        let label = clocks.label(now.warp);
        let mark = &mut self.latest[at];
        let fresh = *known >> now.warp & 1 == 0;
        if fresh && !self.older.is_empty() {
            self.older.remove(&at);
        }
        *known |= 1 << now.warp;
        let new = Mark { label, lanes: now.lanes, pc: now.pc };
        if fresh || clocks.settled(now.warp, mark.label) {
            *mark = new;
        } else if mark.label == label {
            mark.lanes |= now.lanes;
            mark.pc = now.pc;
        } else {
            if !clocks.covers(now.warp, mark.lanes, mark.label, now.lanes) {
                self.older.entry(at).or_default().push(*mark);
            }
            *mark = new;
        }
    }

    /// An access that counts and that nothing orders before the present one.
    fn check(&self, clocks: &Clocks, unit: usize, warps: u32, now: Now) -> Option<Clash> {
        bits(warps).find_map(|warp| {
            let at = unit * self.warps + warp as usize;
            let older = self.older.get(&at).into_iter().flatten();
            older.chain([&self.latest[at]]).find_map(|&Mark { label, lanes, pc }| {
                if clocks.settled(warp as usize, label) {
                    return None;
                }
                let earlier = Access { label, lanes, pc, warp: warp as u8, touch: self.touch };
                clocks.clash(&earlier, now.warp, now.lanes)
            })
        })
    }
}
