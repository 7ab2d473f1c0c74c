//! Sub-allocation of a device's memory. Pure bookkeeping: it never touches a device.
//!
//! All work of a device is in the order of one stream, so a range can be used again as soon as its last user was launched:
//! no event has to be waited for.
//!
//! A range is taken where it first fits, in the order in which the chunks came. So where ranges lie follows from the calls
//! alone, not from the driver's addresses; and what calls reach of a chunk without end is what a chunk must hold to serve the
//! same calls: cut there, it serves each from the same place.

use std::collections::BTreeMap;

/// Every range begins and ends at a multiple of this: the alignment of `cudaMalloc`, and a whole number of sectors.
pub(crate) const GRAIN: u64 = 256;

/// Ranges of the chunks that were taken from the driver.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Bytes left unused behind each range, so that a kernel that runs past its end hits nobody.
    red_zone: u64,
    /// Chunks by address.
    chunks: BTreeMap<u64, Chunk>,
    /// Chunks that came so far.
    came: u64,
    /// Free ranges by the number of their chunk and their address: bytes. Neighbours are always joined, never across chunks.
    free: BTreeMap<(u64, u64), u64>,
}

#[derive(Debug)]
struct Chunk {
    /// How many came before it.
    number: u64,
    bytes: u64,
    /// The furthest end of a range that was taken of it, from its start.
    reach: u64,
}

impl Pool {
    pub(crate) fn new(red_zone: u64) -> Self {
        Pool { red_zone, chunks: BTreeMap::new(), came: 0, free: BTreeMap::new() }
    }

    /// Bytes that a range for `bytes` takes, red zone included; `None` when that is no number.
    pub(crate) fn footprint(&self, bytes: u64) -> Option<u64> {
        bytes.max(1).checked_next_multiple_of(GRAIN)?.checked_add(self.red_zone)
    }

    /// The first free range that holds `footprint` bytes, cut to size.
    pub(crate) fn take(&mut self, footprint: u64) -> Option<u64> {
        let (&(number, address), &size) = self.free.iter().find(|&(_, &size)| size >= footprint)?;
        self.free.remove(&(number, address));
        if size > footprint {
            self.free.insert((number, address + footprint), size - footprint);
        }
        let (&start, chunk) = self.chunks.range_mut(..=address).next_back()?;
        chunk.reach = chunk.reach.max(address + footprint - start);
        Some(address)
    }

    /// Gives a range of `footprint` bytes back.
    pub(crate) fn give(&mut self, address: u64, footprint: u64) {
        let Some((_, &Chunk { number, .. })) = self.chunks.range(..=address).next_back() else { return };
        let (mut start, mut size) = (address, footprint);
        if let Some((&before, &bytes)) = self.free.range((number, 0)..(number, start)).next_back()
            && before.1 + bytes == start
        {
            self.free.remove(&before);
            (start, size) = (before.1, size + bytes);
        }
        if let Some(bytes) = self.free.remove(&(number, start + size)) {
            size += bytes;
        }
        self.free.insert((number, start), size);
    }

    /// Adds a chunk of the driver, free as a whole.
    pub(crate) fn add_chunk(&mut self, address: u64, bytes: u64) {
        let number = self.came;
        self.came += 1;
        self.chunks.insert(address, Chunk { number, bytes, reach: 0 });
        self.free.insert((number, address), bytes);
    }

    /// Takes out every chunk that is free as a whole, to be given back to the driver: addresses and bytes.
    pub(crate) fn take_free_chunks(&mut self) -> Vec<(u64, u64)> {
        let chunks: Vec<(u64, u64)> = self.free_chunks().collect();
        for (address, _) in &chunks {
            if let Some(chunk) = self.chunks.remove(address) {
                self.free.remove(&(chunk.number, *address));
            }
        }
        chunks
    }

    /// Takes out every chunk, free or not: the device goes.
    pub(crate) fn take_all_chunks(&mut self) -> Vec<u64> {
        self.free.clear();
        std::mem::take(&mut self.chunks).into_keys().collect()
    }

    /// Bytes of all chunks.
    pub(crate) fn held(&self) -> u64 {
        self.chunks.values().map(|chunk| chunk.bytes).sum()
    }

    /// What was reached of all chunks: bytes of chunks that could have served the same calls.
    pub(crate) fn reach(&self) -> u64 {
        self.chunks.values().map(|chunk| chunk.reach).sum()
    }

    /// Bytes of chunks that are free as a whole.
    pub(crate) fn unused(&self) -> u64 {
        self.free_chunks().map(|(_, bytes)| bytes).sum()
    }

    fn free_chunks(&self) -> impl Iterator<Item = (u64, u64)> {
        let is_whole =
            |(address, chunk): &(&u64, &Chunk)| self.free.get(&(chunk.number, **address)) == Some(&chunk.bytes);
        self.chunks.iter().filter(is_whole).map(|(&address, chunk)| (address, chunk.bytes))
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

    #[test]
    fn the_first_fit_is_taken_in_the_order_of_chunks() {
        let mut pool = Pool::new(0);
        pool.add_chunk(0x9000, 1024);
        pool.add_chunk(0x1000, 512);
        // Not the lowest address, nor what would fit exactly.
        assert_eq!([256, 512, 256, 512].map(|bytes| pool.take(bytes)), [0x9000, 0x9100, 0x9300, 0x1000].map(Some));
        assert_eq!((pool.take(256), pool.reach(), pool.unused()), (None, 1536, 0));
        pool.give(0x1000, 512);
        assert_eq!((pool.reach(), pool.unused()), (1536, 512));
    }

    /// What any calls reach of a chunk without end is exactly what a chunk must have to serve them, from the same places.
    #[test]
    fn a_chunk_of_what_was_reached_serves_the_same_calls() {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..50 {
            let calls: Vec<u64> = (0..300)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state
                })
                .collect();
            // The addresses of all that was taken; nothing when one did not fit.
            let serve = |bytes: u64| {
                let mut pool = Pool::new(GRAIN);
                pool.add_chunk(0x10000, bytes);
                let (mut live, mut taken) = (Vec::new(), Vec::new());
                for call in &calls {
                    if call % 5 < 2 && !live.is_empty() {
                        let (address, footprint) = live.swap_remove((call >> 8) as usize % live.len());
                        pool.give(address, footprint);
                    } else {
                        let footprint = pool.footprint((call >> 8) % 50_000).unwrap();
                        let address = pool.take(footprint)?;
                        live.push((address, footprint));
                        taken.push(address);
                    }
                }
                Some((taken, pool.reach()))
            };
            let (places, reach) = serve(1 << 40).unwrap();
            assert_eq!(serve(reach), Some((places, reach)));
            assert_eq!(serve(reach - GRAIN), None, "a grain less");
        }
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
        assert!(pool.free.is_empty());
    }

    fn mark(used: &mut [bool], address: u64, footprint: u64, to: bool) {
        let first = ((address - 0x10000) / GRAIN) as usize;
        for grain in &mut used[first..first + (footprint / GRAIN) as usize] {
            assert_ne!(*grain, to, "a grain at {address:#x}");
            *grain = to;
        }
    }
}
