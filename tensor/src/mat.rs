//! Tensors as the operands of `cpu::gemm`.

use crate::cpu::gemm::{Elems, Mat, Out};
use crate::{DType, Error, Result, Tensor, TensorMut};

impl Tensor {
    /// This, or a row-major copy of it when it runs backwards: matrix products count forwards only.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn forwards(&self) -> Result<Tensor> {
        if self.layout().strides().iter().any(|&s| s < 0) { self.contiguous() } else { Ok(self.clone()) }
    }

    /// The rows and columns of a float tensor of rank 2, with whatever strides, as an operand of a CPU matrix product.
    ///
    /// # Errors
    /// When it has not two dimensions, runs backwards, is no float, or is not on the host.
    pub fn as_mat(&self, op: &str) -> Result<Mat<'_>> {
        let (rows, cols) = self.dims2(op)?;
        let strides: Vec<usize> = self.layout().strides().iter().filter_map(|&s| usize::try_from(s).ok()).collect();
        let &[row_stride, col_stride] = &strides[..] else {
            return Err(Error::shape(op, "a matrix product takes no flipped operand; copy it first"));
        };
        let offset = if self.is_empty() { 0 } else { self.layout().offset() };
        let data = match self.dtype() {
            DType::F32 => Elems::F32(&self.span()?[offset..]),
            DType::BF16 => Elems::Bf16(&self.span()?[offset..]),
            DType::F16 => Elems::F16(&self.span()?[offset..]),
            other => return Err(Error::dtype(op, format!("takes f32, bf16 or f16, not {other}"))),
        };
        Mat::new(data, rows, cols, row_stride, col_stride)
    }
}

impl TensorMut<'_> {
    /// The elements as the result of a CPU matrix product.
    ///
    /// # Errors
    /// When they are no floats or not on the host.
    pub fn as_out(&mut self, op: &str) -> Result<Out<'_>> {
        match self.dtype() {
            DType::F32 => self.as_mut_slice().map(Out::F32),
            DType::BF16 => self.as_mut_slice().map(Out::Bf16),
            DType::F16 => self.as_mut_slice().map(Out::F16),
            other => Err(Error::dtype(op, format!("gives f32, bf16 or f16, not {other}"))),
        }
    }
}
