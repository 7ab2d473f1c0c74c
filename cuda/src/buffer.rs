//! Memory of a device, held by one owner.

use crate::memory::GraphMemory;
use crate::{Device, Result};
use std::sync::Arc;

/// Bytes on a device. They go back to the device's pool when this is dropped; whatever was launched before may still use them,
/// because all work of a device is in one order.
pub struct Buffer {
    device: Device,
    address: u64,
    bytes: u64,
    /// The graph in whose capture it was asked for.
    graph: Option<Arc<GraphMemory>>,
}

impl Buffer {
    pub(crate) fn new(device: Device, address: u64, bytes: u64, graph: Option<Arc<GraphMemory>>) -> Self {
        Buffer { device, address, bytes, graph }
    }

    /// The address on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The device that holds them.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Copies `from` here, beginning at byte `offset`.
    ///
    /// # Errors
    /// When it does not fit, or the device fails.
    pub fn write(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        let address = self.range("write", offset, from.len() as u64)?;
        self.device.write(address, from)
    }

    /// Copies the bytes from `offset` on to the host: waits for everything that was launched.
    ///
    /// # Errors
    /// When there are fewer, a kernel before has failed, or the device fails.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let address = self.range("read", offset, to.len() as u64)?;
        self.device.read(address, to)
    }

    /// Sets every byte to `value`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fill(&mut self, value: u8) -> Result<()> {
        self.device.fill(self.address, value, self.bytes)
    }

    /// Copies all of `from`, which may be on this device only, to the bytes from `offset` on.
    ///
    /// # Errors
    /// When it does not fit or is on another device.
    pub fn copy_from(&mut self, offset: u64, from: &Buffer) -> Result<()> {
        if from.device != self.device {
            return Err(crate::Error::invalid("copy: the buffers are on two devices"));
        }
        let address = self.range("copy", offset, from.bytes)?;
        self.device.copy(address, from.address, from.bytes)
    }

    fn range(&self, what: &str, offset: u64, bytes: u64) -> Result<u64> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.address + offset),
            _ => Err(crate::Error::invalid(format!("{what}: {bytes} bytes at {offset} of {} bytes", self.bytes))),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.device.give_back(self.address, self.bytes, self.graph.as_deref());
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes at {:#x})", self.bytes, self.address)
    }
}
