//! A device's memory: ranges of the pool's chunks, lent as buffers, and what a graph keeps of them.

use crate::device::lock;
use crate::pool::Pool;
use crate::{Buffer, Device, Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes of buffers: how many live, and the most that ever did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes of living buffers, as asked for.
    pub live: u64,
    /// The largest `live` since the device was made or [`Device::reset_peak`].
    pub peak: u64,
    /// Bytes of the chunks that the pool holds: what the driver counts for this process. On a planner, what such chunks must have.
    pub held: u64,
}

/// What a device knows of its memory.
pub(crate) struct Memory {
    pool: Mutex<Pool>,
    usage: Mutex<MemoryUse>,
    /// Where memory comes from while work is noted, not done: then the host may neither wait nor lend its own.
    capture: Mutex<Option<Arc<GraphMemory>>>,
    driver_allocations: AtomicU64,
    /// What `held` may come to.
    limit: AtomicU64,
}

/// The memory that was asked for while a graph was captured. Ranges that are given back serve what is asked for later in the
/// same capture; to the device they go back as a whole.
pub(crate) struct GraphMemory {
    device: Device,
    pool: Mutex<Pool>,
}

impl Memory {
    pub(crate) fn new(red_zone: u64) -> Self {
        Memory {
            pool: Mutex::new(Pool::new(red_zone)),
            usage: Mutex::default(),
            capture: Mutex::default(),
            driver_allocations: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
        }
    }

    pub(crate) fn begin_capture(&self, memory: Arc<GraphMemory>) {
        *lock(&self.capture) = Some(memory);
    }

    pub(crate) fn end_capture(&self) {
        // Dropped behind the lock: it gives ranges back.
        let memory = lock(&self.capture).take();
        drop(memory);
    }

    pub(crate) fn capturing(&self) -> bool {
        lock(&self.capture).is_some()
    }

    pub(crate) fn driver_allocations(&self) -> u64 {
        self.driver_allocations.load(Ordering::Relaxed)
    }

    pub(crate) fn take_all_chunks(&self) -> Vec<u64> {
        lock(&self.pool).take_all_chunks()
    }
}

impl GraphMemory {
    pub(crate) fn new(device: &Device) -> Self {
        // The ranges that it lends have the pool's red zones in them already.
        GraphMemory { device: device.clone(), pool: Mutex::new(Pool::new(0)) }
    }
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        let own = self.pool.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut pool = lock(&self.device.parts().pool);
        for (address, footprint) in own.take_free_chunks() {
            pool.give(address, footprint);
        }
    }
}

/// A chunk is at least this large, so that few calls reach the driver.
const CHUNK: u64 = 8 << 20;
/// The one chunk of a device whose memory has no end.
const ENDLESS: u64 = 1 << 50;

fn lost() -> Error {
    Error::invalid("the pool lost a chunk")
}

impl Device {
    /// `bytes` bytes with arbitrary contents, aligned to 256.
    ///
    /// # Errors
    /// When the device has no more, even after the pool's unused chunks were given back.
    pub fn alloc(&self, bytes: u64) -> Result<Buffer> {
        let mut pool = lock(&self.parts().pool);
        let footprint = pool.footprint(bytes).ok_or(Error::OutOfMemory { requested: bytes, held: pool.held() })?;
        let graph = lock(&self.parts().capture).clone();
        let address = match &graph {
            None => self.take(&mut pool, footprint)?,
            Some(graph) => {
                let mut own = lock(&graph.pool);
                match own.take(footprint) {
                    Some(address) => address,
                    None => {
                        own.add_chunk(self.take(&mut pool, footprint)?, footprint);
                        own.take(footprint).ok_or_else(lost)?
                    }
                }
            }
        };
        if let Err(error) = self.driver().announce(address, bytes) {
            match &graph {
                None => pool.give(address, footprint),
                Some(graph) => lock(&graph.pool).give(address, footprint),
            }
            return Err(error);
        }
        drop(pool);
        let mut usage = lock(&self.parts().usage);
        usage.live += bytes;
        usage.peak = usage.peak.max(usage.live);
        Ok(Buffer::new(self.clone(), address, bytes, graph))
    }

    /// A range of the pool, which grows when it has none.
    fn take(&self, pool: &mut Pool, footprint: u64) -> Result<u64> {
        match pool.take(footprint) {
            Some(address) => Ok(address),
            None => {
                self.grow(pool, footprint)?;
                pool.take(footprint).ok_or_else(lost)
            }
        }
    }

    /// A chunk that holds `footprint` bytes: a large one, or just what is needed once memory is scarce.
    fn grow(&self, pool: &mut Pool, footprint: u64) -> Result<()> {
        self.not_capturing("memory is asked for")?;
        let roomy = footprint.max(if self.driver().is_endless() { ENDLESS } else { CHUNK });
        self.add_chunk(pool, roomy).or_else(|error| {
            if !error.is_out_of_memory() {
                return Err(error);
            }
            self.free_unused(pool)?;
            self.add_chunk(pool, footprint)
        })
    }

    /// A chunk of the driver, within the limit.
    fn add_chunk(&self, pool: &mut Pool, bytes: u64) -> Result<()> {
        let held = pool.held();
        let scarce = Error::OutOfMemory { requested: bytes, held };
        if held.saturating_add(bytes) > self.parts().limit.load(Ordering::Relaxed) {
            return Err(scarce);
        }
        let address =
            self.driver().alloc(bytes).map_err(|error| if error.is_out_of_memory() { scarce } else { error })?;
        self.parts().driver_allocations.fetch_add(1, Ordering::Relaxed);
        pool.add_chunk(address, bytes);
        Ok(())
    }

    /// Takes a chunk of `bytes` bytes from the driver now, which serves buffers before any later chunk does: with as much as a
    /// planner came to hold, what ran there runs here without another chunk.
    ///
    /// # Errors
    /// When the device has no more, even after the pool's unused chunks were given back.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        self.not_capturing("memory is asked for")?;
        let mut pool = lock(&self.parts().pool);
        self.free_unused(&mut pool)?;
        self.add_chunk(&mut pool, bytes)
    }

    /// From now on the pool takes no chunk with which it would hold more than `bytes`; `u64::MAX` is no limit.
    pub fn set_limit(&self, bytes: u64) {
        self.parts().limit.store(bytes, Ordering::Relaxed);
    }

    /// Takes a buffer back, to the graph that it belongs to if there is one.
    pub(crate) fn give_back(&self, address: u64, bytes: u64, graph: Option<&GraphMemory>) {
        // A range that the driver did not know can only come from a fault of ours; it must not stop the pool.
        let _ = self.driver().retire(address, bytes);
        let mut pool = lock(&self.parts().pool);
        if let Some(footprint) = pool.footprint(bytes) {
            match graph {
                None => pool.give(address, footprint),
                Some(graph) => lock(&graph.pool).give(address, footprint),
            }
        }
        drop(pool);
        lock(&self.parts().usage).live -= bytes;
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.wait("a write from the host")?;
        self.driver().write(address, bytes)
    }

    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.wait("a read by the host")?;
        self.driver().read(address, bytes)
    }

    pub(crate) fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        if bytes == 0 { Ok(()) } else { self.driver().fill(address, value, bytes) }
    }

    pub(crate) fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<()> {
        if bytes == 0 { Ok(()) } else { self.driver().copy(to, from, bytes) }
    }

    /// Bytes in use.
    #[must_use]
    pub fn memory(&self) -> MemoryUse {
        let pool = lock(&self.parts().pool);
        let held = if self.driver().is_endless() { pool.reach() } else { pool.held() };
        drop(pool);
        MemoryUse { held, ..*lock(&self.parts().usage) }
    }

    /// Bytes that [`Device::reserve`] could have: what the device has free, whoever uses the rest, and the pool's unused chunks.
    ///
    /// # Errors
    /// When the device fails.
    pub fn available(&self) -> Result<u64> {
        let unused = lock(&self.parts().pool).unused();
        Ok(self.driver().free_bytes()? + unused)
    }

    /// Starts a new count of the peak from what lives now.
    pub fn reset_peak(&self) {
        let mut usage = lock(&self.parts().usage);
        usage.peak = usage.live;
    }

    /// Gives the pool's unused chunks back to the driver.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn release_cache(&self) -> Result<()> {
        self.not_capturing("memory goes back to the driver")?;
        self.free_unused(&mut lock(&self.parts().pool))
    }

    /// Gives chunks back that are free as a whole; one that the driver refuses stays in the pool.
    fn free_unused(&self, pool: &mut Pool) -> Result<()> {
        let mut result = Ok(());
        for (address, bytes) in pool.take_free_chunks() {
            if let Err(error) = self.driver().free(address) {
                pool.add_chunk(address, bytes);
                result = result.and(Err(error));
            }
        }
        result
    }
}
