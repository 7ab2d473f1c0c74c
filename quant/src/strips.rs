//! The linear layer on CUDA devices, out of kernels that are there for other ops: dense weights by `matmul`, blocks
//! decoded a strip of rows at a time. A kernel that decodes in shared memory as it multiplies is to replace the latter.

use crate::decode::DecodeRows;
use crate::weight::{Direction, LinearArgs};
use crate::{Weight, matvec};
use kinglet_tensor::cpu::gemm::{Accumulate, KC, Options};
use kinglet_tensor::cuda::Cuda;
use kinglet_tensor::kernels::{CAT, CatArgs};
use kinglet_tensor::{DType, Error, Result, Tensor, TensorMut, ops};
use std::ops::Range;

/// Bytes of a decoded strip, unless [`KC`] rows take more.
const STRIP: usize = 16 << 20;

pub(crate) fn linear_cuda(cuda: &Cuda, args: LinearArgs<'_>) -> Result<()> {
    let LinearArgs { x, weight, direction, out, options } = args;
    match weight {
        Weight::Dense(weight) => ops::product_into(x, &operand(weight.clone(), direction)?, out, options),
        Weight::FourBit(weight) => blocks(cuda, x, &**weight, direction, out, options),
        Weight::Gguf(weight) => blocks(cuda, x, weight, direction, out, options),
        Weight::Custom(_) => Err(Error::unsupported("a weight of a custom form on a CUDA device")),
    }
}

/// Few rows with the blocks as they lie, many with strips of them decoded.
fn blocks(
    cuda: &Cuda,
    x: &Tensor,
    weight: &dyn DecodeRows,
    direction: Direction,
    out: TensorMut<'_>,
    options: Options,
) -> Result<()> {
    if let Some(kernel) = matvec::kernel(x, weight, direction)? {
        return kernel.run(cuda, x, &out, options);
    }
    let row = weight.shape()[1] * weight.decoded_dtype(x.dtype()).size();
    let rows = (STRIP / row.max(1) / KC * KC).max(KC);
    Product { x, weight, direction, rows, options }.write(out)
}

/// Rows of W as B of the product.
fn operand(rows: Tensor, direction: Direction) -> Result<Tensor> {
    match direction {
        Direction::Forward => rows.transpose(0, 1),
        Direction::Backward => Ok(rows),
    }
}

/// A product with a weight of which `rows` rows are decoded at a time: a multiple of [`KC`], so that sums over rows of W
/// are cut where the product cuts them.
struct Product<'a> {
    x: &'a Tensor,
    weight: &'a dyn DecodeRows,
    direction: Direction,
    rows: usize,
    options: Options,
}

impl Product<'_> {
    fn write(&self, out: TensorMut<'_>) -> Result<()> {
        let [out_features, _] = self.weight.shape();
        if out_features <= self.rows {
            return ops::product_into(self.x, &self.strip(0..out_features)?, out, self.options);
        }
        match self.direction {
            Direction::Forward => self.join(out),
            Direction::Backward => self.add_up(out),
        }
    }

    fn strips(&self) -> impl Iterator<Item = Range<usize>> {
        let ([out_features, _], rows) = (self.weight.shape(), self.rows);
        (0..out_features).step_by(rows).map(move |start| start..out_features.min(start + rows))
    }

    fn strip(&self, rows: Range<usize>) -> Result<Tensor> {
        let dtype = self.weight.decoded_dtype(self.x.dtype());
        operand(self.weight.decode_rows(rows, dtype)?, self.direction)
    }

    /// x Wᵀ: each strip gives columns of it.
    fn join(&self, mut out: TensorMut<'_>) -> Result<()> {
        let (device, add) = (self.x.device(), self.options.accumulate == Accumulate::Add);
        let (tokens, dtype) = (out.shape()[0], if add { DType::F32 } else { out.dtype() });
        let options = Options { accumulate: Accumulate::Store, ..self.options };
        let columns = |rows: Range<usize>| {
            let mut columns = device.alloc(&[tokens, rows.len()], dtype)?;
            ops::product_into(self.x, &self.strip(rows)?, columns.view(), options)?;
            Ok(columns.finish())
        };
        let parts = self.strips().map(columns).collect::<Result<Vec<_>>>()?;
        if add {
            return ops::accumulate(&mut out, &ops::cat(&parts.iter().collect::<Vec<_>>(), 1)?);
        }
        device.run(&CAT, CatArgs { xs: &parts, dim: 1, out })
    }

    /// x W: each strip gives a term of the sum, which is formed in f32.
    fn add_up(&self, mut out: TensorMut<'_>) -> Result<()> {
        if out.dtype() == DType::F32 {
            return self.add_terms(out, self.options.accumulate);
        }
        let mut sum = self.x.device().alloc(out.shape(), DType::F32)?;
        self.add_terms(sum.view(), Accumulate::Store)?;
        match self.options.accumulate {
            Accumulate::Store => ops::copy_into(&sum.finish(), out),
            Accumulate::Add => ops::accumulate(&mut out, &sum.finish()),
        }
    }

    fn add_terms(&self, mut sum: TensorMut<'_>, first: Accumulate) -> Result<()> {
        for rows in self.strips() {
            let accumulate = if rows.start == 0 { first } else { Accumulate::Add };
            let x = self.x.narrow(1, rows.start, rows.len())?;
            let options = Options { accumulate, ..self.options };
            ops::product_into(&x, &self.strip(rows)?, sum.reborrow(), options)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FourBit;
    use kinglet_tensor::cpu::nf4::Format;
    use kinglet_tensor::philox::Key;
    use kinglet_tensor::{CpuOptions, Device};
    use std::sync::Arc;

    /// Strips give what the layer gives at once; on the CPU, where both can be had, as strips are made of ops.
    #[test]
    fn strips_are_the_whole() {
        let device = Device::cpu(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let normal = |shape: &[usize], seed, dtype| {
            ops::normal(shape, 1.0, Key::derive(&[seed]), &device).unwrap().to_dtype(dtype).unwrap()
        };
        // Three strips of 256 rows, whose blocks straddle rows; enough elements for several blocks of scales.
        let weight = FourBit::quantize(&normal(&[700, 67], 1, DType::F32), Format::Nf4, 64, true).unwrap();
        let whole = Weight::FourBit(Arc::new(weight.clone()));
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (direction, from, to) in [(Direction::Forward, 67, 700), (Direction::Backward, 700, 67)] {
                for (accumulate, alpha) in [(Accumulate::Store, 1.0), (Accumulate::Add, 0.5)] {
                    let x = normal(&[11, from], 2, dtype);
                    let options = Options { alpha, accumulate, round_bf16: dtype == DType::BF16 };
                    let (mut want, mut got) = (normal(&[11, to], 3, dtype), normal(&[11, to], 3, dtype));
                    whole.matmul_into(&x, direction, want.as_mut().unwrap(), accumulate, alpha).unwrap();
                    let product = Product { x: &x, weight: &weight, direction, rows: KC, options };
                    product.write(got.as_mut().unwrap()).unwrap();
                    let values = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
                    // Sums of 700 terms of about 1, and the rounding of the result.
                    let close = dtype.epsilon().unwrap() as f32;
                    for (want, got) in values(&want).into_iter().zip(values(&got)) {
                        let allowed = 2.0 * close * want.abs() + 1e-4;
                        assert!(
                            (want - got).abs() <= allowed,
                            "{dtype} {direction:?} {accumulate:?}: {got} for {want}"
                        );
                    }
                }
            }
        }
    }
}
