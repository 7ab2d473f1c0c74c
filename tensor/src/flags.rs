//! What only a device can see: kernels report it in a word of memory, and the host looks when it waits for them anyway.

use crate::cuda::Arg;
use crate::{Device, Error, Result};
use kinglet_cuda::Buffer;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A 64-bit word of device memory, by which a kernel reports that it was given something wrong (an id outside of a table, a
/// weight that is no number): only the device knows what is in a tensor.
pub struct Flag {
    word: Word,
    device: Device,
}

/// The word, and what it is before the launch. It holds no handle of the tensors' device, which holds it.
struct Word {
    buffer: Buffer,
    clear: u64,
}

/// Makes the error of a word that a kernel has changed.
type ErrorOf = Box<dyn FnOnce(u64) -> Error + Send>;

/// Words of kernels that were launched, not looked at yet.
#[derive(Default)]
pub(crate) struct Flags(Mutex<Vec<(Word, ErrorOf)>>);

impl Flag {
    /// A word of 0, which a kernel changes when something is wrong.
    ///
    /// # Errors
    /// When memory runs out, or `device` is no CUDA device.
    pub fn zero(device: &Device) -> Result<Self> {
        Self::new(0, device)
    }

    /// A word of 2⁶⁴ - 1, for kernels that leave the first thing at fault there: its index in the upper half, its value in the
    /// lower (`atomicMin`). See [`first_at_fault`].
    ///
    /// # Errors
    /// As [`Flag::zero`].
    pub fn max(device: &Device) -> Result<Self> {
        Self::new(u64::MAX, device)
    }

    fn new(clear: u64, device: &Device) -> Result<Self> {
        let mut buffer = device.as_cuda()?.alloc(size_of::<u64>() as u64)?;
        buffer.fill(clear.to_le_bytes()[0])?;
        Ok(Flag { word: Word { buffer, clear }, device: device.clone() })
    }

    /// The address of the word.
    #[must_use]
    pub fn arg(&self) -> Arg<'static> {
        Arg::Pointer(self.word.buffer.address())
    }

    /// After the launch: the device has an error, the one that `error` makes of the word, unless that is still what it was.
    ///
    /// Nobody waits for it here, as a training step must not wait in its middle: the error comes from the next read of a tensor
    /// of this device or from [`Device::synchronize`], whatever comes first. `error` must hold no tensor of the device, which
    /// would keep each other alive.
    pub fn check(self, error: impl FnOnce(u64) -> Error + Send + 'static) {
        self.device.flags().lock().push((self.word, Box::new(error)));
    }

    /// As [`Flag::check`], but waits for the device and gives the error here.
    ///
    /// # Errors
    /// When the kernel has changed the word, or failed.
    pub fn check_now(self, error: impl FnOnce(u64) -> Error) -> Result<()> {
        self.word.check(error)
    }
}

/// Index and value that a kernel left in the word of [`Flag::max`].
#[must_use]
pub fn first_at_fault(word: u64) -> (usize, i32) {
    ((word >> 32) as usize, word as u32 as i32)
}

impl Word {
    fn check(self, error: impl FnOnce(u64) -> Error) -> Result<()> {
        let mut bytes = [0; size_of::<u64>()];
        self.buffer.read(0, &mut bytes)?;
        match u64::from_le_bytes(bytes) {
            word if word == self.clear => Ok(()),
            word => Err(error(word)),
        }
    }
}

impl Flags {
    /// Looks at all of them, which waits for the device if there is any; afterwards there are none.
    ///
    /// # Errors
    /// That of the first that was changed.
    pub(crate) fn check(&self) -> Result<()> {
        let words = std::mem::take(&mut *self.lock());
        words.into_iter().try_for_each(|(word, error)| word.check(error))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Word, ErrorOf)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
