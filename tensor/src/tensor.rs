//! The tensor: a strided view of immutable bytes.

use crate::layout::{Layout, Shape, checked_len};
use crate::output::TensorMut;
use crate::storage::{SharedBytes, Storage};
use crate::{DType, Device, Element, Error, Result, ops};
use std::sync::Arc;

/// An immutable n-dimensional array. Cloning and viewing are cheap; the bytes are shared.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    layout: Layout,
    dtype: DType,
}

impl Tensor {
    pub(crate) fn new(storage: Storage, layout: Layout, dtype: DType) -> Self {
        Tensor { storage: Arc::new(storage), layout, dtype }
    }

    /// A tensor on `device` with the elements of `values` in row-major order.
    ///
    /// # Errors
    /// When `values` is not as long as `shape` says, or memory runs out.
    pub fn from_slice<T: Element>(values: &[T], shape: &[usize], device: &Device) -> Result<Self> {
        if checked_len(shape)? != values.len() {
            return Err(Error::shape("from_slice", format!("{} values for shape {shape:?}", values.len())));
        }
        let mut out = device.alloc(shape, T::DTYPE)?;
        if !device.is_meta() {
            out.storage.write(0, bytemuck::cast_slice(values))?;
        }
        Ok(out.finish())
    }

    /// As [`Tensor::from_slice`], from a vector.
    ///
    /// # Errors
    /// As [`Tensor::from_slice`].
    pub fn from_vec<T: Element>(values: Vec<T>, shape: &[usize], device: &Device) -> Result<Self> {
        Self::from_slice(&values, shape, device)
    }

    /// Replaces all elements by `values`, in row-major order, where nobody else holds the bytes: how numbers that change
    /// reach kernels that were captured.
    ///
    /// # Errors
    /// `is_aliased` when somebody does; when dtype or number do not fit.
    pub fn write<T: Element>(&mut self, values: &[T]) -> Result<()> {
        if self.dtype != T::DTYPE || self.len() != values.len() {
            let given = format!("{} values of {}", values.len(), T::DTYPE);
            return Err(Error::shape("write", format!("{given} into {:?} of {}", self.shape(), self.dtype)));
        }
        if self.device().is_meta() {
            return Ok(());
        }
        let mut place = self.as_mut().ok_or_else(|| Error::aliased("write: the tensor is held elsewhere"))?;
        place.write(bytemuck::cast_slice(values))
    }

    /// A tensor whose every element is `value`.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn full(value: f32, shape: &[usize], dtype: DType, device: &Device) -> Result<Self> {
        let mut out = device.alloc(shape, dtype)?;
        ops::fill(&mut out.view(), value)?;
        Ok(out.finish())
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn zeros(shape: &[usize], dtype: DType, device: &Device) -> Result<Self> {
        Self::full(0.0, shape, dtype, device)
    }

    /// A contiguous tensor over bytes that someone else owns (a mapped file), without copying when the bytes from
    /// `start` on are aligned for `dtype`, else with one copy. On a device that is not the host, a copy.
    ///
    /// # Errors
    /// When the bytes are too few.
    pub fn from_shared(
        bytes: SharedBytes,
        start: usize,
        dtype: DType,
        shape: &[usize],
        device: &Device,
    ) -> Result<Self> {
        let len = checked_len(shape)?.checked_mul(dtype.size());
        let held = (*bytes).as_ref().len();
        let end = len
            .and_then(|l| start.checked_add(l))
            .filter(|&end| end <= held)
            .ok_or_else(|| Error::shape("from_shared", format!("{shape:?} of {dtype} from byte {start} of {held}")))?;
        let address = (*bytes).as_ref().as_ptr() as usize;
        if device.is_meta() {
            // Mapped pages are not the device's memory: nothing to count.
            let storage = Storage::meta_shared(device.clone(), bytes);
            return Ok(Tensor { storage: Arc::new(storage), layout: Layout::contiguous(Shape::new(shape)?, 0), dtype });
        }
        if device.as_cpu().is_ok() && address.is_multiple_of(16) && start.is_multiple_of(dtype.size()) {
            let layout = Layout::contiguous(Shape::new(shape)?, start / dtype.size());
            return Ok(Tensor { storage: Arc::new(Storage::shared(device.clone(), bytes)), layout, dtype });
        }
        let source = &(*bytes).as_ref()[start..end];
        let mut out = device.alloc(shape, dtype)?;
        out.storage.write(0, source)?;
        Ok(out.finish())
    }

    /// The size of each dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// Shape, strides and offset.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that holds the bytes.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.storage.device()
    }

    /// The number of dimensions.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.shape().len()
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layout.is_empty()
    }

    /// Whether the elements lie in row-major order without gaps.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// The size of dimension `dim`.
    ///
    /// # Errors
    /// When there is no such dimension.
    pub fn dim(&self, dim: usize) -> Result<usize> {
        self.layout.dim("dim", dim)
    }

    /// Rows and columns of a matrix.
    ///
    /// # Errors
    /// When this has not two dimensions.
    pub fn dims2(&self, op: &str) -> Result<(usize, usize)> {
        match *self.shape() {
            [a, b] => Ok((a, b)),
            ref s => Err(Error::shape(op, format!("takes two dimensions, not {s:?}"))),
        }
    }

    /// How many rows (all dimensions but the last, taken together) and their width, which is not zero.
    ///
    /// # Errors
    /// When there is no last dimension or it is empty.
    pub fn dims_rows(&self, op: &str) -> Result<(usize, usize)> {
        match self.shape().last() {
            Some(&width) if width > 0 => Ok((self.len() / width, width)),
            _ => Err(Error::shape(op, format!("takes rows, not shape {:?}", self.shape()))),
        }
    }

    /// The three sizes of a tensor of rank 3.
    ///
    /// # Errors
    /// When this has not three dimensions.
    pub fn dims3(&self, op: &str) -> Result<(usize, usize, usize)> {
        match *self.shape() {
            [a, b, c] => Ok((a, b, c)),
            ref s => Err(Error::shape(op, format!("takes three dimensions, not {s:?}"))),
        }
    }

    /// An error that names `op` unless shape and dtype are those of `other`.
    pub(crate) fn expect_like(&self, op: &str, other: &Self) -> Result<()> {
        if self.shape() != other.shape() {
            return Err(Error::shape(op, format!("{:?} beside {:?}", self.shape(), other.shape())));
        }
        if self.dtype != other.dtype {
            return Err(Error::dtype(op, format!("{} beside {}", self.dtype, other.dtype)));
        }
        Ok(())
    }

    fn with_layout(&self, layout: Layout) -> Self {
        Tensor { storage: self.storage.clone(), layout, dtype: self.dtype }
    }

    /// `len` entries from `start` along `dim`: a view.
    ///
    /// # Errors
    /// When they are not all there.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        Ok(self.with_layout(self.layout.narrow(dim, start, len)?))
    }

    /// Entry `index` along `dim`, without that dimension: a view.
    ///
    /// # Errors
    /// When there is no such entry.
    pub fn select(&self, dim: usize, index: usize) -> Result<Self> {
        Ok(self.with_layout(self.layout.narrow(dim, index, 1)?.drop_dim(dim)))
    }

    /// Two dimensions exchanged: a view.
    ///
    /// # Errors
    /// When there is no such dimension.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        let mut order: Vec<usize> = (0..self.rank()).collect();
        self.layout.dim("transpose", a)?;
        self.layout.dim("transpose", b)?;
        order.swap(a, b);
        self.permute(&order)
    }

    /// Dimensions in another order (`order[i]` is the old place of new dimension `i`): a view.
    ///
    /// # Errors
    /// When `order` is not a permutation of the dimensions.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        Ok(self.with_layout(self.layout.permute(order)?))
    }

    /// The entries along `dim` in reverse order: a view.
    ///
    /// # Errors
    /// When there is no such dimension.
    pub fn flip(&self, dim: usize) -> Result<Self> {
        Ok(self.with_layout(self.layout.flip(dim)?))
    }

    /// Dimensions of size 1 repeated, and new ones in front, up to `shape`: a view.
    ///
    /// # Errors
    /// When the shapes do not broadcast.
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Self> {
        Ok(self.with_layout(self.layout.broadcast_to(shape)?))
    }

    /// The same elements in row-major order under another shape: a view where possible, else a copy.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        match self.reshaped_view(shape)? {
            Some(view) => Ok(view),
            None => self.contiguous()?.reshape(shape),
        }
    }

    /// As [`Tensor::reshape`], but `None` where that would copy.
    pub(crate) fn reshaped_view(&self, shape: &[usize]) -> Result<Option<Self>> {
        Ok(self.layout.reshape(shape)?.map(|layout| self.with_layout(layout)))
    }

    /// Without dimension `dim`, which must be 1: a view.
    ///
    /// # Errors
    /// When it is not 1.
    pub fn squeeze(&self, dim: usize) -> Result<Self> {
        Ok(self.with_layout(self.layout.squeeze(dim)?))
    }

    /// With a new dimension of size 1 before `dim`: a view.
    ///
    /// # Errors
    /// When `dim` is past the end.
    pub fn unsqueeze(&self, dim: usize) -> Result<Self> {
        Ok(self.with_layout(self.layout.unsqueeze(dim)?))
    }

    /// This, or a row-major copy of it.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn contiguous(&self) -> Result<Self> {
        if self.is_contiguous() { Ok(self.clone()) } else { ops::copy(self, self.dtype) }
    }

    /// The values as `dtype`, rounded to nearest even; this when it is `dtype` already.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        if self.dtype == dtype { Ok(self.clone()) } else { ops::copy(self, dtype) }
    }

    /// A copy on `device`: the only crossing between devices.
    ///
    /// # Errors
    /// When the values cannot be read (meta), or memory runs out.
    pub fn to(&self, device: &Device) -> Result<Self> {
        if self.device() == device {
            return Ok(self.clone());
        }
        if device.is_meta() {
            return Ok(device.alloc(self.shape(), self.dtype)?.finish());
        }
        crate::dispatch!(any self.dtype, T => Self::from_slice(&self.to_vec::<T>()?, self.shape(), device))
    }

    /// The elements of a contiguous tensor on a host device, without a copy.
    ///
    /// # Errors
    /// When the elements are not `T`, do not lie in order, or are not on the host.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        if !self.is_contiguous() {
            return Err(Error::shape("read", format!("{:?} is not contiguous", self.layout)));
        }
        let start = if self.is_empty() { 0 } else { self.layout.offset() };
        Ok(&self.span::<T>()?[start..start + self.len()])
    }

    /// The whole storage as elements, for kernels that follow strides themselves.
    pub(crate) fn span<T: Element>(&self) -> Result<&[T]> {
        if self.dtype != T::DTYPE {
            return Err(Error::dtype("read", format!("{} as {}", self.dtype, T::DTYPE)));
        }
        if self.is_empty() { Ok(&[]) } else { self.storage.host::<T>() }
    }

    /// The elements in row-major order, copied to the host.
    ///
    /// # Errors
    /// As [`Tensor::as_slice`], but any layout is read.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let whole = self.contiguous()?;
        if self.device().as_cuda().is_err() {
            return Ok(whole.as_slice::<T>()?.to_vec());
        }
        if self.dtype != T::DTYPE {
            return Err(Error::dtype("read", format!("{} as {}", self.dtype, T::DTYPE)));
        }
        let mut values = vec![T::zeroed(); whole.len()];
        if values.is_empty() {
            return Ok(values);
        }
        whole.storage.read(whole.layout.offset() * size_of::<T>(), bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Where element 0 lies in the memory of a CUDA device.
    ///
    /// # Errors
    /// When the tensor is on another device.
    pub(crate) fn address(&self) -> Result<u64> {
        Ok(self.storage.address()? + (self.layout.offset() * self.dtype.size()) as u64)
    }

    /// The one element of a tensor of one element, as f32.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn item(&self) -> Result<f32> {
        match self.to_dtype(DType::F32)?.to_vec::<f32>()?[..] {
            [x] => Ok(x),
            _ => Err(Error::shape("item", format!("shape {:?} has not one element", self.shape()))),
        }
    }

    /// Whether two tensors are views of the same bytes.
    #[must_use]
    pub fn shares_storage(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    /// Bytes of device memory that the storage behind this view holds; none for mapped bytes.
    #[must_use]
    pub fn storage_bytes(&self) -> usize {
        if self.storage.is_shared() { 0 } else { self.storage.len() }
    }

    /// A number that is the same for views of the same bytes, to count each storage once.
    #[must_use]
    pub fn storage_id(&self) -> usize {
        Arc::as_ptr(&self.storage) as usize
    }

    /// The elements of a contiguous tensor for writing, or `None` while anybody else holds the bytes.
    pub fn as_mut(&mut self) -> Option<TensorMut<'_>> {
        if !self.is_contiguous() {
            return None;
        }
        let (shape, offset, dtype) = (*self.layout.shape(), self.layout.offset(), self.dtype);
        Some(TensorMut::new(Arc::get_mut(&mut self.storage)?, shape, offset, dtype))
    }
}

/// The one device of several tensors.
///
/// # Errors
/// When they live on more than one.
pub fn same_device<'a>(op: &str, tensors: &[&'a Tensor]) -> Result<&'a Device> {
    let first = tensors.first().ok_or_else(|| Error::shape(op, "takes at least one tensor"))?.device();
    match tensors.iter().find(|t| t.device() != first) {
        None => Ok(first),
        Some(t) => Err(Error::device(op, format!("tensors on {first:?} and {:?}", t.device()))),
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({:?}, {}, {:?}", self.shape(), self.dtype, self.device())?;
        if let Ok(values) = ops::copy(self, DType::F32).and_then(|t| t.to_vec::<f32>()) {
            let shown: Vec<_> = values.iter().take(8).collect();
            write!(f, ", {shown:?}{}", if values.len() > 8 { " .." } else { "" })?;
        }
        f.write_str(")")
    }
}
