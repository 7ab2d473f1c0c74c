//! Which addresses are in use: allocations, the sub-buffers that pools announce inside them, and what was freed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::{CONST_START, GLOBAL_START, RED_ZONE, Storage, space_of, tag};
use crate::error::{Error, Result};
use crate::program::Space;

/// Freed ranges that messages still know.
const REMEMBERED: usize = 1024;
/// Locks that 64-bit atomics share, by address.
const STRIPES: usize = 64;

/// A stretch of addresses that kernels may touch.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    /// Its first address.
    pub(crate) start: u64,
    /// The address behind its last byte.
    pub(crate) end: u64,
    /// Where `storage` begins; before `start` for a sub-buffer.
    pub(crate) base: u64,
    pub(crate) storage: Arc<Storage>,
    /// What messages call it.
    name: Arc<str>,
}

impl Region {
    /// Whether `bytes` bytes from `address` on lie in it.
    #[inline]
    pub(crate) fn holds(&self, address: u64, bytes: u64) -> bool {
        address >= self.start && address < self.end && bytes <= self.end - address
    }
}

/// One allocation.
#[derive(Debug)]
struct Allocation {
    bytes: u64,
    storage: Arc<Storage>,
    name: Arc<str>,
    /// Whether something was ever announced in it: then only what is announced may be touched.
    pooled: bool,
}

/// All memory that outlives a launch.
#[derive(Debug)]
pub(crate) struct Table {
    /// Sorted by address; they do not overlap.
    regions: Vec<Region>,
    allocations: BTreeMap<u64, Allocation>,
    /// (start, bytes, name), the latest last.
    freed: VecDeque<(u64, u64, Arc<str>)>,
    next_global: u64,
    next_const: u64,
    capacity: u64,
    in_use: u64,
    peak: u64,
    stripes: Vec<Mutex<()>>,
}

impl Table {
    /// Bytes that are not allocated.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.capacity - self.in_use
    }

    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            regions: Vec::new(),
            allocations: BTreeMap::new(),
            freed: VecDeque::new(),
            next_global: GLOBAL_START,
            next_const: tag(Space::Const) | CONST_START,
            capacity,
            in_use: 0,
            peak: 0,
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
        }
    }

    pub(crate) fn in_use(&self) -> u64 {
        self.in_use
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak
    }

    pub(crate) fn reset_peak(&mut self) {
        self.peak = self.in_use;
    }

    /// The lock that guards 64-bit atomics on an address.
    pub(crate) fn stripe(&self, address: u64) -> &Mutex<()> {
        &self.stripes[(address / 8) as usize % STRIPES]
    }

    /// Fresh memory in global or constant space, its first address a multiple of `align` and of 256.
    pub(crate) fn allocate(&mut self, space: Space, bytes: u64, align: u64, name: &str) -> Result<u64> {
        if bytes == 0 {
            return Err(Error::invalid("an allocation of 0 bytes"));
        }
        let free = self.capacity - self.in_use;
        if bytes > free {
            return Err(Error::OutOfMemory { requested: bytes, free });
        }
        let storage = Storage::new(bytes).ok_or(Error::OutOfMemory { requested: bytes, free })?;
        let storage = Arc::new(storage);
        let next = if space == Space::Const { &mut self.next_const } else { &mut self.next_global };
        let start = (*next + RED_ZONE).next_multiple_of(align.max(256));
        *next = start + bytes + RED_ZONE;
        self.in_use += bytes;
        self.peak = self.peak.max(self.in_use);
        let name: Arc<str> = if name.is_empty() { format!("the allocation at {start:#x}").into() } else { name.into() };
        let region = Region { start, end: start + bytes, base: start, storage: storage.clone(), name: name.clone() };
        self.insert(region);
        self.allocations.insert(start, Allocation { bytes, storage, name, pooled: false });
        Ok(start)
    }

    /// Gives an allocation back.
    pub(crate) fn free(&mut self, start: u64) -> Result<()> {
        let Some(allocation) = self.allocations.remove(&start) else {
            return Err(Error::invalid(format!("free of {start:#x}: {}", self.describe(start, 1))));
        };
        let end = start + allocation.bytes;
        self.regions.retain(|region| region.start < start || region.start >= end);
        self.in_use -= allocation.bytes;
        self.remember(start, allocation.bytes, allocation.name);
        Ok(())
    }

    /// Makes a range of an allocation touchable; from the first such call on, nothing else of the allocation is.
    pub(crate) fn announce(&mut self, start: u64, bytes: u64) -> Result<()> {
        let refused = |what: String| Err(Error::invalid(format!("announce of {bytes} bytes at {start:#x}: {what}")));
        if bytes == 0 {
            return refused("no bytes".into());
        }
        let Some((&base, allocation)) = self.allocations.range_mut(..=start).next_back() else {
            return refused("in no allocation".into());
        };
        if start - base >= allocation.bytes || bytes > allocation.bytes - (start - base) {
            return refused(format!("not inside {} of {} bytes", allocation.name, allocation.bytes));
        }
        if allocation.pooled {
            let end = start + bytes;
            let overlaps = |region: &&Region| region.start < end && start < region.end;
            if let Some(other) = self.regions.iter().find(overlaps) {
                return refused(format!("overlaps {} of {} bytes", other.name, other.end - other.start));
            }
        } else {
            allocation.pooled = true;
            let end = base + allocation.bytes;
            self.regions.retain(|region| region.start < base || region.start >= end);
        }
        // What lay here before says nothing about an access beside the new buffer.
        self.freed.retain(|&(freed, size, _)| freed + size <= start || start + bytes <= freed);
        let name = format!("the buffer at {start:#x} in {}", allocation.name).into();
        let storage = allocation.storage.clone();
        self.insert(Region { start, end: start + bytes, base, storage, name });
        Ok(())
    }

    /// Takes back what `announce` gave: its bytes are poison that nobody wrote.
    pub(crate) fn retire(&mut self, start: u64) -> Result<()> {
        let at = self.regions.binary_search_by_key(&start, |region| region.start);
        let pooled = |(_, allocation): (&u64, &Allocation)| allocation.pooled;
        match at {
            Ok(at) if self.allocations.range(..=start).next_back().is_some_and(pooled) => {
                let region = self.regions.remove(at);
                region.storage.poison(region.start - region.base, region.end - region.start);
                self.remember(region.start, region.end - region.start, region.name);
                Ok(())
            }
            _ => Err(Error::invalid(format!("retire of {start:#x}, where no announced buffer begins"))),
        }
    }

    fn insert(&mut self, region: Region) {
        let at = self.regions.partition_point(|other| other.start < region.start);
        self.regions.insert(at, region);
    }

    fn remember(&mut self, start: u64, bytes: u64, name: Arc<str>) {
        if self.freed.len() == REMEMBERED {
            self.freed.pop_front();
        }
        self.freed.push_back((start, bytes, name));
    }

    /// The region that holds all of a range. `hint` is where the last one was found, and is renewed.
    #[inline]
    pub(crate) fn find(&self, address: u64, bytes: u64, hint: &mut u32) -> Option<&Region> {
        if let Some(region) = self.regions.get(*hint as usize)
            && region.holds(address, bytes)
        {
            return Some(region);
        }
        let behind = self.regions.partition_point(|region| region.start <= address);
        let at = behind.checked_sub(1)?;
        let region = &self.regions[at];
        if !region.holds(address, bytes) {
            return None;
        }
        *hint = at as u32;
        Some(region)
    }

    /// What lies at or near an address that cannot be touched, in words.
    pub(crate) fn describe(&self, address: u64, bytes: u64) -> String {
        match space_of(address) {
            Some(Space::Global) if address < 0x1_0000 => return "a null pointer or near it".into(),
            Some(Space::Global | Space::Const) => {}
            Some(space) => return format!("a generic address of {space:?} memory").replace("SharedCluster", "Shared"),
            None => return "in no space".into(),
        }
        let behind = self.regions.partition_point(|region| region.start <= address);
        let below = behind.checked_sub(1).map(|at| &self.regions[at]);
        if let Some(region) = below.filter(|region| address < region.end) {
            let size = region.end - region.start;
            return format!("{} bytes into {} of {size} bytes", address - region.start, region.name)
                + if bytes > region.end - address { ", over its end" } else { "" };
        }
        let inside = |&&(start, size, _): &&(u64, u64, Arc<str>)| address >= start && address - start < size;
        if let Some((start, size, name)) = self.freed.iter().rev().find(inside) {
            return format!("{} bytes into {name} of {size} bytes, which was freed", address - start);
        }
        let gap_below = below.map(|region| (address - region.end, region));
        let gap_above = self.regions.get(behind).map(|region| (region.start - address, region));
        let size = |region: &Region| region.end - region.start;
        match (gap_below, gap_above) {
            (Some((gap, region)), above) if above.is_none_or(|(other, _)| gap <= other) => {
                format!("{gap} bytes behind the end of {} of {} bytes", region.name, size(region))
            }
            (_, Some((gap, region))) => format!("{gap} bytes before {} of {} bytes", region.name, size(region)),
            _ => "nothing is allocated".into(),
        }
    }
}
