//! Working memory of kernels, kept between calls: a fresh megabyte costs more to fault in and clear
//! than a small product takes.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// One cache line, so that buffers start on one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// The buffers of one [`super::Cpu`].
#[derive(Default)]
pub(super) struct Pool {
    /// Those that nobody uses just now.
    free: Mutex<Vec<Vec<Line>>>,
    /// Bytes of all of them, in use or not.
    bytes: AtomicUsize,
}

impl Pool {
    /// A buffer of `len` floats: the smallest free one that is large enough, else the largest, grown.
    /// So there are never more buffers than were in use at once.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        if len == 0 {
            return Buffer { memory: Vec::new(), len, home: self.clone() }; // keeps nobody from a buffer
        }
        let lines = len.div_ceil(16);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = (0..free.len()).filter(|&i| free[i].len() >= lines).min_by_key(|&i| free[i].len());
        let pick = fits.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
        let mut memory = pick.map(|i| free.swap_remove(i)).unwrap_or_default();
        drop(free);
        if memory.len() < lines {
            self.bytes.fetch_add((lines - memory.len()) * size_of::<Line>(), Ordering::Relaxed);
            drop(memory); // before the larger one is there
            memory = vec![Line([0.0; 16]); lines];
        }
        Buffer { memory, len, home: self.clone() }
    }

    /// Gives back the buffers that nobody uses just now.
    pub(super) fn release(&self) {
        let free = std::mem::take(&mut *self.free.lock().unwrap_or_else(PoisonError::into_inner));
        let bytes: usize = free.iter().map(|memory| memory.len() * size_of::<Line>()).sum();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of all buffers, in use or free. Between two releases buffers only grow, so this is also the most that there
    /// were since.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Floats that start on a cache line and hold whatever the last user left there. Goes back to its pool
/// when dropped.
pub(crate) struct Buffer {
    memory: Vec<Line>,
    len: usize,
    home: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `memory` holds at least `len` initialised floats (`take`); `Line` is 16 floats without padding.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`; `self` is borrowed mutably, so the slice is unique.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if memory.is_empty() {
            return;
        }
        self.home.free.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_used_again() {
        let pool = Arc::new(Pool::default());
        let (mut a, b) = (pool.take(1000), pool.take(10));
        assert!((a.len(), b.len()) == (1000, 10) && a.as_ptr().cast::<Line>().is_aligned());
        a[999] = 7.0;
        let at = a.as_ptr();
        drop((a, b));
        assert_eq!(pool.take(1000).as_ptr(), at);
        assert_eq!(pool.bytes(), (63 + 1) * 64);
        let (_nothing, _small, _large) = (pool.take(0), pool.take(10), pool.take(2000));
        assert_eq!(pool.free.lock().expect("not poisoned").len(), 0);
        assert_eq!(pool.bytes(), (1 + 125) * 64, "the smaller one fits, the larger one grew");
    }
}
