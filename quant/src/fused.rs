//! Products with weights in blocks on CUDA devices, decoded in shared memory as they are multiplied (`cuda/kernels/decoded.cuh`):
//! in 16 bits on tensor cores, for as many rows as that pays for; in f32 on plain ones, for any, with the CPU's bits.

use crate::decode::DecodeRows;
use crate::weight::Direction;
use kinglet_tensor::cpu::gemm::FEW_ROWS;
use kinglet_tensor::cuda::{self, Arg, Cuda};
use kinglet_tensor::kernels::{Epilogue, Machine, PlainTiles, Plan, Sizes, Target, Tiles, comes_in_chunks};
use kinglet_tensor::{DType, Result, Tensor, TensorMut};

/// Elements of a row that a thread of the kernels decodes at once: of one block.
pub(crate) const GROUP: usize = 8;

/// The kernels that decode one form of weights as they multiply, one for each float type.
pub(crate) struct Decoded {
    /// The module, and what its entry points begin with.
    pub(crate) module: &'static str,
    /// Their arguments behind x, which tell them the weight.
    pub(crate) weight: Vec<Arg<'static>>,
    /// Cycles of a multiprocessor that decoding an element for tensor cores takes beyond those that hide behind what comes from L2.
    pub(crate) cost: f64,
}

/// What decoding a whole matrix first costs, in cycles: a launch, and 2.5 bytes an element (4-bit blocks; others have up to half a byte
/// more) that pass through memory at 14 bytes a cycle and multiprocessor (3.35 TB/s, 132 of them at 1.75 GHz). The product reads it
/// from there again, which its own model has.
fn decoding(elements: usize) -> f64 {
    4000.0 + elements as f64 * 2.5 / (14.0 * Machine::NOMINAL.multiprocessors as f64)
}

/// The plan of a product that decodes as it goes, if by the model that takes no longer than decoding first. Such a product
/// makes tiles of 64 x 64, and each block decodes its part of W, at `cost` an element. So it costs what small tiles and that cost,
/// where the product of the decoded matrix may take larger ones; which makes W's bytes decide for few rows, and the tile for many.
///
/// The virtual GPU counts 480 instructions of a warp a stage, 2048 elements of W, for small tiles alone, 1330 with 4-bit blocks, and
/// 1800 to 2300 with ggml's. At four a cycle the first two hide behind the 340 cycles that the model has for a stage's bytes from
/// L2; of the last about 200 do not.
fn plan(sizes: Sizes, cost: f64) -> Option<Plan> {
    let machine = Machine::NOMINAL;
    let dense = Sizes { aligned: true, ..sizes };
    let (fused, first) = (machine.plan(&sizes), machine.plan(&dense));
    let apart = machine.cycles(&dense, first) + decoding(sizes.n * sizes.k);
    let decoded = sizes.n * sizes.k * sizes.m.div_ceil(fused.tile.rows());
    let at_once = machine.cycles(&sizes, fused) + decoded as f64 * cost / machine.multiprocessors as f64;
    (at_once <= apart).then_some(fused)
}

/// How a product that decodes as it goes is made.
enum Way {
    /// On tensor cores, by this plan.
    Cores(Plan),
    /// On plain cores. By the model of above that is never slower than decoding first, however many rows there are: both make tiles of
    /// 64 x 64, of whose stages the virtual GPU counts 2180 passes through shared memory, one a cycle, and 8900 to 9100 instructions of
    /// a warp with a dense matrix, 8700 with 4-bit blocks, 9100 to 9700 with ggml's, at four a cycle, of which the assembler drops a
    /// quarter. So decoding hides behind shared memory.
    Plain,
}

/// A product with a weight as it lies.
pub(crate) struct Fused<'a> {
    x: &'a Tensor,
    weight: Decoded,
    direction: Direction,
    sizes: Sizes,
    way: Way,
}

impl<'a> Fused<'a> {
    /// The product of `x` and `weight` into `out`, if there is a kernel for them and that is the faster way.
    ///
    /// # Errors
    /// When `x` or `weight` is not on a CUDA device.
    pub(crate) fn new(
        x: &'a Tensor,
        weight: &dyn DecodeRows,
        direction: Direction,
        out: &TensorMut<'_>,
    ) -> Result<Option<Self>> {
        let ([rows, width], (m, k)) = (weight.shape(), x.dims2("linear")?);
        let n = if direction == Direction::Forward { rows } else { width };
        let sizes = Sizes { batches: 1, m, n, k, aligned: false };
        let halves = matches!(x.dtype(), DType::BF16 | DType::F16) && comes_in_chunks(x)?;
        // Few rows have another order on the CPU, and in TF32 tensor cores multiply what is decoded first.
        let plain = x.dtype() == DType::F32 && m > FEW_ROWS && !x.device().allows_tf32();
        let whole = width.is_multiple_of(GROUP) && m > 0 && n > 0 && k > 0;
        if !(halves || plain) || ![DType::F32, x.dtype()].contains(&out.dtype()) || !whole {
            return Ok(None);
        }
        let Some(weight) = weight.decoded()? else { return Ok(None) };
        let way = match plain {
            true => Some(Way::Plain),
            false => plan(sizes, weight.cost).map(Way::Cores),
        };
        Ok(way.map(|way| Fused { x, weight, direction, sizes, way }))
    }

    /// Starts it.
    ///
    /// # Errors
    /// When memory runs out, or the device fails.
    pub(crate) fn run(&self, cuda: &Cuda, out: &TensorMut<'_>, epilogue: &Epilogue<'_>) -> Result<()> {
        let [row, column] = [0, 1].map(|d| Arg::U64(self.x.layout().strides()[d].unsigned_abs() as u64));
        let mut operands = vec![cuda::read(self.x)?, row, column];
        operands.extend_from_slice(&self.weight.weight);
        operands.push(Arg::U32((self.direction == Direction::Backward).into()));
        let (module, sizes, target) = (self.weight.module, self.sizes, &Target::new(out, 0, epilogue)?);
        let (entry, operands) = (&format!("{module}_{}", self.x.dtype()), &operands[..]);
        match self.way {
            Way::Cores(plan) => Tiles { module, entry, operands, sizes, plan }.run(cuda, target),
            Way::Plain => PlainTiles { module, entry, operands, sizes }.run(cuda, target),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_fused(m: usize, n: usize, k: usize, cost: f64) -> bool {
        plan(Sizes { batches: 1, m, n, k, aligned: false }, cost).is_some()
    }

    /// A few tiles of rows are multiplied with the blocks as they lie; thousands of tokens with the decoded matrix.
    #[test]
    fn few_rows_are_fused() {
        for (n, k) in [(4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096)] {
            for cost in [0.0, 0.1] {
                assert!(is_fused(16, n, k, cost) && is_fused(64, n, k, cost), "[{n}, {k}]");
                assert!(!is_fused(2048, n, k, cost) && !is_fused(8192, n, k, cost), "[{n}, {k}]");
            }
        }
    }
}
