//! A driver that does nothing: every call succeeds, memory is addresses. What a run takes of the pool can be counted on it.

use super::{Driver, EventId, FunctionId, GraphId, Image, ModuleId};
use crate::launch::Launch;
use crate::{DeviceInfo, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// Stands for another device.
pub(crate) struct Planner {
    info: DeviceInfo,
    red_zone: u64,
    /// Where the next chunk begins.
    next: AtomicU64,
}

/// The first address, and what chunks are aligned to.
const START: u64 = 1 << 32;

impl Planner {
    pub(crate) fn of(driver: &dyn Driver) -> Self {
        Planner { info: driver.info().clone(), red_zone: driver.red_zone(), next: AtomicU64::new(START) }
    }
}

impl Driver for Planner {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn is_planner(&self) -> bool {
        true
    }
    fn red_zone(&self) -> u64 {
        self.red_zone
    }
    fn free_bytes(&self) -> Result<u64> {
        Ok(self.info.memory_bytes)
    }
    fn alloc(&self, bytes: u64) -> Result<u64> {
        // Chunks are neighbours nowhere.
        Ok(self.next.fetch_add(bytes.next_multiple_of(1 << 21) + (1 << 21), Ordering::Relaxed))
    }
    fn free(&self, _: u64) -> Result<()> {
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
