//! The loss over an output projection on CUDA devices: products by kernels of their own, chunk by chunk, and between them
//! those of linear_cross_entropy.cu.

use super::{
    LinearCrossEntropyArgs, LogitsArgs, OP, Term, TermGradientsMut, check_terms, chunks, rounded, rows_at_once,
};
use crate::cpu::gemm::{Accumulate, Options};
use crate::cuda::{self, Arg, Cuda};
use crate::ops::{self, product_into};
use crate::{DType, Result, Tensor, TensorMut};

const MODULE: &str = "linear_cross_entropy";
/// Threads of a block that makes the loss of one row, with four classes each at a time: at most 16 warps.
fn loss_threads(classes: usize) -> u32 {
    classes.div_ceil(4).clamp(1, 512).next_multiple_of(cuda::WARP as usize) as u32
}

pub(super) fn linear_cross_entropy(cuda: &Cuda, mut args: LinearCrossEntropyArgs<'_>) -> Result<()> {
    let (_, classes) = check_terms(args.terms)?;
    ops::fill(&mut args.losses, 0.0)?;
    for gradients in &mut args.gradients {
        for gradient in [&mut gradients.x, &mut gradients.weight].into_iter().flatten() {
            ops::fill(gradient, 0.0)?;
        }
    }
    // Room for as many rows as the batch could have targets: what a run takes is known by its tokens.
    let room = rows_at_once(classes, args.losses.device()).min(args.losses.len());
    for range in chunks(args.targets, classes) {
        let [rows, targets] = args.targets.part(range.start, range.len())?;
        Chunk { cuda, rows, targets, room, classes, divisor: args.divisor }.run(&mut args)?;
    }
    let LinearCrossEntropyArgs { divisor, loss, losses, .. } = args;
    let sum = [cuda::written(&losses)?, Arg::F32(divisor), cuda::written(&loss)?, cuda::count(losses.len())];
    cuda::start(cuda, "cross_entropy", "cross_entropy_loss", 1, cuda::WARP, &sum)
}

/// Rows whose logits exist at once.
struct Chunk<'a> {
    cuda: &'a Cuda,
    /// `[rows]`, i32
    rows: Tensor,
    /// `[rows]`, i32
    targets: Tensor,
    /// At least as many as there are rows.
    room: usize,
    classes: usize,
    divisor: f32,
}

impl Chunk<'_> {
    fn run(&self, args: &mut LinearCrossEntropyArgs<'_>) -> Result<()> {
        let xs = args.terms.iter().map(|term| self.gather(term.x)).collect::<Result<Vec<_>>>()?;
        let device = args.losses.device().clone();
        let shape = [self.rows.len(), self.classes];
        let mut logits = device.alloc(&[self.room, self.classes], DType::F32)?;
        for (i, (term, x)) in args.terms.iter().zip(&xs).enumerate() {
            let accumulate = if i == 0 { Accumulate::Store } else { Accumulate::Add };
            term.weight.logits_into(x, logits.view().into_part(0, &shape)?, accumulate)?;
        }
        let logits = logits.finish().narrow(0, 0, self.rows.len())?;
        if args.terms.iter().all(|term| !term.wants.x && !term.wants.weight) {
            return self.losses(&logits, &args.losses, None);
        }
        // In the dtype that the products take; the logits are not needed after it.
        let mut gradients = device.alloc(&[self.room, self.classes], xs[0].dtype())?;
        self.losses(&logits, &args.losses, Some(&gradients.view()))?;
        drop(logits);
        let d_logits = gradients.finish().narrow(0, 0, self.rows.len())?;
        let wanted = args.gradients.iter_mut().zip(&xs);
        args.terms.iter().zip(wanted).try_for_each(|(term, (out, x))| self.gradients(term, x, &d_logits, out))
    }

    /// The chunk's rows of `x`, bf16 where `x` is, else f32: tensor cores multiply bf16, whose range is that of f32, while
    /// gradients in f16 would vanish.
    fn gather(&self, x: &Tensor) -> Result<Tensor> {
        let (_, width) = x.dims2(OP)?;
        let dtype = if x.dtype() == DType::BF16 { DType::BF16 } else { DType::F32 };
        let mut out = x.device().alloc(&[self.room, width], dtype)?;
        let args = [
            cuda::read(x)?,
            cuda::read(&self.rows)?,
            cuda::written(&out.view())?,
            cuda::count(self.rows.len()),
            cuda::number(width)?,
        ];
        cuda::over_rows(self.cuda, MODULE, &format!("gather_rows_{}", x.dtype()), self.rows.len(), &args)?;
        out.finish().narrow(0, 0, self.rows.len())
    }

    /// The loss of each row into its place, and the gradient of its logits.
    fn losses(&self, logits: &Tensor, losses: &TensorMut<'_>, gradient: Option<&TensorMut<'_>>) -> Result<()> {
        let (dtype, place) = match gradient {
            Some(gradient) => (gradient.dtype(), cuda::written(gradient)?),
            None => (DType::F32, Arg::Pointer(0)),
        };
        let args = [
            cuda::read(logits)?,
            cuda::read(&self.rows)?,
            cuda::read(&self.targets)?,
            Arg::F32(self.divisor),
            cuda::written(losses)?,
            place,
            cuda::number(self.classes)?,
        ];
        let threads = loss_threads(self.classes);
        cuda::start(self.cuda, MODULE, &format!("row_losses_{dtype}"), self.rows.len(), threads, &args)
    }

    /// With logits = x Wᵀ: dx = d_logits W, dW += d_logitsᵀ x.
    fn gradients(&self, term: &Term<'_>, x: &Tensor, d_logits: &Tensor, out: &mut TermGradientsMut<'_>) -> Result<()> {
        if let Some(out) = &mut out.x {
            let mut d_rows = x.device().alloc(&[self.room, x.dim(1)?], x.dtype())?;
            term.weight.hidden_into(d_logits, d_rows.view().into_part(0, x.shape())?)?;
            let d_rows = d_rows.finish();
            let args = [
                cuda::read(&d_rows)?,
                cuda::read(&self.rows)?,
                cuda::written(out)?,
                cuda::count(self.rows.len()),
                cuda::number(x.dim(1)?)?,
            ];
            cuda::over_rows(self.cuda, MODULE, &format!("scatter_rows_{}", out.dtype()), self.rows.len(), &args)?;
        }
        if let Some(out) = &mut out.weight {
            let options = Options { accumulate: Accumulate::Add, ..rounded(d_logits, x.dtype()) };
            product_into(&d_logits.transpose(0, 1)?, x, out.reborrow(), options)?;
        }
        Ok(())
    }
}

/// The rows, which are few, one beside another, and their product.
pub(super) fn logits(_: &Cuda, args: LogitsArgs<'_>) -> Result<()> {
    let LogitsArgs { hidden, weight, rows, out } = args;
    if rows.is_empty() {
        return Ok(());
    }
    let rows = rows.iter().map(|&row| hidden.narrow(0, row, 1)).collect::<Result<Vec<_>>>()?;
    let chosen = ops::cat(&rows.iter().collect::<Vec<_>>(), 0)?;
    weight.logits_into(&chosen, out, Accumulate::Store)
}
