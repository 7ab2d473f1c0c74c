//! Who touched each byte of shared memory last: what finds races.
//!
//! The bytes are watched in *units*, as large as the smallest store of the kernel (1 to 16 bytes). Every store then covers
//! whole units, so two accesses clash on a byte exactly when one is a write and they touch the same unit. A unit keeps its
//! last write, and for each warp its latest reads and atomics since. An older access may be forgotten when a newer one knows
//! it: whoever is ordered behind the newer is ordered behind both.

mod clocks;

pub(crate) use clocks::{Arrival, Clocks, bits};

use crate::program::Pc;

/// The label of an asynchronous copy that its thread did not wait for: nobody is ordered behind it.
const PENDING: u32 = u32::MAX;

/// How an access touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Touch {
    #[default]
    Read,
    Write,
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
    /// The same for atomics.
    atomics: u32,
}

/// The history of one block's shared memory.
#[derive(Debug)]
pub(crate) struct Shadow {
    shift: u32,
    warps: usize,
    units: Vec<Unit>,
    reads: Vec<Mark>,
    atomics: Vec<Mark>,
}

impl Shadow {
    /// For `bytes` of shared memory in units of `1 << shift` bytes and so many warps; `atomics`: whether the kernel has any.
    pub(crate) fn new(bytes: u32, shift: u32, warps: usize, atomics: bool) -> Self {
        let units = (bytes as usize).div_ceil(1 << shift);
        Self {
            shift,
            warps,
            units: vec![Unit::default(); units],
            reads: vec![Mark::default(); units * warps],
            atomics: vec![Mark::default(); if atomics { units * warps } else { 0 }],
        }
    }

    /// The units of a range of bytes.
    #[inline]
    pub(crate) fn units(&self, offset: u32, bytes: u32) -> std::ops::RangeInclusive<usize> {
        (offset >> self.shift) as usize..=((offset + bytes - 1) >> self.shift) as usize
    }

    /// Notes a read; an earlier write that nothing orders before it.
    #[inline]
    pub(crate) fn read(&mut self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let clash = self.check_writes(clocks, unit, now, true);
        let known = &mut self.units[unit].readers;
        note(clocks, &mut self.reads[unit * self.warps + now.warp], known, now);
        clash
    }

    /// Notes an atomic; an earlier read or write, that is not an atomic, that nothing orders before it.
    pub(crate) fn atomic(&mut self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let clash = self.check_writes(clocks, unit, now, false).or_else(|| self.check_reads(clocks, unit, now));
        let known = &mut self.units[unit].atomics;
        note(clocks, &mut self.atomics[unit * self.warps + now.warp], known, now);
        clash
    }

    /// Notes a write; any earlier access that nothing orders before it.
    pub(crate) fn write(&mut self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let clash = self.check_writes(clocks, unit, now, true).or_else(|| self.check_reads(clocks, unit, now));
        self.set_write(unit, now, clocks.label(now.warp), Touch::Write);
        clash
    }

    /// Notes that an asynchronous copy is on its way.
    pub(crate) fn issue(&mut self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        let clash = self.check_writes(clocks, unit, now, true).or_else(|| self.check_reads(clocks, unit, now));
        self.set_write(unit, now, PENDING, Touch::Copy);
        clash
    }

    /// Notes that the thread waited for the copy: from here on it is a write of that thread.
    pub(crate) fn land(&mut self, clocks: &Clocks, unit: usize, now: Now) {
        self.set_write(unit, now, clocks.label(now.warp), Touch::Copy);
    }

    fn set_write(&mut self, unit: usize, now: Now, label: u32, touch: Touch) {
        let write = Access { label, lanes: now.lanes, pc: now.pc, warp: now.warp as u8, touch };
        self.units[unit] = Unit { write, readers: 0, atomics: 0 };
    }

    #[inline]
    fn check_writes(&self, clocks: &Clocks, unit: usize, now: Now, atomics: bool) -> Option<Clash> {
        let Unit { write, atomics: warps, .. } = &self.units[unit];
        if !clocks.settled(usize::from(write.warp), write.label)
            && let Some(clash) = clocks.clash(write, now.warp, now.lanes)
        {
            return Some(clash);
        }
        if !atomics || *warps == 0 {
            return None;
        }
        self.check_marks(clocks, unit, now, *warps, &self.atomics, Touch::Atomic)
    }

    fn check_reads(&self, clocks: &Clocks, unit: usize, now: Now) -> Option<Clash> {
        self.check_marks(clocks, unit, now, self.units[unit].readers, &self.reads, Touch::Read)
    }

    fn check_marks(
        &self,
        clocks: &Clocks,
        unit: usize,
        now: Now,
        warps: u32,
        marks: &[Mark],
        touch: Touch,
    ) -> Option<Clash> {
        bits(warps).find_map(|warp| {
            let Mark { label, lanes, pc } = marks[unit * self.warps + warp as usize];
            if clocks.settled(warp as usize, label) {
                return None;
            }
            clocks.clash(&Access { label, lanes, pc, warp: warp as u8, touch }, now.warp, now.lanes)
        })
    }

    /// Forgets everything: the next block begins, and with it copies that nobody waited for end.
    pub(crate) fn renew(&mut self) {
        self.units.fill(Unit::default());
    }
}

/// Adds an access to the marks of its warp. Where an older mark can neither be merged nor forgotten (lanes that went
/// different ways between warp barriers), the newer lanes count with the older label: a race may then be missed, but none
/// is invented.
#[inline]
fn note(clocks: &Clocks, mark: &mut Mark, known: &mut u32, now: Now) {
    let label = clocks.label(now.warp);
    let bit = 1 << now.warp;
    let stale = *known & bit == 0 || clocks.settled(now.warp, mark.label);
    *known |= bit;
    if stale || mark.label != label && clocks.covers(now.warp, mark.lanes, mark.label, now.lanes) {
        *mark = Mark { label, lanes: now.lanes, pc: now.pc };
    } else {
        mark.lanes |= now.lanes;
        mark.pc = now.pc;
    }
}
