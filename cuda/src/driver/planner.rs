//! A driver that runs nothing: memory is addresses. What a run takes of the pool can be counted on it.

use super::{Driver, EventId, FunctionId, GraphId, Image, ModuleId};
use crate::launch::Launch;
use crate::{DeviceInfo, Error, Result};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Stands for another device.
pub(crate) struct Planner {
    info: DeviceInfo,
    red_zone: u64,
    /// Whether memory runs out where that of the other device would.
    limited: bool,
    chunks: Mutex<Chunks>,
}

struct Chunks {
    /// Where the next one begins.
    next: u64,
    /// Bytes of each by address.
    bytes: HashMap<u64, u64>,
}

/// The first address, and what chunks are aligned to.
const START: u64 = 1 << 32;
const ALIGNMENT: u64 = 1 << 21;
/// More than any run asks for, and still addresses.
const NO_END: u64 = 1 << 60;

impl Planner {
    /// Whose memory has no end.
    pub(crate) fn of(driver: &dyn Driver) -> Self {
        let chunks = Mutex::new(Chunks { next: START, bytes: HashMap::new() });
        Planner { info: driver.info().clone(), red_zone: driver.red_zone(), limited: false, chunks }
    }

    /// With as much memory as the other device has.
    #[cfg(feature = "emulator")]
    pub(crate) fn limited(driver: &dyn Driver) -> Self {
        Planner { limited: true, ..Self::of(driver) }
    }

    fn chunks(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free_of(&self, chunks: &Chunks) -> u64 {
        let memory = if self.limited { self.info.memory_bytes } else { NO_END };
        memory.saturating_sub(chunks.bytes.values().sum())
    }
}

impl Driver for Planner {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn is_planner(&self) -> bool {
        true
    }
    fn is_endless(&self) -> bool {
        !self.limited
    }
    fn red_zone(&self) -> u64 {
        self.red_zone
    }
    fn free_bytes(&self) -> Result<u64> {
        Ok(self.free_of(&self.chunks()))
    }
    fn alloc(&self, bytes: u64) -> Result<u64> {
        let mut chunks = self.chunks();
        if bytes > self.free_of(&chunks) {
            return Err(Error::OutOfMemory { requested: bytes, held: 0 });
        }
        let address = chunks.next;
        // Chunks are neighbours nowhere.
        chunks.next += bytes.next_multiple_of(ALIGNMENT) + ALIGNMENT;
        chunks.bytes.insert(address, bytes);
        Ok(address)
    }
    fn free(&self, address: u64) -> Result<()> {
        self.chunks().bytes.remove(&address);
        Ok(())
    }
    fn announce(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn retire(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn read(&self, _: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        Ok(())
    }
    fn copy(&self, _: u64, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn fill(&self, _: u64, _: u8, _: u64) -> Result<()> {
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn load(&self, _: &str, _: &Image) -> Result<ModuleId> {
        Ok(0)
    }
    fn unload(&self, _: ModuleId) -> Result<()> {
        Ok(())
    }
    fn function(&self, _: ModuleId, _: &str, _: &[usize]) -> Result<FunctionId> {
        Ok(0)
    }
    fn launch(&self, _: FunctionId, _: &Launch, _: &[&[u8]]) -> Result<()> {
        Ok(())
    }
    fn record(&self) -> Result<EventId> {
        Ok(0)
    }
    fn elapsed(&self, _: EventId, _: EventId) -> Result<f32> {
        Ok(0.0)
    }
    fn drop_event(&self, _: EventId) {}
    fn begin_capture(&self) -> Result<()> {
        Ok(())
    }
    fn end_capture(&self) -> Result<GraphId> {
        Ok(0)
    }
    fn launch_graph(&self, _: GraphId) -> Result<()> {
        Ok(())
    }
    fn drop_graph(&self, _: GraphId) {}
}
