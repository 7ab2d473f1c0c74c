//! What CUDA implementations of kernels are made of: arguments from tensors, the usual geometries, and flags by which a
//! kernel reports what it was given wrongly. Kernels from outside are launched in the same way:
//!
//! ```no_run
//! use kinglet_tensor::cuda::{self, Cuda};
//! use kinglet_tensor::{DType, Device, Error, Result, Tensor, TensorMut, cpu::Cpu, kernel};
//!
//! struct Double<'a> { x: &'a Tensor, out: TensorMut<'a> }
//! kernel!(DOUBLE = "double", Double, double_cpu, double_cuda);
//!
//! fn double_cpu(_: &Cpu, _: Double<'_>) -> Result<()> {
//!     Err(Error::unsupported("double on a CPU"))
//! }
//!
//! /// .visible .entry double(.param .u64 x, .param .u64 out, .param .u64 n), of 256 threads with four elements each
//! fn double_cuda(cuda: &Cuda, args: Double<'_>) -> Result<()> {
//!     let Double { x, out } = args;
//!     let args = [cuda::read(x)?, cuda::written(&out)?, cuda::count(out.len())];
//!     cuda::over_elements(cuda, "mine", "double", out.len(), &args)
//! }
//!
//! let device = Device::cuda(0)?;
//! device.as_cuda()?.load("mine", &std::fs::read_to_string("double.ptx").expect("a PTX file"))?;
//! let x = Tensor::full(3.0, &[100], DType::F32, &device)?;
//! let mut out = device.alloc(&[100], DType::F32)?;
//! device.run(&DOUBLE, Double { x: &x, out: out.view() })?;
//! # Ok::<(), Error>(())
//! ```
//!
//! The layout of a [`View`] and the geometries are those of `cuda/kernels/common.cuh`. A launch checks number and sizes of its
//! arguments against the kernel.

use crate::layout::Layout;
use crate::{Error, Result, Tensor, TensorMut};
use kinglet_cuda::Launch;

pub use crate::flags::{Flag, first_at_fault};
pub use kinglet_cuda::{Arg, Device as Cuda};

/// Elements that a block of an elementwise kernel handles: 256 threads with four each.
const BLOCK: usize = 1024;
/// Threads of a block, where a kernel does not say otherwise.
pub const THREADS: u32 = 256;
/// Threads of a warp.
pub const WARP: u32 = 32;
/// Rows that a block of a row kernel handles: one a warp.
const ROWS: usize = 4;
/// Threads of such a block.
pub(crate) const ROW_THREADS: u32 = WARP * ROWS as u32;
/// `View::MAX_RANK`.
const MAX_RANK: usize = 8;

/// The layout of a strided operand, as kernels take it by value: `struct View { u32 rank; u32 shape[8]; i64 strides[8]; }`,
/// innermost dimension first. Goes with the address that [`read`] gives.
pub struct View([u8; 8 + 4 * MAX_RANK + 8 * MAX_RANK]);

impl View {
    /// The layout of `x`.
    ///
    /// # Errors
    /// When several dimensions are left once those that can be joined are, and they have 2³² elements or more.
    pub fn new(x: &Tensor) -> Result<Self> {
        Self::of(x.layout())
    }

    /// As [`View::new`], of a layout.
    pub(crate) fn of(layout: &Layout) -> Result<Self> {
        let too_large = || Error::unsupported(format!("a view of shape {:?} on a CUDA device", layout.shape()));
        let layout = layout.merged();
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

    /// As an argument.
    #[must_use]
    pub fn arg(&self) -> Arg<'_> {
        Arg::Bytes(&self.0)
    }
}

/// The address of the first element.
///
/// # Errors
/// When `x` is not on a CUDA device.
pub fn read(x: &Tensor) -> Result<Arg<'static>> {
    Ok(Arg::Pointer(x.address()?))
}

/// The address of the first element of an output.
///
/// # Errors
/// When it is not on a CUDA device.
pub fn written(out: &TensorMut<'_>) -> Result<Arg<'static>> {
    Ok(Arg::Pointer(out.address()?))
}

/// A size that a kernel takes as a 32-bit number.
///
/// # Errors
/// When it has more bits.
pub fn number(size: usize) -> Result<Arg<'static>> {
    let small = u32::try_from(size).map_err(|_| Error::unsupported(format!("a size of {size} on a CUDA device")))?;
    Ok(Arg::U32(small))
}

/// A size that a kernel takes as a 64-bit number.
#[must_use]
pub fn count(size: usize) -> Arg<'static> {
    Arg::U64(size as u64)
}

/// Starts an elementwise kernel over `n` elements, four a thread; nothing for none.
///
/// # Errors
/// As [`start`].
pub fn over_elements(cuda: &Cuda, module: &str, entry: &str, n: usize, args: &[Arg<'_>]) -> Result<()> {
    start(cuda, module, entry, n.div_ceil(BLOCK), THREADS, args)
}

/// Starts a kernel with one thread for each of `n` things; nothing for none.
///
/// # Errors
/// As [`start`].
pub fn over_threads(cuda: &Cuda, module: &str, entry: &str, n: usize, args: &[Arg<'_>]) -> Result<()> {
    start(cuda, module, entry, n.div_ceil(THREADS as usize), THREADS, args)
}

/// Starts a kernel with one warp a row; nothing for no rows.
///
/// # Errors
/// As [`start`].
pub fn over_rows(cuda: &Cuda, module: &str, entry: &str, rows: usize, args: &[Arg<'_>]) -> Result<()> {
    start(cuda, module, entry, rows.div_ceil(ROWS), ROW_THREADS, args)
}

/// Starts the kernel `entry` of `module` with `blocks` blocks of `threads` threads; nothing for none.
///
/// # Errors
/// When there is no such kernel, the arguments do not fit it, there are 2³² blocks or more, or the device fails.
pub fn start(cuda: &Cuda, module: &str, entry: &str, blocks: usize, threads: u32, args: &[Arg<'_>]) -> Result<()> {
    if blocks == 0 {
        return Ok(());
    }
    let blocks = u32::try_from(blocks).map_err(|_| Error::unsupported(format!("{entry}: {blocks} blocks")))?;
    Ok(cuda.launch(module, entry, &Launch::linear(blocks, threads), args)?)
}
