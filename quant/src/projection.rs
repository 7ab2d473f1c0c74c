//! A weight as the two tables at the ends of a language model: embedding and output projection.

use crate::weight::{Direction, Weight};
use kinglet_tensor::cpu::gemm::{Accumulate, Panels};
use kinglet_tensor::cpu::{Cpu, Simd};
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
/// When an id is no row, or `dtype` is no float.
pub fn embed(weight: &Weight, ids: &Tensor, dtype: DType) -> Result<Tensor> {
    if let Weight::Dense(table) = weight {
        return ops::embedding(table, ids, dtype);
    }
    let (_, width) = weight.dims()?;
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
kernel!(pub EMBEDDING_QUANTIZED = "embedding_quantized", EmbeddingQuantizedArgs, embed_cpu);

fn embed_cpu(cpu: &Cpu, mut args: EmbeddingQuantizedArgs<'_>) -> Result<()> {
    let (vocab, width) = args.weight.dims()?;
    let row = |&id: &i32| {
        let row = usize::try_from(id).ok().filter(|&row| row < vocab);
        row.ok_or_else(|| Error::invalid(format!("embedding: id {id} of a vocabulary of {vocab}")))
    };
    let rows = args.ids.as_slice::<i32>()?.iter().map(row).collect::<Result<Vec<_>>>()?;
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
