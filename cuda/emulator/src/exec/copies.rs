//! `cp.async`: copies from global to shared memory that land when their thread waits for them.

use super::machine::{Machine, Step, stop};
use super::shared::{How, Place};
use super::warp::Warp;
use crate::error::FaultKind::IllegalInstruction;
use crate::memory::bits;
use crate::program::{Op, Pc, Space};

/// The copies of a warp's threads that are on their way.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// In the order of their issue.
    pending: Vec<Copy>,
    /// Groups that each lane committed so far.
    groups: [u32; 32],
}

/// One copy of one thread.
#[derive(Debug)]
struct Copy {
    lane: u32,
    /// Its group; `None` until `cp.async.commit_group`.
    group: Option<u32>,
    place: Place,
    /// What will be in shared memory.
    data: [u32; 4],
    bytes: u32,
    pc: Pc,
}

impl Copies {
    /// Forgets all, for the next block.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.groups = [0; 32];
    }

    /// The copies of these lanes so far are a group.
    pub(crate) fn commit(&mut self, lanes: u32) {
        for copy in self.pending.iter_mut().filter(|copy| lanes >> copy.lane & 1 == 1) {
            let next = self.groups[copy.lane as usize];
            copy.group.get_or_insert(next);
        }
        bits(lanes).for_each(|lane| self.groups[lane as usize] += 1);
    }

    /// Takes the copies that a wait for all but the latest `count` groups is for; without a count, all.
    fn take(&mut self, lanes: u32, count: Option<u32>) -> Vec<Copy> {
        let groups = self.groups;
        let lands = |copy: &Copy| {
            let waits = lanes >> copy.lane & 1 == 1;
            waits
                && match (count, copy.group) {
                    (None, _) => true,
                    (Some(count), Some(group)) => group + count < groups[copy.lane as usize],
                    (Some(_), None) => false,
                }
        };
        let (landed, pending): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending).into_iter().partition(lands);
        self.pending = pending;
        landed
    }
}

impl Machine<'_> {
    /// `cp.async`: reads its source now; shared memory changes at the wait.
    pub(super) fn copy_async(&mut self, warp: &mut Warp, pc: Pc, op: &Op, active: u32) -> Step {
        let Op::CopyAsync { dst, src, bytes, src_bytes, ignore } = op else { return Ok(()) };
        let to = self.addresses(warp, Space::Shared, dst, active)?;
        let from = self.addresses(warp, Space::Global, src, active)?;
        let ignored = ignore.as_ref().map_or(0, |src| super::warp::mask_of(self.source(warp, src, &mut [0; 32])));
        let sizes = self.source(warp, src_bytes, &mut [0; 32]).map(|size| size & u64::from(u32::MAX));
        if let Some(lane) = bits(active).find(|&lane| sizes[lane as usize] > u64::from(*bytes)) {
            let what = format!("cp.async of {bytes} bytes with a source of {} bytes", sizes[lane as usize]);
            return Err(stop(IllegalInstruction, lane, what));
        }
        let places = self.shared_places(warp, How::Issue, &to, *bytes, active)?;
        let reads = |lane: &u32| ignored >> lane & 1 == 0 && sizes[*lane as usize] > 0;
        let reading = bits(active).filter(reads).fold(0, |mask, lane| mask | 1 << lane);
        let mut data = [[0; 4]; 32];
        if reading != 0 {
            self.fetch(pc, &from, *bytes, &sizes, reading, &mut data)?;
        }
        self.touch(warp, pc, How::Issue, &places, *bytes, active)?;
        self.count_shared(&to, *bytes, active, false);
        self.counters.async_bytes += u64::from(bytes * active.count_ones());
        for lane in bits(active) {
            let (place, data) = (places[lane as usize], data[lane as usize]);
            warp.copies.pending.push(Copy { lane, group: None, place, data, bytes: *bytes, pc });
        }
        Ok(())
    }

    /// Reads the sources: the address is aligned to the whole copy, and `sizes` bytes are read.
    fn fetch(
        &mut self,
        pc: Pc,
        from: &crate::arith::Lanes,
        bytes: u32,
        sizes: &crate::arith::Lanes,
        reading: u32,
        data: &mut [[u32; 4]; 32],
    ) -> Step {
        let what = "an asynchronous copy's load";
        for lane in bits(reading) {
            let (address, size) = (from[lane as usize], sizes[lane as usize]);
            if address % u64::from(bytes) != 0 {
                let what = format!("{what} of {bytes} bytes at {address:#x}");
                return Err(stop(crate::error::FaultKind::Misaligned, lane, what));
            }
            let table = self.run.table;
            let Some(region) = table.find(address, size, &mut self.hints[pc as usize]) else {
                let what = format!("{what} of {size} bytes at {address:#x}: {}", table.describe(address, size));
                return Err(stop(crate::error::FaultKind::OutOfBounds, lane, what));
            };
            let offset = address - region.base;
            if let Some(missing) =
                region.storage.first_missing(offset, size as u32).filter(|_| self.run.checks.uninitialised)
            {
                let what = format!("{what} of {size} bytes at {address:#x}: nobody wrote byte {missing} of it");
                return Err(stop(crate::error::FaultKind::Uninitialised, lane, what));
            }
            let mut read = [0; 16];
            region.storage.read_bytes(offset, &mut read[..size as usize]);
            for (word, four) in data[lane as usize].iter_mut().zip(read.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(*four);
            }
        }
        self.count_global(from, bytes, reading, true);
        Ok(())
    }

    /// `cp.async.wait_group` and `wait_all`.
    pub(super) fn wait_copies(&mut self, warp: &mut Warp, count: Option<u32>, active: u32) {
        for copy in warp.copies.take(active, count) {
            let Copy { lane, place: Place { block, offset }, data, bytes, pc, .. } = copy;
            let mut places = [Place::default(); 32];
            places[lane as usize] = Place { block, offset };
            // Landing is noted, and never a fault: what clashed was found at the issue or at the other's access.
            let _ = self.touch(warp, pc, How::Land, &places, bytes, 1 << lane);
            let shared = &mut self.blocks[block].shared;
            for (index, word) in (0..bytes / 4).zip(data) {
                shared.store(offset + index * 4, 4, u64::from(word));
            }
            shared.mark(offset, bytes);
        }
    }
}
