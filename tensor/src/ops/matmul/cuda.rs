//! Products on CUDA devices: which kernel of `cuda/kernels/matmul.cu` takes which, and how it is started.

use super::plan::{DEPTH, Machine, Plan, Sizes, Tile, part};
use super::{Epilogue, LowRank, MatmulArgs};
use crate::cpu::gemm::{Accumulate, FEW_ROWS};
use crate::cuda::{self, Arg, Cuda, View};
use crate::{DType, Error, Result, Tensor};
use kinglet_cuda::Launch;

/// Rows and columns of a block of `matmul_plain`.
const SIDE: usize = 64;
/// A matrix b of f32 that bf16 rows meet is rounded as it is loaded, once for each 64 rows of a. Beyond this many rows, and columns of
/// its own, it is rounded once, before: 6 bytes an element then, not 4 for each 64 rows.
const ROUND_FROM: (usize, usize) = (129, 65);

pub(super) fn matmul_cuda(cuda: &Cuda, mut args: MatmulArgs<'_>) -> Result<()> {
    if args.out.is_empty() || args.b.dim(args.b.rank() - 1)? == 0 {
        return Ok(());
    }
    let rounded = round_before(&args)?;
    let b = rounded.as_ref().unwrap_or(args.b);
    if let Some(LowRank { u, v, scale }) = args.epilogue.low_rank.filter(|low_rank| parts_ways(&args, low_rank)) {
        let (out, column) = (args.out.reborrow(), args.column);
        let first = Epilogue { low_rank: None, bias: None, ..args.epilogue };
        let second = Epilogue { alpha: scale, accumulate: Accumulate::Add, low_rank: None, ..args.epilogue };
        matmul_cuda(cuda, MatmulArgs { column, epilogue: first, ..MatmulArgs::new(args.a, b, out) })?;
        let v = v.transpose(0, 1)?;
        return matmul_cuda(cuda, MatmulArgs { column, epilogue: second, ..MatmulArgs::new(u, &v, args.out) });
    }
    let (tf32, plan) = (args.tf32, args.plan);
    Product::new(&MatmulArgs { b, ..args })?.run(cuda, tf32, plan)
}

/// Whether the low-rank term would be a product of few rows on the CPU and the main one not, or the other way round: then they
/// are two in f32, to have the CPU's bits.
fn parts_ways(args: &MatmulArgs<'_>, low_rank: &LowRank<'_>) -> bool {
    let few = args.out.shape().iter().rev().nth(1).is_some_and(|&m| m <= FEW_ROWS);
    let along = |x: &Tensor, d: usize| x.layout().strides()[d] == 1;
    few && args.out.dtype() == DType::F32 && along(args.b, args.b.rank() - 2) != along(low_rank.v, 1)
}

/// b in bf16, when that is worth a pass of its own.
fn round_before(args: &MatmulArgs<'_>) -> Result<Option<Tensor>> {
    let &[m, n] = args.out.shape().last_chunk().ok_or_else(no_matrix)?;
    let asked = (args.a.dtype(), args.b.dtype()) == (DType::BF16, DType::F32);
    if !asked || m < ROUND_FROM.0 || n < ROUND_FROM.1 {
        return Ok(None);
    }
    // As it lies in memory: neighbours stay neighbours.
    let (rank, strides) = (args.b.rank(), args.b.layout().strides());
    if strides[rank - 2] < strides[rank - 1] {
        let turned = args.b.transpose(rank - 2, rank - 1)?.to_dtype(DType::BF16)?;
        return turned.transpose(rank - 2, rank - 1).map(Some);
    }
    args.b.to_dtype(DType::BF16).map(Some)
}

fn no_matrix() -> Error {
    Error::shape("matmul", "a product is a matrix")
}

/// How the matrices of an operand [batch.., rows, cols] lie: the first of each by a view, and from row to row and from
/// column to column.
struct Operand<'a> {
    tensor: &'a Tensor,
    batch: View,
    strides: [u64; 2],
}

impl<'a> Operand<'a> {
    fn new(tensor: &'a Tensor) -> Result<Self> {
        let lead = tensor.rank() - 2;
        let batch = View::of(&tensor.layout().leading(lead))?;
        Ok(Operand { tensor, batch, strides: [stride(tensor, lead)?, stride(tensor, lead + 1)?] })
    }

    /// Whether every 16 bytes along rows or columns of 16-bit elements can be copied at once: what the tiles of 128 ask for.
    fn is_aligned(&self) -> Result<bool> {
        let (layout, lead) = (self.tensor.layout(), self.tensor.rank() - 2);
        let steps = |d: usize| layout.shape()[d] == 1 || layout.strides()[d] % 8 == 0;
        let [near, far] = [self.strides[0].min(self.strides[1]), self.strides[0].max(self.strides[1])];
        Ok(self.tensor.dtype().size() == 2
            && near == 1
            && far % 8 == 0
            && self.tensor.address()? % 16 == 0
            && (0..lead).all(steps))
    }
}

fn stride(x: &Tensor, d: usize) -> Result<u64> {
    match x.layout().strides()[d] {
        // Nothing is there to step over.
        _ if x.is_empty() => Ok(0),
        stride => u64::try_from(stride).map_err(|_| Error::unsupported(format!("matmul: a stride of {stride}"))),
    }
}

/// A product as kernels take it.
struct Product<'a> {
    a: Operand<'a>,
    b: Operand<'a>,
    out: Place,
    epilogue: Behind,
    sizes: Sizes,
}

/// Where results go.
struct Place {
    first: u64,
    /// From row to row, in elements.
    pitch: usize,
    dtype: DType,
}

impl<'a> Product<'a> {
    fn new(args: &MatmulArgs<'a>) -> Result<Self> {
        let (a, b) = (Operand::new(args.a)?, Operand::new(args.b)?);
        let [batch @ .., m, pitch] = args.out.shape() else { return Err(no_matrix()) };
        let (n, k) = (b.tensor.dim(b.tensor.rank() - 1)?, a.tensor.dim(a.tensor.rank() - 1)?);
        let aligned = a.is_aligned()? && b.is_aligned()?;
        let sizes = Sizes { batches: batch.iter().product(), m: *m, n, k, aligned };
        let dtype = args.out.dtype();
        if dtype != DType::F32 && dtype != a.tensor.dtype() {
            return Err(Error::unsupported(format!("matmul of {} into {dtype} on a CUDA device", a.tensor.dtype())));
        }
        let first = args.out.address()? + (args.column * dtype.size()) as u64;
        let out = Place { first, pitch: *pitch, dtype };
        Ok(Product { a, b, out, epilogue: Behind::new(&args.epilogue)?, sizes })
    }

    /// Few rows go the way that they go on the CPU, so that they have its bits.
    fn takes_few_rows(&self) -> bool {
        self.sizes.m <= FEW_ROWS && self.b.strides[0] == 1
    }

    fn runs_on_tensor_cores(&self, tf32: bool) -> bool {
        match (self.a.tensor.dtype(), self.b.tensor.dtype()) {
            (DType::BF16, DType::BF16 | DType::F32) | (DType::F16, DType::F16) => true,
            (DType::F32, DType::F32) => tf32,
            _ => false,
        }
    }

    fn run(&self, cuda: &Cuda, tf32: bool, plan: Option<Plan>) -> Result<()> {
        let Sizes { batches, m, n, .. } = self.sizes;
        let types = format!("{}_{}", self.a.tensor.dtype(), self.b.tensor.dtype());
        if !self.takes_few_rows() && self.runs_on_tensor_cores(tf32) {
            return self.by_plan(cuda, &types, plan.unwrap_or_else(|| Machine::NOMINAL.plan(&self.sizes)));
        }
        let args = self.args(&self.out, &self.epilogue, &[], &[])?;
        if self.takes_few_rows() {
            let entry = format!("matmul_rows_{types}_{}", self.out.dtype);
            return cuda::over_rows(cuda, "matmul", &entry, batches * m * n, &args);
        }
        let entry = format!("matmul_plain_{types}_{}", self.out.dtype);
        let blocks = batches * m.div_ceil(SIDE) * n.div_ceil(SIDE);
        cuda::start(cuda, "matmul", &entry, blocks, cuda::THREADS, &args)
    }

    fn by_plan(&self, cuda: &Cuda, types: &str, plan: Plan) -> Result<()> {
        let Sizes { batches, m, n, k, aligned } = self.sizes;
        if plan.splits == 0 || (plan.tile != Tile::Small && !aligned) {
            return Err(Error::unsupported(format!("matmul: {plan:?} for {:?}", self.sizes)));
        }
        let depth = part(k, plan.splits).max(DEPTH);
        let splits = k.div_ceil(depth).max(1);
        if splits == 1 {
            return self.tiles(cuda, types, plan.tile, (1, depth), &self.out, &self.epilogue);
        }
        let mut parts = self.a.tensor.device().alloc(&[splits, batches, m, n], DType::F32)?;
        let place = Place { first: parts.view().address()?, pitch: n, dtype: DType::F32 };
        self.tiles(cuda, types, plan.tile, (splits, depth), &place, &Behind::new(&Epilogue::default())?)?;
        self.sum(cuda, &parts.finish())
    }

    /// One block a tile and part of k.
    fn tiles(
        &self,
        cuda: &Cuda,
        types: &str,
        tile: Tile,
        (splits, depth): (usize, usize),
        out: &Place,
        epilogue: &Behind,
    ) -> Result<()> {
        let name = match tile {
            Tile::Small => "64x64",
            Tile::Large => "128x128",
            Tile::Wide => "128x256",
        };
        let wide = Arg::U32((out.dtype == DType::F32).into());
        let args = self.args(out, epilogue, &[wide], &[cuda::number(depth)?])?;
        let blocks = splits * self.sizes.batches * tile.count(self.sizes.m, self.sizes.n);
        let blocks = u32::try_from(blocks).map_err(|_| Error::unsupported(format!("matmul: {blocks} blocks")))?;
        let launch = Launch::linear(blocks, tile.threads()).with_shared(tile.shared_bytes());
        Ok(cuda.launch("matmul", &format!("matmul_{name}_{types}"), &launch, &args)?)
    }

    /// The parts of k added up, and the epilogue.
    fn sum(&self, cuda: &Cuda, parts: &Tensor) -> Result<()> {
        let Sizes { batches, m, n, .. } = self.sizes;
        let (rows, splits) = (batches * m, parts.dim(0)?);
        let mut args = vec![cuda::read(parts)?, cuda::number(splits)?, Arg::Pointer(self.out.first)];
        args.push(cuda::count(self.out.pitch));
        args.extend(self.epilogue.args()?);
        args.extend([cuda::count(rows), cuda::number(n)?]);
        cuda::over_threads(cuda, "matmul", &format!("matmul_sum_{}", self.out.dtype), rows * n.div_ceil(4), &args)
    }

    /// What all kernels of products take, with what some have behind the place of results and at the end.
    fn args(&self, out: &Place, epilogue: &Behind, after_out: &[Arg<'a>], last: &[Arg<'a>]) -> Result<Vec<Arg<'_>>> {
        let Sizes { batches, m, n, k, .. } = self.sizes;
        let mut args = Vec::with_capacity(25);
        for operand in [&self.a, &self.b] {
            let [rows, columns] = operand.strides.map(Arg::U64);
            args.extend([cuda::read(operand.tensor)?, rows, columns, operand.batch.arg()]);
        }
        args.extend([Arg::Pointer(out.first), cuda::count(out.pitch)]);
        args.extend(after_out);
        args.extend(epilogue.args()?);
        for size in [batches, m, n, k] {
            args.push(cuda::number(size)?);
        }
        args.extend(last);
        Ok(args)
    }
}

/// An epilogue with its operands as kernels take them.
struct Behind {
    accumulate: Accumulate,
    alpha: f32,
    bias: Option<Tensor>,
    /// u, v and the scale.
    low_rank: Option<(Tensor, Tensor, f32)>,
}

impl Behind {
    fn new(epilogue: &Epilogue<'_>) -> Result<Self> {
        let Epilogue { alpha, accumulate, low_rank, bias } = *epilogue;
        let wide = |x: &Tensor| x.to_dtype(DType::F32);
        let bias = bias.map(|bias| wide(bias)?.contiguous()).transpose()?;
        let low_rank = match low_rank {
            Some(LowRank { u, v, scale }) => Some((wide(u)?.contiguous()?, wide(v)?.forwards()?, scale)),
            None => None,
        };
        Ok(Behind { accumulate, alpha, bias, low_rank })
    }

    /// The arguments from `accumulate` to `scale`.
    fn args(&self) -> Result<[Arg<'static>; 9]> {
        const NONE: Arg<'_> = Arg::Pointer(0);
        let bias = self.bias.as_ref().map_or(Ok(NONE), cuda::read)?;
        let (u, v, strides, rank, scale) = match &self.low_rank {
            Some((u, v, scale)) => (cuda::read(u)?, cuda::read(v)?, [stride(v, 0)?, stride(v, 1)?], v.dim(1)?, *scale),
            None => (NONE, NONE, [0, 0], 0, 0.0),
        };
        let accumulate = Arg::U32((self.accumulate == Accumulate::Add).into());
        let (strides, rank) = (strides.map(Arg::U64), cuda::number(rank)?);
        Ok([accumulate, Arg::F32(self.alpha), bias, u, v, strides[0], strides[1], rank, Arg::F32(scale)])
    }
}
