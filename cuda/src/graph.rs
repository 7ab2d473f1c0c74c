//! Captured pieces of a device's stream, and the memory that they work in.

use crate::device::{Hold, lock};
use crate::driver::GraphId;
use crate::memory::GraphMemory;
use crate::{Device, Result};
use std::sync::Arc;

/// Launches that were captured, to be started again as a whole. From [`Device::capture`].
///
/// What was asked for during the capture belongs to the graph, given back or not: every launch of it uses the same addresses, and
/// nobody else gets them before the graph and the last of its buffers are gone. Buffers from before the capture must live as long
/// as the graph does: it holds their addresses only.
pub struct Graph {
    device: Device,
    id: GraphId,
    _memory: Arc<GraphMemory>,
    /// The modules of replaced kernels in it, which are not unloaded before the graph is gone.
    held: Vec<Hold>,
}

impl Graph {
    /// Starts everything that was captured, in its order.
    ///
    /// # Errors
    /// When the device fails.
    pub fn launch(&self) -> Result<()> {
        self.device.not_capturing("a graph is launched")?;
        self.device.driver().launch_graph(self.id)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.device.driver().drop_graph(self.id);
        self.device.let_go(std::mem::take(&mut self.held));
    }
}

impl Device {
    /// Notes everything that `work` launches, without doing it, as a graph. Nobody else may use the device meanwhile: what other
    /// threads launch on it would be noted too.
    ///
    /// The pool must have the memory already, so `work` is run once before as usual.
    ///
    /// # Errors
    /// What `work` reports, or a call in it that cannot be captured (a read, or memory that the pool does not have yet).
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        /// Ends the capture where `work` does not come back: the device must not go on noting.
        struct Capturing<'a>(&'a Device);
        impl Drop for Capturing<'_> {
            fn drop(&mut self) {
                self.0.parts().end_capture();
                lock(self.0.kernels()).captured = None;
                if let Ok(id) = self.0.driver().end_capture() {
                    self.0.driver().drop_graph(id);
                }
            }
        }
        self.not_capturing("a capture begins")?;
        {
            // No launch of another thread lies between these two.
            let mut kernels = lock(self.kernels());
            self.driver().begin_capture()?;
            kernels.captured = Some(Vec::new());
        }
        let memory = Arc::new(GraphMemory::new(self));
        self.parts().begin_capture(memory.clone());
        let capturing = Capturing(self);
        work()?;
        let mut kernels = lock(self.kernels());
        let id = self.driver().end_capture();
        let held = kernels.captured.take().unwrap_or_default();
        drop(kernels);
        let id = id?;
        std::mem::forget(capturing);
        self.parts().end_capture();
        Ok(Graph { device: self.clone(), id, _memory: memory, held })
    }
}
