//! Points in a device's stream.

use crate::driver::EventId;
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
    /// When the events are of two devices, in the middle of a capture, or when the device fails.
    pub fn elapsed(&self, later: &Event) -> Result<f32> {
        if self.device != later.device {
            return Err(crate::Error::invalid("elapsed: the events are of two devices"));
        }
        self.device.wait("the host waits for an event")?;
        self.device.driver().elapsed(self.id, later.id)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.driver().drop_event(self.id);
    }
}
