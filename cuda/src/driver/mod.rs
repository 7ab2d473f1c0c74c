//! What a device must be able to do. Two implementations: NVIDIA's driver and the virtual GPU. Nothing above knows which.

#[cfg(feature = "emulator")]
pub(crate) mod emulator;
#[cfg(feature = "emulator")]
pub(crate) mod failing;
#[cfg(feature = "cuda")]
pub(crate) mod nvidia;
#[cfg(feature = "kernels")]
pub(crate) mod nvrtc;
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(crate) mod planner;

use crate::launch::Launch;
use crate::{DeviceInfo, Result};

/// A module that was loaded.
pub(crate) type ModuleId = u64;
/// A kernel of a loaded module.
pub(crate) type FunctionId = u64;
/// A point in the stream.
pub(crate) type EventId = u64;
/// A captured piece of the stream.
pub(crate) type GraphId = u64;

/// A module to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Its text, which every driver takes.
    pub(crate) ptx: String,
    /// The machine code of it for this very device, where that is at hand.
    pub(crate) cubin: Option<Vec<u8>>,
}

/// One device with one stream. Everything but `read`, `write` and `synchronize` may return before it is done, and happens in the
/// order of the calls. Between `begin_capture` and `end_capture` the device asks for launches, copies and fills only.
pub(crate) trait Driver: Send + Sync {
    fn info(&self) -> &DeviceInfo;

    /// Whether nothing is ever done, and what is read means nothing.
    fn is_planner(&self) -> bool {
        false
    }
    /// Whether memory has no end: then what is reached of a chunk counts, not its size.
    fn is_endless(&self) -> bool {
        false
    }
    /// Bytes to leave unused behind every range of a pool.
    fn red_zone(&self) -> u64 {
        0
    }
    /// Bytes that could be had in chunks now, by anybody, without what modules need that are loaded later.
    fn free_bytes(&self) -> Result<u64>;
    /// A chunk of memory, aligned to at least 256 bytes, contents arbitrary.
    fn alloc(&self, bytes: u64) -> Result<u64>;
    /// Gives a chunk back.
    fn free(&self, address: u64) -> Result<()>;
    /// A range of a chunk is in use from now on, and nothing in the chunk but such ranges.
    fn announce(&self, address: u64, bytes: u64) -> Result<()>;
    /// The range is not in use any more.
    fn retire(&self, address: u64, bytes: u64) -> Result<()>;

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()>;
    /// Waits for all that came before.
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()>;
    fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<()>;
    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()>;
    fn synchronize(&self) -> Result<()>;

    /// Whether it runs machine code, which then need not be made of PTX at every start.
    fn takes_cubins(&self) -> bool {
        false
    }
    /// Loads a module. `name` is for messages.
    fn load(&self, name: &str, image: &Image) -> Result<ModuleId>;
    /// Nothing that launches the module's kernels may be under way or follow, graphs included.
    fn unload(&self, module: ModuleId) -> Result<()>;
    /// The kernel `name`, whose parameters have `sizes` bytes.
    fn function(&self, module: ModuleId, name: &str, sizes: &[usize]) -> Result<FunctionId>;
    /// Starts a kernel; `args` are the bytes of each argument in order, of the sizes that `function` was given.
    fn launch(&self, function: FunctionId, launch: &Launch, args: &[&[u8]]) -> Result<()>;

    fn record(&self) -> Result<EventId>;
    /// Milliseconds between two events, which both must have happened: waits for the later.
    fn elapsed(&self, from: EventId, to: EventId) -> Result<f32>;
    fn drop_event(&self, event: EventId);

    /// From here on launches, copies and fills are noted, not done. Never called twice without `end_capture` between.
    fn begin_capture(&self) -> Result<()>;
    fn end_capture(&self) -> Result<GraphId>;
    fn launch_graph(&self, graph: GraphId) -> Result<()>;
    fn drop_graph(&self, graph: GraphId);

    /// What kernels printed since the last call, where the driver keeps it.
    fn take_printed(&self) -> String {
        String::new()
    }

    /// What launches did since the last call, where the driver counts it.
    #[cfg(feature = "emulator")]
    fn take_counters(&self) -> Option<kinglet_emulator::counters::Counters> {
        None
    }
}
