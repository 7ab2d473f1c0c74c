//! Places that kernels write: a tensor that is being made, and a part of one.

use crate::layout::{Layout, Shape, checked_len};
use crate::storage::Storage;
use crate::{DType, Device, Element, Error, Result, Tensor};

/// A tensor that is being made: nobody else holds its bytes. From [`Device::alloc`].
pub struct Output {
    pub(crate) storage: Storage,
    shape: Shape,
    dtype: DType,
}

/// Contiguous elements that a kernel writes, borrowed from their one holder.
pub struct TensorMut<'a> {
    storage: &'a mut Storage,
    shape: Shape,
    offset: usize,
    dtype: DType,
}

impl Output {
    pub(crate) fn new(storage: Storage, shape: Shape, dtype: DType) -> Result<Self> {
        Ok(Output { storage, shape, dtype })
    }

    /// The whole of it, to hand to a kernel.
    pub fn view(&mut self) -> TensorMut<'_> {
        TensorMut { storage: &mut self.storage, shape: self.shape, offset: 0, dtype: self.dtype }
    }

    /// The finished tensor.
    #[must_use]
    pub fn finish(self) -> Tensor {
        Tensor::new(self.storage, Layout::contiguous(self.shape, 0), self.dtype)
    }

    /// The size of each dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}

impl<'a> TensorMut<'a> {
    pub(crate) fn new(storage: &'a mut Storage, shape: Shape, offset: usize, dtype: DType) -> Self {
        TensorMut { storage, shape, offset, dtype }
    }

    /// The size of each dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that holds it.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.storage.device()
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the first element lies in the memory of a CUDA device.
    ///
    /// # Errors
    /// When it is on another device.
    pub(crate) fn address(&self) -> Result<u64> {
        Ok(self.storage.address()? + (self.offset * self.dtype.size()) as u64)
    }

    /// Copies `bytes`, as many as there are, here from the host.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.storage.write(self.offset * self.dtype.size(), bytes)
    }

    /// The elements, on a host device.
    ///
    /// # Errors
    /// When the elements are not `T`, or the host cannot write them.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        if self.dtype != T::DTYPE {
            return Err(Error::dtype("write", format!("{} as {}", self.dtype, T::DTYPE)));
        }
        let len: usize = self.shape.iter().product();
        Ok(&mut self.storage.host_mut::<T>()?[self.offset..self.offset + len])
    }

    /// Elements `start..` in the given shape: one parameter of a flat buffer, some rows of a cache.
    ///
    /// # Errors
    /// When they do not lie inside.
    pub fn into_part(self, start: usize, shape: &[usize]) -> Result<TensorMut<'a>> {
        let end = start.checked_add(checked_len(shape)?);
        if end.is_none_or(|end| end > self.shape.iter().product()) {
            return Err(Error::shape("part", format!("{shape:?} from element {start} of shape {:?}", self.shape)));
        }
        let (shape, offset) = (Shape::new(shape)?, self.offset + start);
        Ok(TensorMut { storage: self.storage, shape, offset, dtype: self.dtype })
    }

    /// As [`TensorMut::into_part`], borrowed for a shorter time.
    ///
    /// # Errors
    /// When they do not lie inside.
    pub fn part(&mut self, start: usize, shape: &[usize]) -> Result<TensorMut<'_>> {
        self.reborrow().into_part(start, shape)
    }

    /// The same place, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> TensorMut<'_> {
        TensorMut { storage: self.storage, shape: self.shape, offset: self.offset, dtype: self.dtype }
    }
}
