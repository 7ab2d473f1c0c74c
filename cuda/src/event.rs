//! Points in a device's stream, and captured pieces of it.

use crate::driver::{EventId, GraphId};
use crate::{Device, Result};

/// A point in the order of a device's work. From [`Device::record`].
pub struct Event {
    pub(crate) device: Device,
    pub(crate) id: EventId,
}

impl Event {
    /// Milliseconds from this point to `later`; waits for it. The virtual GPU gives the host's time.
    ///
    /// # Errors
    /// When the events are of two devices, or the device fails.
    pub fn elapsed(&self, later: &Event) -> Result<f32> {
        if self.device != later.device {
            return Err(crate::Error::invalid("elapsed: the events are of two devices"));
        }
        self.device.driver().elapsed(self.id, later.id)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.driver().drop_event(self.id);
    }
}

/// Launches that were captured, to be started again as a whole. From [`Device::capture`]. The buffers that they use must live as
/// long as it does: it holds addresses only.
pub struct Graph {
    pub(crate) device: Device,
    pub(crate) id: GraphId,
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
    }
}
