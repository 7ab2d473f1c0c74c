//! A weight as the two tables at the ends of a language model: embedding and output projection.

use crate::weight::{Direction, Weight};
use crate::{four_bit, gguf};
use kinglet_tensor::cpu::gemm::{Accumulate, Panels};
use kinglet_tensor::cpu::{Cpu, Simd};
use kinglet_tensor::cuda::Cuda;
use kinglet_tensor::ops::Projection;
use kinglet_tensor::{DType, Error, Float, Result, Tensor, TensorMut, dispatch, kernel, ops};

impl Projection for Weight {
    fn dims(&self) -> Result<(usize, usize)> {
        Weight::dims(self)
    }

    fn to_logits(&self, simd: Simd) -> Result<Box<dyn Panels + '_>> {
        self.panels(simd, Direction::Forward)
    }

    fn to_hidden(&self, simd: Simd) -> Result<Box<dyn Panels + '_>> {
        self.panels(simd, Direction::Backward)
    }

    fn is_f16(&self) -> bool {
        Weight::is_f16(self)
    }

    fn logits_into(&self, x: &Tensor, out: TensorMut<'_>, accumulate: Accumulate) -> Result<()> {
        self.matmul_into(x, Direction::Forward, out, accumulate, 1.0)
    }

    fn hidden_into(&self, g: &Tensor, out: TensorMut<'_>) -> Result<()> {
        self.matmul_into(g, Direction::Backward, out, Accumulate::Store, 1.0)
    }
}

/// Rows `ids` (i32 `[t]`) of a frozen weight [vocab, d] in any form: [t, d] of `dtype`. A block form is decoded row by
/// row.
///
/// # Errors
/// When an id is no row, ids are no vector of i32 or live elsewhere, or `dtype` is no float.
pub fn embed(weight: &Weight, ids: &Tensor, dtype: DType) -> Result<Tensor> {
    if let Weight::Dense(table) = weight {
        return ops::embedding(table, ids, dtype);
    }
    let (_, width) = weight.dims()?;
    if ids.rank() != 1 || ids.dtype() != DType::I32 {
        let found = (ids.shape(), ids.dtype());
        return Err(Error::shape("embedding", format!("ids are a vector of i32, not {:?} of {}", found.0, found.1)));
    }
    if ids.device() != weight.device() {
        let places = format!("ids on {:?}, weight on {:?}", ids.device(), weight.device());
        return Err(Error::device("embedding", places));
    }
    let ids = &ids.contiguous()?;
    let mut out = ids.device().alloc(&[ids.len(), width], dtype)?;
    ids.device().run(&EMBEDDING_QUANTIZED, EmbeddingQuantizedArgs { weight, ids, out: out.view() })?;
    Ok(out.finish())
}

/// Arguments of [`EMBEDDING_QUANTIZED`]: the rows of a weight in block form that ids choose.
pub struct EmbeddingQuantizedArgs<'a> {
    /// [vocabulary, d], in any form but dense.
    pub weight: &'a Weight,
    /// `[tokens]`, i32, contiguous: rows of the table, which the kernel checks.
    pub ids: &'a Tensor,
    /// [tokens, d], any float dtype.
    pub out: TensorMut<'a>,
}
kernel!(pub EMBEDDING_QUANTIZED = "embedding_quantized", EmbeddingQuantizedArgs, embed_cpu, embed_cuda);

fn embed_cpu(cpu: &Cpu, mut args: EmbeddingQuantizedArgs<'_>) -> Result<()> {
    let (vocab, width) = args.weight.dims()?;
    let row = |(i, &id): (usize, &i32)| {
        usize::try_from(id).ok().filter(|&row| row < vocab).ok_or_else(|| ops::stray_id(id, i, vocab))
    };
    let rows = args.ids.as_slice::<i32>()?.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?;
    // Column n of the forward operand Wᵀ is row n of W.
    let panels = args.weight.panels(cpu.simd(), Direction::Forward)?;
    dispatch!(float args.out.dtype(), "embedding", T => {
        cpu.chunks(args.out.as_mut_slice::<T>()?, width, |i, out| decode_row(cpu.simd(), &*panels, rows[i], out));
        Ok(())
    })
}

fn decode_row<T: Float>(simd: Simd, panels: &dyn Panels, row: usize, out: &mut [T]) {
    let mut wide = vec![0.0; out.len()];
    panels.column(row, 0..out.len(), &mut wide);
    T::narrow(simd, &wide, out);
}

fn embed_cuda(cuda: &Cuda, args: EmbeddingQuantizedArgs<'_>) -> Result<()> {
    let EmbeddingQuantizedArgs { weight, ids, out } = args;
    match weight {
        Weight::FourBit(weight) => four_bit::embed_cuda(cuda, weight, ids, &out),
        Weight::Gguf(weight) => gguf::embed_cuda(cuda, weight, ids, &out),
        Weight::Dense(_) => Err(Error::unsupported("a dense weight has an embedding of its own")),
        Weight::Custom(_) => Err(Error::unsupported("a weight of a custom form on a CUDA device")),
    }
}
