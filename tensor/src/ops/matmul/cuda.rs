//! Products on CUDA devices: which kernel of `cuda/kernels/matmul.cu` takes which, and how it is started.

use super::plan::{Machine, Plan, Sizes, Tile};
use super::tiles::{PlainTiles, Target, Tiles, comes_in_chunks, strides};
use super::{Epilogue, Freedom, LowRank, MatmulArgs};
use crate::cpu::gemm::{Accumulate, FEW_ROWS};
use crate::cuda::{self, Arg, Cuda, View};
use crate::{DType, Error, Result, Tensor};

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
    let freedom = if args.a.device().allows_tf32() { Freedom::Tf32 } else { args.freedom };
    let plan = args.plan;
    Product::new(&MatmulArgs { b, ..args })?.run(cuda, freedom, plan)
}

/// Whether the main product is one of few rows on the CPU and the low-rank term behind it is not: then they are two in f32, to have
/// the CPU's bits. Behind any other product the term is added up as that is.
fn parts_ways(args: &MatmulArgs<'_>, low_rank: &LowRank<'_>) -> bool {
    let few = args.out.shape().iter().rev().nth(1).is_some_and(|&m| m <= FEW_ROWS);
    let along = |x: &Tensor, d: usize| x.layout().strides()[d] == 1;
    few && args.out.dtype() == DType::F32 && along(args.b, args.b.rank() - 2) && !along(low_rank.v, 1)
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
        Ok(Operand { tensor, batch: View::of(&tensor.layout().leading(lead))?, strides: strides(tensor, lead)? })
    }

    fn args(&self) -> Result<[Arg<'_>; 4]> {
        let [rows, columns] = self.strides.map(Arg::U64);
        Ok([cuda::read(self.tensor)?, rows, columns, self.batch.arg()])
    }
}

/// A product as kernels take it.
struct Product<'a> {
    a: Operand<'a>,
    b: Operand<'a>,
    target: Target,
    sizes: Sizes,
}

impl<'a> Product<'a> {
    fn new(args: &MatmulArgs<'a>) -> Result<Self> {
        let (a, b) = (Operand::new(args.a)?, Operand::new(args.b)?);
        let [batch @ .., m, _] = args.out.shape() else { return Err(no_matrix()) };
        let (n, k) = (b.tensor.dim(b.tensor.rank() - 1)?, a.tensor.dim(a.tensor.rank() - 1)?);
        let aligned = comes_in_chunks(a.tensor)? && comes_in_chunks(b.tensor)?;
        let sizes = Sizes { batches: batch.iter().product(), m: *m, n, k, aligned };
        let (from, dtype) = (a.tensor.dtype(), args.out.dtype());
        if dtype != DType::F32 && dtype != from {
            return Err(Error::unsupported(format!("matmul of {from} into {dtype} on a CUDA device")));
        }
        Ok(Product { a, b, target: Target::new(&args.out, args.column, &args.epilogue)?, sizes })
    }

    /// Few rows go the way that they go on the CPU, so that they have its bits.
    fn takes_few_rows(&self) -> bool {
        self.sizes.m <= FEW_ROWS && self.b.strides[0] == 1
    }

    fn runs_on_tensor_cores(&self, freedom: Freedom) -> bool {
        match (self.a.tensor.dtype(), self.b.tensor.dtype()) {
            (DType::BF16, DType::BF16 | DType::F32) | (DType::F16, DType::F16) => true,
            (DType::F32, DType::F32) => freedom == Freedom::Tf32,
            (DType::F32, DType::BF16) => freedom != Freedom::None,
            _ => false,
        }
    }

    fn run(&self, cuda: &Cuda, freedom: Freedom, plan: Option<Plan>) -> Result<()> {
        let Sizes { batches, m, n, .. } = self.sizes;
        let types = format!("{}_{}", self.a.tensor.dtype(), self.b.tensor.dtype());
        let operands = [self.a.args()?, self.b.args()?].concat();
        if !self.takes_few_rows() && self.runs_on_tensor_cores(freedom) {
            let plan = plan.unwrap_or_else(|| Machine::NOMINAL.plan(&self.sizes));
            return self.by_plan(cuda, &types, &operands, plan);
        }
        let (module, operands, sizes, out) = ("matmul", &operands[..], self.sizes, self.target.dtype);
        if self.takes_few_rows() {
            let (entry, args) = (format!("matmul_rows_{types}_{out}"), self.target.args(operands, &[], &sizes, &[])?);
            return cuda::over_rows(cuda, module, &entry, batches * m * n, &args);
        }
        let entry = &format!("matmul_plain_{types}_{out}");
        PlainTiles { module, entry, operands, sizes }.run(cuda, &self.target)
    }

    fn by_plan(&self, cuda: &Cuda, types: &str, operands: &[Arg<'_>], plan: Plan) -> Result<()> {
        if plan.tile != Tile::Small && !self.sizes.aligned {
            return Err(Error::unsupported(format!("matmul: {plan:?} for {:?}", self.sizes)));
        }
        let tile = match plan.tile {
            Tile::Small => "64x64",
            Tile::Large => "128x128",
            Tile::Wide => "128x256",
        };
        let entry = format!("matmul_{tile}_{types}");
        Tiles { module: "matmul", entry: &entry, operands, sizes: self.sizes, plan }.run(cuda, &self.target)
    }
}
