//! Products of few rows with weights in blocks on CUDA devices, as it is when a token is decoded: the weight's bytes are read once
//! and decoded in registers (`cuda/kernels/matvec.cuh`), in the order of the CPU's sums; or, beside ggml's blocks and in 16 bits,
//! multiplied as integers.

use crate::decode::{DecodeRows, aligned, type_code};
use crate::weight::Direction;
use kinglet_tensor::cpu::gemm::{Accumulate, FEW_ROWS, Options};
use kinglet_tensor::cuda::{self, Arg, Cuda};
use kinglet_tensor::{DType, Result, Tensor, TensorMut};

/// Rows of the weight that a block of the kernels has, four a warp, and its threads.
const BLOCK_ROWS: usize = 16;
const BLOCK: u32 = 128;

/// The kernel that multiplies with a weight as it lies, for one row of x or for up to eight.
pub(crate) struct Matvec {
    /// The module.
    pub(crate) module: &'static str,
    /// The entry point.
    pub(crate) entry: String,
    /// Its first arguments, which tell it the weight.
    pub(crate) weight: Vec<Arg<'static>>,
    /// Whether it takes x as runs of integers (`cuda/kernels/matvec_gguf.cuh`).
    pub(crate) in_integers: bool,
}

/// Elements of a run, and its bytes: two an element, and what it is scaled with.
const RUN: usize = 32;
const RUN_BYTES: usize = 80;

/// The kernel for `x`, if it has so few rows and there is one for the weight's form and shape.
pub(crate) fn kernel(x: &Tensor, weight: &dyn DecodeRows, direction: Direction) -> Result<Option<Matvec>> {
    let (rows, columns) = x.dims2("linear")?;
    let some = (1..=FEW_ROWS).contains(&rows) && columns > 0;
    if some && direction == Direction::Forward { weight.matvec(rows == 1, x.dtype()) } else { Ok(None) }
}

impl Matvec {
    /// `out` = alpha x Wᵀ, or `out` += that.
    pub(crate) fn run(&self, cuda: &Cuda, x: &Tensor, out: &TensorMut<'_>, options: Options) -> Result<()> {
        if self.in_integers {
            return self.run_in_integers(cuda, x, out, options);
        }
        let (m, k) = x.dims2("linear")?;
        // Several rows come in f32, which holds the 16-bit types, as does one of f16: they are short beside the weight.
        let is_bf16 = m == 1 && x.dtype() == DType::BF16;
        let x = &aligned(if is_bf16 { x.clone() } else { x.to_dtype(DType::F32)? }.contiguous()?)?;
        let mut args = self.weight.clone();
        args.push(cuda::read(x)?);
        if m == 1 {
            args.push(Arg::U32(is_bf16.into()));
        }
        args.push(Arg::U32(options.round_bf16.into()));
        self.start(cuda, args, [m, k], out, options)
    }

    /// As [`Matvec::run`], for x of 16 bits.
    fn run_in_integers(&self, cuda: &Cuda, x: &Tensor, out: &TensorMut<'_>, options: Options) -> Result<()> {
        let (m, k) = x.dims2("linear")?;
        let (x, runs) = (x.contiguous()?, m * k / RUN);
        let mut integers = x.device().alloc(&[runs * RUN_BYTES], DType::U8)?;
        let args = [cuda::read(&x)?, type_code(x.dtype())?, cuda::written(&integers.view())?, cuda::count(runs)];
        cuda::over_rows(cuda, self.module, "round_gguf", runs, &args)?;
        let integers = integers.finish();
        let mut args = self.weight.clone();
        args.push(cuda::read(&integers)?);
        self.start(cuda, args, [m, k], out, options)
    }

    /// Starts the kernel for m rows of k, whose first `args` are its operands.
    fn start(
        &self,
        cuda: &Cuda,
        mut args: Vec<Arg<'_>>,
        [m, k]: [usize; 2],
        out: &TensorMut<'_>,
        options: Options,
    ) -> Result<()> {
        let n = out.shape()[1];
        args.extend([
            cuda::written(out)?,
            type_code(out.dtype())?,
            Arg::F32(options.alpha),
            Arg::U32((options.accumulate == Accumulate::Add).into()),
        ]);
        if m > 1 {
            args.push(cuda::number(m)?);
        }
        args.extend([cuda::number(n)?, cuda::number(k)?]);
        cuda::start(cuda, self.module, &self.entry, n.div_ceil(BLOCK_ROWS), BLOCK, &args)
    }
}
