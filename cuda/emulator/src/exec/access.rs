//! Loads and stores of every space.

use super::machine::{Machine, Step, stop};
use super::step::low_bits;
use super::traffic;
use super::warp::Warp;
use crate::arith::Lanes;
use crate::error::FaultKind::{IllegalInstruction, Misaligned, OutOfBounds, Uninitialised};
use crate::memory::{Marker, Region, Table, UNTAGGED, WordWriter, bits, space_of, tag};
use crate::program::{Pc, Reg, Space, Src, Type};

/// What a load fills: its type, the width of its registers, the registers, and whether it is strong.
pub(super) type Loaded<'a> = (Type, u32, &'a [Option<Reg>], bool);
/// What a store writes: its type, the values, and whether it is strong.
pub(super) type Stored<'a> = (Type, &'a [Src], bool);

/// The regions that an instruction's addresses lie in: mostly one.
pub(super) struct Regions<'a> {
    table: &'a Table,
    one: Option<&'a Region>,
    bytes: u64,
}

impl<'a> Regions<'a> {
    /// The region of an address that was checked.
    #[inline]
    pub(super) fn at(&self, address: u64) -> Option<&'a Region> {
        self.one.or_else(|| self.table.find(address, self.bytes, &mut 0))
    }
}

impl<'a> Machine<'a> {
    /// A load of every space.
    pub(super) fn load(
        &mut self,
        warp: &mut Warp,
        pc: Pc,
        space: Space,
        addresses: &Lanes,
        to: Loaded<'_>,
        active: u32,
    ) -> Step {
        let bytes = to.0.bytes() * to.2.len() as u32;
        match space {
            Space::Generic => {
                self.by_space(active, addresses, bytes, "load", |machine, space, addresses, lanes| {
                    machine.load(warp, pc, space, addresses, to, lanes)
                })?;
                return Ok(());
            }
            Space::Global => self.load_global(warp, pc, addresses, to, active)?,
            Space::Const => {
                let tagged = addresses.map(|address| address | tag(Space::Const));
                self.load_global(warp, pc, &tagged, to, active)?;
            }
            Space::Param => self.load_param(warp, addresses, to, active)?,
            Space::Local => self.load_local(warp, addresses, to, active)?,
            Space::Shared | Space::SharedCluster => self.load_shared(warp, pc, addresses, to, active)?,
        }
        let (ty, reg_bytes, registers, _) = to;
        if ty.is_signed() && reg_bytes > ty.bytes() {
            for register in registers.iter().flatten() {
                let values = warp.registers[*register as usize].map(|value| sign_extend(value, ty.bytes(), reg_bytes));
                warp.set(*register, active, &values);
            }
        }
        Ok(())
    }

    /// A store of every space.
    pub(super) fn store(
        &mut self,
        warp: &mut Warp,
        pc: Pc,
        space: Space,
        addresses: &Lanes,
        from: Stored<'_>,
        active: u32,
    ) -> Step {
        let bytes = from.0.bytes() * from.1.len() as u32;
        match space {
            Space::Generic => self.by_space(active, addresses, bytes, "store", |machine, space, addresses, lanes| {
                machine.store(warp, pc, space, addresses, from, lanes)
            }),
            Space::Global => self.store_global(warp, pc, addresses, from, active),
            Space::Local => self.store_local(warp, addresses, from, active),
            Space::Shared | Space::SharedCluster => self.store_shared(warp, pc, addresses, from, active),
            Space::Const | Space::Param => {
                let lane = Self::first(active);
                let what =
                    format!("a store to {:#x} in {space:?} memory, which is read-only", addresses[lane as usize]);
                Err(stop(IllegalInstruction, lane, what))
            }
        }
    }

    /// Splits generic addresses by their spaces.
    pub(super) fn by_space(
        &mut self,
        active: u32,
        addresses: &Lanes,
        bytes: u32,
        what: &str,
        mut each: impl FnMut(&mut Self, Space, &Lanes, u32) -> Step,
    ) -> Step {
        let mut left = active;
        while left != 0 {
            let first = Self::first(left);
            let address = addresses[first as usize];
            let Some(space) = space_of(address) else {
                let what = format!("{what} of {bytes} bytes at {address:#x}, which lies in no space");
                return Err(stop(OutOfBounds, first, what));
            };
            let tag = address >> 56;
            let same =
                bits(left).filter(|&lane| addresses[lane as usize] >> 56 == tag).fold(0, |m, lane| m | 1 << lane);
            left &= !same;
            each(self, space, &addresses.map(|address| address & UNTAGGED), same)?;
        }
        Ok(())
    }

    /// Checks that every lane's `bytes` bytes are aligned and lie in memory that is allocated.
    pub(super) fn regions(
        &mut self,
        pc: Pc,
        what: &str,
        addresses: &Lanes,
        bytes: u32,
        active: u32,
    ) -> Step<Regions<'a>> {
        let table = self.run.table;
        let (mut low, mut high, mut any) = (u64::MAX, 0, 0);
        for lane in bits(active) {
            let address = addresses[lane as usize];
            low = low.min(address);
            high = high.max(address);
            any |= address;
        }
        let bytes = u64::from(bytes);
        if any & (bytes - 1) == 0
            && let Some(region) = table.find(low, bytes, &mut self.hints[pc as usize])
            && region.holds(high, bytes)
        {
            return Ok(Regions { table, one: Some(region), bytes });
        }
        for lane in bits(active) {
            let address = addresses[lane as usize];
            let name = || format!("{what} of {bytes} bytes at {address:#x}");
            if address & (bytes - 1) != 0 {
                return Err(stop(Misaligned, lane, name()));
            }
            if table.find(address, bytes, &mut self.hints[pc as usize]).is_none() {
                return Err(stop(OutOfBounds, lane, format!("{}: {}", name(), table.describe(address, bytes))));
            }
        }
        Ok(Regions { table, one: None, bytes })
    }

    /// Checks that somebody wrote every lane's bytes.
    pub(super) fn check_written(
        &self,
        regions: &Regions<'_>,
        what: &str,
        addresses: &Lanes,
        bytes: u32,
        active: u32,
    ) -> Step {
        if !self.run.checks.uninitialised {
            return Ok(());
        }
        for lane in bits(active) {
            let address = addresses[lane as usize];
            let Some(region) = regions.at(address) else { continue };
            if let Some(missing) = region.storage.first_missing(address - region.base, bytes) {
                let place = self.run.table.describe(address + u64::from(missing), 1);
                let what =
                    format!("{what} of {bytes} bytes at {address:#x}: nobody wrote byte {missing} of it, {place}");
                return Err(stop(Uninitialised, lane, what));
            }
        }
        Ok(())
    }

    /// Counts a request to global memory.
    pub(super) fn count_global(&mut self, addresses: &Lanes, bytes: u32, active: u32, reads: bool) {
        let all = u64::from(active.count_ones() * bytes);
        self.counters.global_requests += 1;
        self.counters.global_sectors += traffic::sectors(addresses, bytes, active);
        if reads {
            self.counters.global_read_bytes += all;
        } else {
            self.counters.global_write_bytes += all;
        }
    }

    fn load_global(&mut self, warp: &mut Warp, pc: Pc, addresses: &Lanes, to: Loaded<'_>, active: u32) -> Step {
        let (ty, _, registers, _) = to;
        let each = ty.bytes();
        let bytes = each * registers.len() as u32;
        let regions = self.regions(pc, "a load", addresses, bytes, active)?;
        self.check_written(&regions, "a load", addresses, bytes, active)?;
        if addresses[Self::first(active) as usize] < 1 << 56 {
            self.count_global(addresses, bytes, active, true);
        }
        for (index, register) in (0..).zip(registers) {
            let Some(register) = register else { continue };
            let to = &mut warp.registers[*register as usize];
            for lane in bits(active) {
                let address = addresses[lane as usize];
                if let Some(region) = regions.at(address) {
                    to[lane as usize] = region.storage.load(address - region.base + index * u64::from(each), each);
                }
            }
        }
        Ok(())
    }

    fn store_global(&mut self, warp: &mut Warp, pc: Pc, addresses: &Lanes, from: Stored<'_>, active: u32) -> Step {
        let (ty, sources, _) = from;
        let each = ty.bytes();
        let bytes = each * sources.len() as u32;
        let regions = self.regions(pc, "a store", addresses, bytes, active)?;
        self.count_global(addresses, bytes, active, false);
        let mut scratch = [0; 32];
        for (index, src) in (0..).zip(sources) {
            let values = self.source(warp, src, &mut scratch);
            write_lanes(&regions, addresses, index * u64::from(each), each, values, active);
        }
        mark_lanes(&regions, addresses, bytes, active);
        Ok(())
    }

    fn load_param(&mut self, warp: &mut Warp, addresses: &Lanes, to: Loaded<'_>, active: u32) -> Step {
        let (ty, _, registers, _) = to;
        let each = u64::from(ty.bytes());
        let bytes = each * registers.len() as u64;
        let params = self.run.params;
        let mut left = active;
        while left != 0 {
            // Mostly all lanes read the same parameter.
            let first = Self::first(left);
            let address = addresses[first as usize];
            let same = bits(left).filter(|&lane| addresses[lane as usize] == address).fold(0, |m, lane| m | 1 << lane);
            left &= !same;
            check_place(first, "a load", address, bytes, params.len() as u64, "the kernel's parameters")?;
            for (index, register) in (0..).zip(registers) {
                let Some(register) = register else { continue };
                let at = (address + index * each) as usize;
                let bytes = params[at..at + each as usize].iter().rev();
                let value = bytes.fold(0, |value, &byte| value << 8 | u64::from(byte));
                warp.set(*register, same, &[value; 32]);
            }
        }
        Ok(())
    }

    fn load_local(&mut self, warp: &mut Warp, addresses: &Lanes, to: Loaded<'_>, active: u32) -> Step {
        let (ty, _, registers, _) = to;
        let each = ty.bytes();
        let bytes = each * registers.len() as u32;
        for lane in bits(active) {
            let address = addresses[lane as usize];
            let frame = &warp.frame;
            check_place(lane, "a load", address, bytes.into(), frame.bytes().into(), "local memory")?;
            let at = address as u32;
            if let Some(missing) = frame.first_missing(lane, at, bytes).filter(|_| self.run.checks.uninitialised) {
                let what =
                    format!("a load of {bytes} bytes at {at:#x} in local memory: nobody wrote byte {missing} of it");
                return Err(stop(Uninitialised, lane, what));
            }
            for (index, register) in (0..).zip(registers) {
                if let Some(register) = register {
                    let value = warp.frame.load(lane, at + index * each, each);
                    warp.registers[*register as usize][lane as usize] = value;
                }
            }
        }
        self.counters.local_bytes += u64::from(bytes * active.count_ones());
        Ok(())
    }

    fn store_local(&mut self, warp: &mut Warp, addresses: &Lanes, from: Stored<'_>, active: u32) -> Step {
        let (ty, sources, _) = from;
        let each = ty.bytes();
        let bytes = each * sources.len() as u32;
        for lane in bits(active) {
            let address = addresses[lane as usize];
            check_place(lane, "a store", address, bytes.into(), warp.frame.bytes().into(), "local memory")?;
            let at = address as u32;
            for (index, src) in (0..).zip(sources) {
                let value = self.value(warp, src, lane);
                warp.frame.store(lane, at + index * each, each, value);
            }
            warp.frame.mark(lane, at, bytes);
        }
        self.counters.local_bytes += u64::from(bytes * active.count_ones());
        Ok(())
    }

    /// One value at a generic address, for what the host does in a lane's name.
    pub(super) fn peek(&self, warp: &Warp, lane: u32, address: u64, bytes: u32) -> Step<u64> {
        let at = address & UNTAGGED;
        if !address.is_multiple_of(bytes.into()) {
            return Err(stop(Misaligned, lane, format!("a load of {bytes} bytes at {address:#x}")));
        }
        let missing = match space_of(address) {
            Some(Space::Global | Space::Const) => {
                let Some(region) = self.run.table.find(address, bytes.into(), &mut 0) else {
                    let place = self.run.table.describe(address, bytes.into());
                    return Err(stop(OutOfBounds, lane, format!("a load of {bytes} bytes at {address:#x}: {place}")));
                };
                let offset = address - region.base;
                match region.storage.first_missing(offset, bytes) {
                    None => return Ok(region.storage.load(offset, bytes)),
                    missing => missing,
                }
            }
            Some(Space::Local) => {
                check_place(lane, "a load", at, bytes.into(), warp.frame.bytes().into(), "local memory")?;
                match warp.frame.first_missing(lane, at as u32, bytes) {
                    None => return Ok(warp.frame.load(lane, at as u32, bytes)),
                    missing => missing,
                }
            }
            Some(Space::SharedCluster) => {
                let place = self.shared_place(warp, lane, "a load", at, bytes)?;
                let shared = &self.blocks[place.block].shared;
                match shared.first_missing(place.offset, bytes) {
                    None => return Ok(shared.load(place.offset, bytes)),
                    missing => missing,
                }
            }
            _ => return Err(stop(OutOfBounds, lane, format!("a load of {bytes} bytes at {address:#x}"))),
        };
        let what = format!("a load of {bytes} bytes at {address:#x}: nobody wrote byte {} of it", missing.unwrap_or(0));
        Err(stop(Uninitialised, lane, what))
    }

    /// A C string at a generic address.
    pub(super) fn text(&self, warp: &Warp, lane: u32, address: u64) -> Step<String> {
        let mut text = Vec::new();
        loop {
            match self.peek(warp, lane, address.wrapping_add(text.len() as u64), 1)? {
                0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
                byte => text.push(byte as u8),
            }
        }
    }
}

/// Writes one value a lane to addresses that were checked.
pub(super) fn write_lanes(
    regions: &Regions<'_>,
    addresses: &Lanes,
    offset: u64,
    bytes: u32,
    values: &Lanes,
    active: u32,
) {
    let mut writer: Option<(&Region, WordWriter<'_>)> = None;
    for lane in bits(active) {
        let address = addresses[lane as usize];
        let Some(region) = regions.at(address) else { continue };
        if writer.as_ref().is_none_or(|(last, _)| !std::ptr::eq(*last, region)) {
            if let Some((_, mut writer)) = writer.take() {
                writer.flush();
            }
            writer = Some((region, WordWriter::new(&region.storage)));
        }
        if let Some((_, writer)) = &mut writer {
            writer.write(address - region.base + offset, bytes, values[lane as usize]);
        }
    }
    if let Some((_, mut writer)) = writer {
        writer.flush();
    }
}

/// Marks each lane's bytes as written.
pub(super) fn mark_lanes(regions: &Regions<'_>, addresses: &Lanes, bytes: u32, active: u32) {
    let mut marker: Option<(&Region, Marker<'_>)> = None;
    for lane in bits(active) {
        let address = addresses[lane as usize];
        let Some(region) = regions.at(address) else { continue };
        if marker.as_ref().is_none_or(|(last, _)| !std::ptr::eq(*last, region)) {
            if let Some((_, mut marker)) = marker.take() {
                marker.flush();
            }
            marker = Some((region, Marker::new(&region.storage)));
        }
        if let Some((_, marker)) = &mut marker {
            marker.mark(address - region.base, bytes);
        }
    }
    if let Some((_, mut marker)) = marker {
        marker.flush();
    }
}

/// Checks alignment and bounds in a small space.
pub(super) fn check_place(lane: u32, what: &str, address: u64, bytes: u64, size: u64, space: &str) -> Step {
    // Sizes are powers of two.
    if address & (bytes - 1) != 0 {
        return Err(stop(Misaligned, lane, format!("{what} of {bytes} bytes at {address:#x} in {space}")));
    }
    if address >= size || bytes > size - address {
        let what = format!("{what} of {bytes} bytes at {address:#x} in {space} of {size} bytes");
        return Err(stop(OutOfBounds, lane, what));
    }
    Ok(())
}

/// Extends the sign of a value of `from` bytes to `to` bytes; the bits above stay zero.
fn sign_extend(value: u64, from: u32, to: u32) -> u64 {
    let shift = 64 - from * 8;
    (((value << shift) as i64) >> shift) as u64 & low_bits(to * 8)
}
