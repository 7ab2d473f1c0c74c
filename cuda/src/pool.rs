//! Sub-allocation of a device's memory. Pure bookkeeping: it never touches a device.
//!
//! All work of a device is in the order of one stream, so a range can be used again as soon as its last user was launched:
//! no event has to be waited for.

use std::collections::{BTreeMap, BTreeSet};

/// Every range begins and ends at a multiple of this: the alignment of `cudaMalloc`, and a whole number of sectors.
pub(crate) const GRAIN: u64 = 256;

/// Ranges of the chunks that were taken from the driver.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Bytes left unused behind each range, so that a kernel that runs past its end hits nobody.
    red_zone: u64,
    /// Chunks by address: bytes.
    chunks: BTreeMap<u64, u64>,
    /// Free ranges by address: bytes. Neighbours are always joined, never across chunks.
    free: BTreeMap<u64, u64>,
    /// The same ranges by (bytes, address).
    sizes: BTreeSet<(u64, u64)>,
}

impl Pool {
    pub(crate) fn new(red_zone: u64) -> Self {
        Pool { red_zone, chunks: BTreeMap::new(), free: BTreeMap::new(), sizes: BTreeSet::new() }
    }

    /// Bytes that a range for `bytes` takes, red zone included; `None` when that is no number.
    pub(crate) fn footprint(&self, bytes: u64) -> Option<u64> {
        bytes.max(1).checked_next_multiple_of(GRAIN)?.checked_add(self.red_zone)
    }

    /// The smallest free range that holds `footprint` bytes, cut to size. Lowest address first among equals, so that the
    /// same calls give the same addresses.
    pub(crate) fn take(&mut self, footprint: u64) -> Option<u64> {
        let &(size, address) = self.sizes.range((footprint, 0)..).next()?;
        self.remove(address, size);
        if size > footprint {
            self.insert(address + footprint, size - footprint);
        }
        Some(address)
    }

    /// Gives a range of `footprint` bytes back.
    pub(crate) fn give(&mut self, address: u64, footprint: u64) {
        let (mut start, mut size) = (address, footprint);
        if let Some((&before, &bytes)) = self.free.range(..start).next_back()
            && before + bytes == start
            && !self.chunks.contains_key(&start)
        {
            self.remove(before, bytes);
            (start, size) = (before, size + bytes);
        }
        let end = start + size;
        if let Some(&bytes) = self.free.get(&end)
            && !self.chunks.contains_key(&end)
        {
            self.remove(end, bytes);
            size += bytes;
        }
        self.insert(start, size);
    }

    /// Adds a chunk of the driver, free as a whole.
    pub(crate) fn add_chunk(&mut self, address: u64, bytes: u64) {
        self.chunks.insert(address, bytes);
        self.insert(address, bytes);
    }

    /// Takes out every chunk that is free as a whole, to be given back to the driver: addresses and bytes.
    pub(crate) fn take_free_chunks(&mut self) -> Vec<(u64, u64)> {
        let is_whole = |(address, bytes): &(&u64, &u64)| self.free.get(address) == Some(bytes);
        let chunks: Vec<(u64, u64)> = self.chunks.iter().filter(is_whole).map(|(&a, &b)| (a, b)).collect();
        for &(address, bytes) in &chunks {
            self.chunks.remove(&address);
            self.remove(address, bytes);
        }
        chunks
    }

    /// Takes out every chunk, free or not: the device goes.
    pub(crate) fn take_all_chunks(&mut self) -> Vec<u64> {
        self.free.clear();
        self.sizes.clear();
        std::mem::take(&mut self.chunks).into_keys().collect()
    }

    /// Bytes of all chunks.
    pub(crate) fn held(&self) -> u64 {
        self.chunks.values().sum()
    }

    fn insert(&mut self, address: u64, bytes: u64) {
        self.free.insert(address, bytes);
        self.sizes.insert((bytes, address));
    }

    fn remove(&mut self, address: u64, bytes: u64) {
        self.free.remove(&address);
        self.sizes.remove(&(bytes, address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_cut() {
        let mut pool = Pool::new(0);
        assert_eq!(pool.take(256), None);
        pool.add_chunk(4096, 1024);
        let (a, b) = (pool.take(256).unwrap(), pool.take(512).unwrap());
        assert_eq!((a, b), (4096, 4352));
        assert_eq!(pool.take(512), None);
        pool.give(a, 256);
        pool.give(b, 512);
        assert_eq!(pool.take(1024), Some(4096));
        pool.give(4096, 1024);
        assert_eq!(pool.take_free_chunks(), [(4096, 1024)]);
        assert_eq!(pool.held(), 0);
        assert_eq!(pool.take(256), None);
    }

    #[test]
    fn neighbouring_chunks_stay_apart() {
        let mut pool = Pool::new(256);
        pool.add_chunk(4096, 512);
        pool.add_chunk(4608, 512);
        assert_eq!(pool.footprint(1), Some(512));
        let (a, b) = (pool.take(512).unwrap(), pool.take(512).unwrap());
        pool.give(b, 512);
        pool.give(a, 512);
        assert_eq!(pool.take(1024), None, "a range across two chunks");
        assert_eq!(pool.take_free_chunks(), [(4096, 512), (4608, 512)]);
    }

    /// Against a model that marks every grain.
    #[test]
    fn no_grain_is_given_twice() {
        let mut pool = Pool::new(GRAIN);
        let mut used = vec![false; 4096];
        let mut live: Vec<(u64, u64)> = Vec::new();
        pool.add_chunk(0x10000, 2048 * GRAIN);
        pool.add_chunk(0x10000 + 2048 * GRAIN, 2048 * GRAIN);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..20_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if state.is_multiple_of(2) && !live.is_empty() {
                let (address, footprint) = live.swap_remove((state >> 8) as usize % live.len());
                mark(&mut used, address, footprint, false);
                pool.give(address, footprint);
            } else {
                let footprint = pool.footprint((state >> 8) % 20_000).unwrap();
                if let Some(address) = pool.take(footprint) {
                    mark(&mut used, address, footprint, true);
                    live.push((address, footprint));
                }
            }
        }
        for (address, footprint) in live {
            pool.give(address, footprint);
        }
        assert_eq!(pool.take_free_chunks().len(), 2);
        assert!(pool.free.is_empty() && pool.sizes.is_empty());
    }

    fn mark(used: &mut [bool], address: u64, footprint: u64, to: bool) {
        let first = ((address - 0x10000) / GRAIN) as usize;
        for grain in &mut used[first..first + (footprint / GRAIN) as usize] {
            assert_ne!(*grain, to, "a grain at {address:#x}");
            *grain = to;
        }
    }
}
