//! One output that tasks write disjoint parts of, where the parts are no contiguous chunks.

use std::marker::PhantomData;

/// A mutable slice that several threads hold.
pub(super) struct Shared<'a, T = f32> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a pointer and a length; who follows the pointer promises disjointness (see the methods), and elements
// that may be sent may be written from there.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// Elements `at .. at + len`.
    ///
    /// # Safety
    /// Nothing else accesses these elements while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: inside the borrowed slice (asserted); unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

/// A slice cut into pieces of one length; the last may be shorter.
pub(super) struct Pieces<'a, T> {
    slice: Shared<'a, T>,
    len: usize,
}

impl<'a, T> Pieces<'a, T> {
    pub(super) fn new(slice: &'a mut [T], len: usize) -> Self {
        Pieces { slice: Shared::new(slice), len: len.max(1) }
    }

    pub(super) fn count(&self) -> usize {
        self.slice.len.div_ceil(self.len)
    }

    /// Piece `i`.
    ///
    /// # Safety
    /// Nothing else accesses this piece while it lives; different pieces do not overlap.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn get(&self, i: usize) -> &mut [T] {
        let at = i * self.len;
        // SAFETY: the caller's promise is that of `Shared::slice`.
        unsafe { self.slice.slice(at, self.len.min(self.slice.len - at)) }
    }
}
