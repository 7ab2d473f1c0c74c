//! What weights in blocks have in common on CUDA devices: their rows can be decoded, and mostly multiplied with as they lie.

use crate::fused::Decoded;
use crate::matvec::Matvec;
use kinglet_tensor::cuda::{self, Arg};
use kinglet_tensor::{DType, Error, Result, Tensor, ops};
use std::ops::Range;

/// A matrix [out, in] in blocks, of which rows can be had as dense tensors.
pub(crate) trait DecodeRows {
    /// [out, in]
    fn shape(&self) -> [usize; 2];
    /// The dtype that rows are decoded to for a product with `x`: that which the product rounds them to, or f32.
    fn decoded_dtype(&self, x: DType) -> DType;
    /// Some rows, [rows, in], rounded to `dtype`.
    fn decode_rows(&self, rows: Range<usize>, dtype: DType) -> Result<Tensor>;
    /// The kernel that multiplies one row, or few, of dtype `x` with the matrix as it lies, if there is one for its form and shape.
    fn matvec(&self, one_row: bool, x: DType) -> Result<Option<Matvec>>;
    /// The kernels that multiply many rows with the matrix as it lies, if there are any for its form and place. Its width is a
    /// multiple of [`GROUP`](crate::fused::GROUP).
    fn decoded(&self) -> Result<Option<Decoded>>;
}

/// `x`, which is contiguous, or a copy of it that begins at a multiple of 16 bytes of a CUDA device.
pub(crate) fn aligned(x: Tensor) -> Result<Tensor> {
    match cuda::read(&x)? {
        Arg::Pointer(address) if address % 16 != 0 => ops::copy(&x, x.dtype()),
        _ => Ok(x),
    }
}

/// A float dtype as the number by which the kernels of `gguf.cu` know it.
pub(crate) fn type_code(dtype: DType) -> Result<Arg<'static>> {
    match dtype {
        DType::F32 => Ok(Arg::U32(0)),
        DType::F16 => Ok(Arg::U32(1)),
        DType::BF16 => Ok(Arg::U32(2)),
        other => Err(Error::dtype("dequantize", format!("{other} is no float"))),
    }
}
