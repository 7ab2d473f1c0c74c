//! How a product is started, by any kernel that makes a tile a block: on tensor cores in one go, or parts of k and their sum; on
//! plain cores in one go.

use super::plan::{DEPTH, Plan, Sizes, part};
use super::{Epilogue, LowRank};
use crate::cpu::gemm::Accumulate;
use crate::cuda::{self, Arg, Cuda};
use crate::{DType, Device, Error, Result, Tensor, TensorMut};
use kinglet_cuda::Launch;

/// A product on tensor cores: a kernel whose arguments are its operands, and then those that `cuda/kernels/matmul.cu` names from `out`
/// to `depth`.
#[derive(Clone, Copy, Debug)]
pub struct Tiles<'a> {
    /// The kernel's module.
    pub module: &'a str,
    /// Its entry point, for the tile of `plan`.
    pub entry: &'a str,
    /// Its first arguments.
    pub operands: &'a [Arg<'a>],
    /// The sizes of the product.
    pub sizes: Sizes,
    /// The tile, and in how many parts k is cut.
    pub plan: Plan,
}

impl Tiles<'_> {
    /// Starts it. Parts of k are made in f32 in memory of their own, and added up in order.
    ///
    /// # Errors
    /// When there is no such kernel, the arguments do not fit it, or memory runs out.
    pub fn run(&self, cuda: &Cuda, target: &Target) -> Result<()> {
        let Sizes { batches, m, n, k, .. } = self.sizes;
        if self.plan.splits == 0 {
            return Err(Error::unsupported(format!("{}: {:?}", self.entry, self.plan)));
        }
        let depth = part(k, self.plan.splits).max(DEPTH);
        let splits = k.div_ceil(depth).max(1);
        if splits == 1 {
            return self.start(cuda, target, 1, depth);
        }
        let mut parts = target.device.alloc(&[splits, batches, m, n], DType::F32)?;
        self.start(cuda, &Target::new(&parts.view(), 0, &Epilogue::default())?, splits, depth)?;
        self.sum(cuda, &parts.finish(), target)
    }

    /// One block a tile and part of k.
    fn start(&self, cuda: &Cuda, target: &Target, splits: usize, depth: usize) -> Result<()> {
        let (Sizes { batches, m, n, .. }, tile) = (self.sizes, self.plan.tile);
        let wide = Arg::U32((target.dtype == DType::F32).into());
        let args = target.args(self.operands, &[wide], &self.sizes, &[cuda::number(depth)?])?;
        let blocks = splits * batches * tile.count(m, n);
        let blocks =
            u32::try_from(blocks).map_err(|_| Error::unsupported(format!("{}: {blocks} blocks", self.entry)))?;
        let launch = Launch::linear(blocks, tile.threads()).with_shared(tile.shared_bytes());
        Ok(cuda.launch(self.module, self.entry, &launch, &args)?)
    }

    /// The parts of k added up, and what comes behind.
    fn sum(&self, cuda: &Cuda, parts: &Tensor, target: &Target) -> Result<()> {
        let Sizes { batches, m, n, .. } = self.sizes;
        let (rows, splits) = (batches * m, parts.dim(0)?);
        let mut args = vec![cuda::read(parts)?, cuda::number(splits)?, Arg::Pointer(target.first)];
        args.push(cuda::count(target.pitch));
        args.extend(target.epilogue()?);
        args.extend([cuda::count(rows), cuda::number(n)?]);
        cuda::over_threads(cuda, "matmul", &format!("matmul_sum_{}", target.dtype), rows * n.div_ceil(4), &args)
    }
}

/// Rows and columns of a tile on plain cores.
const PLAIN_SIDE: usize = 64;

/// A product in f32 on plain cores, in the CPU's order: a kernel whose arguments are its operands, and then those that
/// `cuda/kernels/matmul.cu` names from `out` to `k`.
#[derive(Clone, Copy, Debug)]
pub struct PlainTiles<'a> {
    /// The kernel's module.
    pub module: &'a str,
    /// Its entry point.
    pub entry: &'a str,
    /// Its first arguments.
    pub operands: &'a [Arg<'a>],
    /// The sizes of the product.
    pub sizes: Sizes,
}

impl PlainTiles<'_> {
    /// Starts it.
    ///
    /// # Errors
    /// When there is no such kernel, or the arguments do not fit it.
    pub fn run(&self, cuda: &Cuda, target: &Target) -> Result<()> {
        let Sizes { batches, m, n, .. } = self.sizes;
        let args = target.args(self.operands, &[], &self.sizes, &[])?;
        let blocks = batches * m.div_ceil(PLAIN_SIDE) * n.div_ceil(PLAIN_SIDE);
        cuda::start(cuda, self.module, self.entry, blocks, cuda::THREADS, &args)
    }
}

/// Where the results of a product go, and what is done with them before, as kernels take it.
pub struct Target {
    device: Device,
    /// The address of the first result.
    first: u64,
    /// From row to row, in elements.
    pitch: usize,
    pub(super) dtype: DType,
    accumulate: Accumulate,
    alpha: f32,
    bias: Option<Tensor>,
    /// u, v and the scale.
    low_rank: Option<(Tensor, Tensor, f32)>,
}

impl Target {
    /// Columns of `out` [batch.., m, ..] from `column` on.
    ///
    /// # Errors
    /// When `out` is no matrix on a CUDA device, or memory runs out.
    pub fn new(out: &TensorMut<'_>, column: usize, epilogue: &Epilogue<'_>) -> Result<Self> {
        let Epilogue { alpha, accumulate, low_rank, bias } = *epilogue;
        let &pitch = out.shape().last().ok_or_else(|| Error::shape("matmul", "a product is a matrix"))?;
        let first = out.address()? + (column * out.dtype().size()) as u64;
        let wide = |x: &Tensor| x.to_dtype(DType::F32);
        let bias = bias.map(|bias| wide(bias)?.contiguous()).transpose()?;
        let low_rank = match low_rank {
            Some(LowRank { u, v, scale }) => Some((wide(u)?.contiguous()?, wide(v)?.forwards()?, scale)),
            None => None,
        };
        let (device, dtype) = (out.device().clone(), out.dtype());
        Ok(Target { device, first, pitch, dtype, accumulate, alpha, bias, low_rank })
    }

    /// What all kernels of products take behind their operands, with what some have behind the place of results and at the end.
    pub(super) fn args<'a>(
        &self,
        operands: &[Arg<'a>],
        behind_out: &[Arg<'a>],
        sizes: &Sizes,
        last: &[Arg<'a>],
    ) -> Result<Vec<Arg<'a>>> {
        let mut args = operands.to_vec();
        args.extend([Arg::Pointer(self.first), cuda::count(self.pitch)]);
        args.extend(behind_out);
        args.extend(self.epilogue()?);
        for size in [sizes.batches, sizes.m, sizes.n, sizes.k] {
            args.push(cuda::number(size)?);
        }
        args.extend(last);
        Ok(args)
    }

    /// The arguments from `accumulate` to `scale`.
    fn epilogue(&self) -> Result<[Arg<'static>; 9]> {
        const NONE: Arg<'_> = Arg::Pointer(0);
        let bias = self.bias.as_ref().map_or(Ok(NONE), cuda::read)?;
        let (u, v, strides, rank, scale) = match &self.low_rank {
            Some((u, v, scale)) => (cuda::read(u)?, cuda::read(v)?, strides(v, 0)?, v.dim(1)?, *scale),
            None => (NONE, NONE, [0, 0], 0, 0.0),
        };
        let accumulate = Arg::U32((self.accumulate == Accumulate::Add).into());
        let (strides, rank) = (strides.map(Arg::U64), cuda::number(rank)?);
        Ok([accumulate, Arg::F32(self.alpha), bias, u, v, strides[0], strides[1], rank, Arg::F32(scale)])
    }
}

/// The strides of the matrices that the last two dimensions of `x`, from `lead` on, are.
pub(super) fn strides(x: &Tensor, lead: usize) -> Result<[u64; 2]> {
    let stride = |d: usize| match x.layout().strides()[d] {
        // Nothing is there to step over.
        _ if x.is_empty() => Ok(0),
        stride => u64::try_from(stride).map_err(|_| Error::unsupported(format!("matmul: a stride of {stride}"))),
    };
    Ok([stride(lead)?, stride(lead + 1)?])
}

/// Whether every 16 bytes along rows or columns of the matrices of `x` [batch.., rows, columns], of 16-bit elements, can be copied
/// at once: what the tiles of 128 ask for.
///
/// # Errors
/// When `x` is not on a CUDA device, or runs backwards.
pub fn comes_in_chunks(x: &Tensor) -> Result<bool> {
    let (layout, lead) = (x.layout(), x.rank() - 2);
    let [rows, columns] = strides(x, lead)?;
    let steps = |d: usize| layout.shape()[d] == 1 || layout.strides()[d] % 8 == 0;
    Ok(x.dtype().size() == 2
        && rows.min(columns) == 1
        && rows.max(columns) % 8 == 0
        && x.address()? % 16 == 0
        && (0..lead).all(steps))
}
