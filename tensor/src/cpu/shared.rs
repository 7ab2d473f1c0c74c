//! One output that tasks write disjoint parts of, where the parts are no contiguous chunks.

use std::marker::PhantomData;

/// A mutable slice that several threads hold.
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a pointer and a length; who follows the pointer promises disjointness (see the methods).
unsafe impl Sync for Shared<'_> {}
// SAFETY: as above.
unsafe impl Send for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(slice: &'a mut [f32]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// Elements `at .. at + len`.
    ///
    /// # Safety
    /// Nothing else accesses these elements while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: inside the borrowed slice (asserted); unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }

    /// The first element of a rectangle of `rows` rows of `cols` elements, `stride` apart, from `at` on, which
    /// lies inside the slice. To write through it is as unsafe as [`Shared::slice`].
    pub(super) fn rectangle(&self, at: usize, rows: usize, cols: usize, stride: usize) -> *mut f32 {
        assert!(rows > 0 && at + (rows - 1) * stride + cols <= self.len);
        self.start.wrapping_add(at)
    }
}
