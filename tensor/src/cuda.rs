//! What CUDA implementations of kernels share: arguments made of tensors, and the geometry of elementwise launches.
//!
//! The layout of a [`View`] and the shapes of launches are those of `cuda/kernels/common.cuh`.

use crate::{Error, Result, Tensor, TensorMut};
use kinglet_cuda::Launch;

pub use kinglet_cuda::{Arg, Device as Cuda};

/// Elements that a block of an elementwise kernel handles: 256 threads with four each.
const BLOCK: usize = 1024;
/// Threads of a block, where a kernel does not say otherwise.
pub(crate) const THREADS: u32 = 256;
/// Rows that a block of a row kernel handles: one a warp.
const ROWS: usize = 4;
/// `View::MAX_RANK`.
const MAX_RANK: usize = 8;

/// The layout of a strided operand, as kernels take it by value: `struct View { u32 rank; u32 shape[8]; i64 strides[8]; }`,
/// innermost dimension first.
pub(crate) struct View([u8; 8 + 4 * MAX_RANK + 8 * MAX_RANK]);

impl View {
    /// # Errors
    /// When a dimension has 2³² elements or more beside others, or more than eight dimensions are left once those that can
    /// be joined are.
    pub(crate) fn new(x: &Tensor) -> Result<Self> {
        let layout = x.layout().merged();
        let too_large = || Error::unsupported(format!("a view of shape {:?} on a CUDA device", x.shape()));
        let (shape, strides) = (layout.shape(), layout.strides());
        let rank = shape.len().max(1);
        if rank > MAX_RANK || (rank > 1 && u32::try_from(layout.len()).is_err()) {
            return Err(too_large());
        }
        let mut bytes = [0; 8 + 4 * MAX_RANK + 8 * MAX_RANK];
        bytes[..4].copy_from_slice(&(rank as u32).to_le_bytes());
        // A scalar is one dimension of size 1, and the outermost size is never read.
        for i in 0..rank {
            let (size, stride) = match shape.len().checked_sub(i + 1) {
                Some(d) => (shape[d], strides[d]),
                None => (1, 1),
            };
            let size = if i + 1 == rank { 0 } else { u32::try_from(size).map_err(|_| too_large())? };
            bytes[4 + 4 * i..][..4].copy_from_slice(&size.to_le_bytes());
            bytes[8 + 4 * MAX_RANK + 8 * i..][..8].copy_from_slice(&(stride as i64).to_le_bytes());
        }
        Ok(View(bytes))
    }

    pub(crate) fn arg(&self) -> Arg<'_> {
        Arg::Bytes(&self.0)
    }
}

/// The address of the first element.
pub(crate) fn read(x: &Tensor) -> Result<Arg<'static>> {
    Ok(Arg::Pointer(x.address()?))
}

/// The address of the first element of an output.
pub(crate) fn written(out: &TensorMut<'_>) -> Result<Arg<'static>> {
    Ok(Arg::Pointer(out.address()?))
}

/// A size that a kernel takes as a 32-bit number.
pub(crate) fn number(size: usize) -> Result<Arg<'static>> {
    let small = u32::try_from(size).map_err(|_| Error::unsupported(format!("a size of {size} on a CUDA device")))?;
    Ok(Arg::U32(small))
}

/// Starts an elementwise kernel over `n` elements; nothing for none.
pub(crate) fn over_elements(cuda: &Cuda, module: &str, entry: &str, n: usize, args: &[Arg<'_>]) -> Result<()> {
    start(cuda, module, entry, n.div_ceil(BLOCK), THREADS, args)
}

/// Starts a kernel with one warp a row; nothing for no rows.
pub(crate) fn over_rows(cuda: &Cuda, module: &str, entry: &str, rows: usize, args: &[Arg<'_>]) -> Result<()> {
    start(cuda, module, entry, rows.div_ceil(ROWS), 32 * ROWS as u32, args)
}

/// Starts `blocks` blocks of `threads` threads; nothing for none.
pub(crate) fn start(
    cuda: &Cuda,
    module: &str,
    entry: &str,
    blocks: usize,
    threads: u32,
    args: &[Arg<'_>],
) -> Result<()> {
    if blocks == 0 {
        return Ok(());
    }
    let blocks = u32::try_from(blocks).map_err(|_| Error::unsupported(format!("{entry}: {blocks} blocks")))?;
    Ok(cuda.launch(module, entry, &Launch::linear(blocks, threads), args)?)
}
