//! The linear layer on CUDA devices: dense weights by `matmul`, blocks decoded a strip of rows at a time or, for few rows, as they
//! lie; the adapter's term and the bias in the epilogue of the product.

use crate::decode::DecodeRows;
use crate::fused::Fused;
use crate::weight::{Direction, LinearArgs};
use crate::{Weight, matvec};
use kinglet_tensor::cpu::gemm::{Accumulate, KC, Options};
use kinglet_tensor::cuda::Cuda;
use kinglet_tensor::kernels::{Epilogue, LowRank};
use kinglet_tensor::{DType, Error, Result, Tensor, TensorMut, ops};
use std::ops::Range;

/// Bytes of a decoded strip, unless [`KC`] rows take more: the largest matrix of a model of 8 billion parameters is one strip in
/// 16 bits.
const STRIP: usize = 128 << 20;

pub(crate) fn linear_cuda(cuda: &Cuda, args: LinearArgs<'_>) -> Result<()> {
    match args.weight {
        Weight::Dense(weight) => {
            let b = operand(weight.clone(), args.direction)?;
            ops::product_with(args.x, &b, args.out, 0, epilogue(args.options, args.low_rank, args.bias))
        }
        Weight::FourBit(weight) => blocks(cuda, &**weight, args),
        Weight::Gguf(weight) => blocks(cuda, weight, args),
        Weight::Custom(_) => Err(Error::unsupported("a weight of a custom form on a CUDA device")),
    }
}

fn epilogue<'a>(options: Options, low_rank: Option<LowRank<'a>>, bias: Option<&'a Tensor>) -> Epilogue<'a> {
    Epilogue { alpha: options.alpha, accumulate: options.accumulate, low_rank, bias }
}

/// Few rows with the blocks as they lie, more decoded as they are multiplied where that is faster, and many with strips of them decoded.
fn blocks(cuda: &Cuda, weight: &dyn DecodeRows, args: LinearArgs<'_>) -> Result<()> {
    let LinearArgs { x, direction, out, options, low_rank, bias, .. } = args;
    if let Some(kernel) = matvec::kernel(x, weight, direction)? {
        kernel.run(cuda, x, &out, options)?;
        return add(low_rank, bias, out);
    }
    let epilogue = epilogue(options, low_rank, bias);
    if let Some(fused) = Fused::new(x, weight, direction, &out)? {
        return fused.run(cuda, &out, &epilogue);
    }
    let row = weight.shape()[1] * weight.decoded_dtype(x.dtype()).size();
    let rows = (STRIP / row.max(1) / KC * KC).max(KC);
    Product { x, weight, direction, rows, epilogue }.write(out)
}

/// What comes behind a product whose kernel has no epilogue.
fn add(low_rank: Option<LowRank<'_>>, bias: Option<&Tensor>, mut out: TensorMut<'_>) -> Result<()> {
    match (low_rank, bias) {
        (Some(LowRank { u, v, scale }), bias) => {
            let epilogue = Epilogue { alpha: scale, accumulate: Accumulate::Add, low_rank: None, bias };
            ops::product_with(u, &v.transpose(0, 1)?, out, 0, epilogue)
        }
        (None, Some(bias)) => {
            let rows = bias.broadcast_to(out.shape())?;
            ops::accumulate(&mut out, &rows)
        }
        (None, None) => Ok(()),
    }
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
    epilogue: Epilogue<'a>,
}

impl Product<'_> {
    fn write(&self, out: TensorMut<'_>) -> Result<()> {
        let [out_features, _] = self.weight.shape();
        if out_features <= self.rows {
            return ops::product_with(self.x, &self.strip(0..out_features)?, out, 0, self.epilogue);
        }
        let direct = match self.direction {
            Direction::Forward => out.dtype() == DType::F32 || out.dtype() == self.x.dtype(),
            Direction::Backward => out.dtype() == DType::F32,
        };
        if !direct {
            return self.through_f32(out);
        }
        match self.direction {
            Direction::Forward => self.join(out),
            Direction::Backward => self.add_up(out),
        }
    }

    /// What a product of one strip could not store, formed in f32 first.
    fn through_f32(&self, mut out: TensorMut<'_>) -> Result<()> {
        let mut formed = self.x.device().alloc(out.shape(), DType::F32)?;
        let epilogue = Epilogue { accumulate: Accumulate::Store, ..self.epilogue };
        Product { epilogue, ..*self }.write(formed.view())?;
        match self.epilogue.accumulate {
            Accumulate::Store => ops::copy_into(&formed.finish(), out),
            Accumulate::Add => ops::accumulate(&mut out, &formed.finish()),
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

    /// x Wᵀ: each strip gives columns of it, with their rows of v and elements of the bias.
    fn join(&self, mut out: TensorMut<'_>) -> Result<()> {
        for rows in self.strips() {
            let Epilogue { low_rank, bias, .. } = self.epilogue;
            let v = low_rank.map(|low_rank| low_rank.v.narrow(0, rows.start, rows.len())).transpose()?;
            let bias = bias.map(|bias| bias.narrow(0, rows.start, rows.len())).transpose()?;
            let low_rank = low_rank.zip(v.as_ref()).map(|(low_rank, v)| LowRank { v, ..low_rank });
            let epilogue = Epilogue { low_rank, bias: bias.as_ref(), ..self.epilogue };
            ops::product_with(self.x, &self.strip(rows.clone())?, out.reborrow(), rows.start, epilogue)?;
        }
        Ok(())
    }

    /// x W: each strip gives a term of the sum; what else there is comes behind the last, as it does on the CPU.
    fn add_up(&self, mut sum: TensorMut<'_>) -> Result<()> {
        let [out_features, _] = self.weight.shape();
        for rows in self.strips() {
            let accumulate = if rows.start == 0 { self.epilogue.accumulate } else { Accumulate::Add };
            let behind = if rows.end == out_features { self.epilogue } else { Epilogue::default() };
            let epilogue = Epilogue { alpha: self.epilogue.alpha, accumulate, ..behind };
            let x = self.x.narrow(1, rows.start, rows.len())?;
            ops::product_with(&x, &self.strip(rows)?, sum.reborrow(), 0, epilogue)?;
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
                    let (u, v, bias) =
                        (normal(&[11, 3], 4, DType::F32), normal(&[to, 3], 5, DType::F32), normal(&[to], 6, dtype));
                    let low_rank = Some(LowRank { u: &u, v: &v, scale: 0.5 });
                    let epilogue = Epilogue { alpha, accumulate, low_rank, bias: Some(&bias) };
                    let (mut want, mut got) = (normal(&[11, to], 3, dtype), normal(&[11, to], 3, dtype));
                    whole.product_into(&x, direction, want.as_mut().unwrap(), epilogue).unwrap();
                    let product = Product { x: &x, weight: &weight, direction, rows: KC, epilogue };
                    product.write(got.as_mut().unwrap()).unwrap();
                    let values = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
                    // Sums of 700 terms of about 1, rounded here once and there after each part: product, low-rank term, bias.
                    let close = dtype.epsilon().unwrap() as f32;
                    for (want, got) in values(&want).into_iter().zip(values(&got)) {
                        let allowed = 2.0 * close * (want.abs() + 64.0) + 1e-4;
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
