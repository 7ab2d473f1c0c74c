//! `atom` and `red`: the lanes one after the other, in their order.

use super::machine::{Machine, Step, stop};
use super::shared::{How, Place};
use super::warp::Warp;
use crate::arith::{self, Lanes};
use crate::error::FaultKind::IllegalInstruction;
use crate::memory::{Clocks, Region, bits};
use crate::program::{AtomicOp, Op, Pc, Space, Src, Type};

/// One value of an atomic.
#[derive(Clone, Copy)]
struct Update {
    op: AtomicOp,
    ty: Type,
    /// Global memory flushes subnormals where it adds f32; shared memory does not.
    flushes: bool,
    b: u64,
    c: u64,
}

impl Update {
    fn of(self, old: u64, lane: u32) -> Step<u64> {
        arith::atomic(self.op, self.ty, self.flushes, old, self.b, self.c)
            .ok_or_else(|| stop(IllegalInstruction, lane, format!("there is no atomic {:?} of {:?}", self.op, self.ty)))
    }
}

impl Machine<'_> {
    /// `atom` and `red` of every space.
    pub(super) fn atomic(
        &mut self,
        warp: &mut Warp,
        pc: Pc,
        instruction: &Op,
        space: Space,
        addresses: &Lanes,
        active: u32,
    ) -> Step {
        let Op::Atomic { op, ty, dst, b, c, .. } = instruction else { return Ok(()) };
        let each = ty.bytes();
        let bytes = each * b.len() as u32;
        if space == Space::Generic {
            return self.by_space(active, addresses, bytes, "atomic", |machine, space, addresses, lanes| {
                machine.atomic(warp, pc, instruction, space, addresses, lanes)
            });
        }
        self.counters.atomics += u64::from(active.count_ones());
        let update = |machine: &Self, warp: &Warp, lane: u32, src: &Src| Update {
            op: *op,
            ty: *ty,
            flushes: space == Space::Global,
            b: machine.value(warp, src, lane),
            c: machine.value(warp, c, lane),
        };
        let keep = |warp: &mut Warp, lane: u32, index: usize, old: u64| {
            if let Some(Some(register)) = dst.as_ref().and_then(|dst| dst.get(index)) {
                warp.registers[*register as usize][lane as usize] = old;
            }
        };
        match space {
            Space::Global => {
                let regions = self.regions(pc, "an atomic", addresses, bytes, active)?;
                self.check_written(&regions, "an atomic", addresses, bytes, active)?;
                self.count_global(addresses, bytes, active, true);
                self.counters.global_write_bytes += u64::from(bytes * active.count_ones());
                for lane in bits(active) {
                    let address = addresses[lane as usize];
                    let Some(region) = regions.at(address) else { continue };
                    for (index, src) in b.iter().enumerate() {
                        let at = address + index as u64 * u64::from(each);
                        let update = update(self, warp, lane, src);
                        let old = self.update_global(region, at, update, lane)?;
                        keep(warp, lane, index, old);
                    }
                }
                Ok(())
            }
            Space::Shared | Space::SharedCluster => {
                let places = self.shared_places(warp, How::Atomic, addresses, bytes, active)?;
                self.touch(warp, pc, How::Atomic, &places, bytes, active)?;
                self.check_shared_written(How::Atomic, &places, bytes, active)?;
                self.count_shared(addresses, bytes, active, true);
                self.signal(warp, &places, active, Clocks::atomic);
                self.counters.shared_write_bytes += u64::from(bytes * active.count_ones());
                for lane in bits(active) {
                    let Place { block, offset } = places[lane as usize];
                    for (index, src) in b.iter().enumerate() {
                        let at = offset + index as u32 * each;
                        let old = self.blocks[block].shared.load(at, each);
                        let new = update(self, warp, lane, src).of(old, lane)?;
                        self.blocks[block].shared.store(at, each, new);
                        keep(warp, lane, index, old);
                    }
                }
                Ok(())
            }
            _ => {
                let what = format!("an atomic in {space:?} memory");
                Err(stop(IllegalInstruction, Self::first(active), what))
            }
        }
    }

    /// Replaces one value in global memory in one step; the old one.
    fn update_global(&self, region: &Region, address: u64, update: Update, lane: u32) -> Step<u64> {
        let offset = address - region.base;
        match update.ty.bytes() {
            4 => {
                let new = |old| update.of(u64::from(old), lane).map(|new| new as u32);
                region.storage.update(offset, new).map(u64::from)
            }
            8 => {
                // Two words: one lock for all atomics on them.
                let _guard = self.run.table.stripe(address).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let old = region.storage.load(offset, 8);
                let new = update.of(old, lane)?;
                crate::memory::WordWriter::new(&region.storage).write(offset, 8, new);
                Ok(old)
            }
            bytes => {
                let shift = offset % 4 * 8;
                let mask = crate::memory::ones(bytes * 8);
                let new = |word: u32| -> Step<u32> {
                    let new = update.of(u64::from(word >> shift & mask), lane)? as u32;
                    Ok(word & !(mask << shift) | (new & mask) << shift)
                };
                let old = region.storage.update(offset & !3, new)?;
                Ok(u64::from(old >> shift & mask))
            }
        }
    }
}
