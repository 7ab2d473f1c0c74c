//! A driver of which one call fails, to test that nothing leaks and nothing breaks.

use super::{Driver, EventId, FunctionId, GraphId, Image, ModuleId};
use crate::launch::Launch;
use crate::{DeviceInfo, Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// Passes every call on, but the `at`-th (from 0), which fails as if memory had run out. To take a range back is bookkeeping
/// that cannot fail, and is passed on always; so is the dropping of events and graphs.
pub(crate) struct Failing {
    inner: Box<dyn Driver>,
    at: u64,
    calls: AtomicU64,
}

impl Failing {
    pub(crate) fn new(inner: Box<dyn Driver>, at: u64) -> Self {
        Failing { inner, at, calls: AtomicU64::new(0) }
    }

    /// The driver, unless it is this call's turn to fail.
    fn next(&self) -> Result<&dyn Driver> {
        match self.calls.fetch_add(1, Ordering::Relaxed) == self.at {
            true => Err(Error::OutOfMemory { requested: 1, held: 0 }),
            false => Ok(&*self.inner),
        }
    }
}

impl Driver for Failing {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn red_zone(&self) -> u64 {
        self.inner.red_zone()
    }
    fn free_bytes(&self) -> Result<u64> {
        self.inner.free_bytes()
    }
    fn alloc(&self, bytes: u64) -> Result<u64> {
        self.next()?.alloc(bytes)
    }
    fn free(&self, address: u64) -> Result<()> {
        self.next()?.free(address)
    }
    fn announce(&self, address: u64, bytes: u64) -> Result<()> {
        self.next()?.announce(address, bytes)
    }
    fn retire(&self, address: u64, bytes: u64) -> Result<()> {
        self.inner.retire(address, bytes)
    }
    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.next()?.write(address, bytes)
    }
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.next()?.read(address, bytes)
    }
    fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<()> {
        self.next()?.copy(to, from, bytes)
    }
    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        self.next()?.fill(address, value, bytes)
    }
    fn synchronize(&self) -> Result<()> {
        self.next()?.synchronize()
    }
    fn takes_cubins(&self) -> bool {
        self.inner.takes_cubins()
    }
    fn load(&self, name: &str, image: &Image) -> Result<ModuleId> {
        self.next()?.load(name, image)
    }
    fn unload(&self, module: ModuleId) -> Result<()> {
        self.next()?.unload(module)
    }
    fn function(&self, module: ModuleId, name: &str, sizes: &[usize]) -> Result<FunctionId> {
        self.next()?.function(module, name, sizes)
    }
    fn launch(&self, function: FunctionId, launch: &Launch, args: &[&[u8]]) -> Result<()> {
        self.next()?.launch(function, launch, args)
    }
    fn record(&self) -> Result<EventId> {
        self.next()?.record()
    }
    fn elapsed(&self, from: EventId, to: EventId) -> Result<f32> {
        self.next()?.elapsed(from, to)
    }
    fn drop_event(&self, event: EventId) {
        self.inner.drop_event(event);
    }
    fn begin_capture(&self) -> Result<()> {
        self.next()?.begin_capture()
    }
    fn end_capture(&self) -> Result<GraphId> {
        self.next()?.end_capture()
    }
    fn launch_graph(&self, graph: GraphId) -> Result<()> {
        self.next()?.launch_graph(graph)
    }
    fn drop_graph(&self, graph: GraphId) {
        self.inner.drop_graph(graph);
    }
    fn take_printed(&self) -> String {
        self.inner.take_printed()
    }
    fn take_counters(&self) -> Option<kinglet_emulator::counters::Counters> {
        self.inner.take_counters()
    }
}
