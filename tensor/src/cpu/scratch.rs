//! Working memory of kernels, kept between calls: a fresh megabyte costs more to fault in and clear
//! than a small product takes.

use bytemuck::Pod;
use std::marker::PhantomData;
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
    /// A buffer of `len` elements: the smallest free one that is large enough, else the largest, grown.
    /// So there are never more buffers than were in use at once.
    pub(super) fn take<T: Pod>(self: &Arc<Self>, len: usize) -> Buffer<T> {
        const { assert!(align_of::<T>() <= align_of::<Line>()) };
        let buffer = |memory| Buffer { memory, len, home: self.clone(), elements: PhantomData };
        if len == 0 {
            return buffer(Vec::new()); // keeps nobody from a buffer
        }
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
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
        buffer(memory)
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

/// Elements, floats if nothing else is said, that start on a cache line and hold whatever the last user left there. Goes back to
/// its pool when dropped.
pub(crate) struct Buffer<T: Pod = f32> {
    memory: Vec<Line>,
    len: usize,
    home: Arc<Pool>,
    elements: PhantomData<T>,
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `memory` holds at least `len` elements of initialised bytes (`take`), aligned for them, and any bytes make a
        // `Pod`; `Line` is 64 bytes without padding.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `self` is borrowed mutably, so the slice is unique.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }
}

impl<T: Pod> Drop for Buffer<T> {
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
        let (mut a, b) = (pool.take::<f32>(1000), pool.take::<f32>(10));
        assert!((a.len(), b.len()) == (1000, 10) && a.as_ptr().cast::<Line>().is_aligned());
        a[999] = 7.0;
        let at = a.as_ptr();
        drop((a, b));
        assert_eq!(pool.take::<f32>(1000).as_ptr(), at);
        assert_eq!(pool.bytes(), (63 + 1) * 64);
        let (_nothing, _small, _large) = (pool.take::<f32>(0), pool.take::<u16>(20), pool.take::<f32>(2000));
        assert_eq!(pool.free.lock().expect("not poisoned").len(), 0);
        assert_eq!(pool.bytes(), (1 + 125) * 64, "the smaller one fits, the larger one grew");
    }
}
