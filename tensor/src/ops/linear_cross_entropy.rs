//! Output projection and cross-entropy in one: the logits hidden · weightᵀ exist for one chunk of rows at a time, and
//! only for rows that have a target. Gradients are made in the same pass, while the logits are there.

use super::cross_entropy::{check_targets, classes_of, log_sum_exp, logits_to_gradient, mean_loss};
use crate::cpu::gemm::{Accumulate, Dense, Elems, Mat, Options, Out, Panels, gemm};
use crate::cpu::{Cpu, Simd};
use crate::{DType, Element, Error, Float, Output, Result, Tensor, TensorMut, dispatch, kernel, same_device};

const OP: &str = "linear_cross_entropy";

/// Target rows whose logits exist at once: the weight is packed once for each such chunk, so few rows cost time and
/// many cost memory. At most 64 MiB of logits unless even 64 rows take more.
fn rows_at_once(classes: usize) -> usize {
    ((1 << 24) / classes / 32 * 32).clamp(64, 256)
}

struct Args<'a> {
    hidden: &'a Tensor,
    weight: &'a dyn Projection,
    targets: &'a Tensor,
    divisor: f32,
    /// Room for one chunk of rows in f32: hidden states [rows, d], their gradients [rows, d], logits [rows, classes].
    rows: TensorMut<'a>,
    d_rows: TensorMut<'a>,
    logits: TensorMut<'a>,
    loss: TensorMut<'a>,
    losses: TensorMut<'a>,
    d_hidden: Option<TensorMut<'a>>,
    d_weight: Option<TensorMut<'a>>,
}
kernel!(LINEAR_CROSS_ENTROPY = "linear_cross_entropy", Args, linear_cross_entropy_cpu);

struct Rows<'a> {
    hidden: &'a Tensor,
    weight: &'a dyn Projection,
    rows: &'a [usize],
    out: TensorMut<'a>,
}
kernel!(LOGITS = "logits", Rows, logits_cpu);

/// Which gradients [`linear_cross_entropy`] makes beside the loss.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Wants {
    /// That of the hidden states.
    pub hidden: bool,
    /// That of the weight.
    pub weight: bool,
}

/// What [`linear_cross_entropy`] gives.
pub struct LinearCrossEntropy {
    /// The sum of the losses over the divisor, a scalar of f32.
    pub loss: Tensor,
    /// -log p(target) of each row, f32; 0 where there is no target.
    pub losses: Tensor,
    /// The gradient of `loss` with respect to the hidden states, in their dtype.
    pub d_hidden: Option<Tensor>,
    /// The gradient of `loss` with respect to the weight, in f32.
    pub d_weight: Option<Tensor>,
}

/// The weight of an output projection [classes, d]: a dense tensor, or blocks that are decoded tile by tile.
pub trait Projection: Sync {
    /// Classes and width.
    ///
    /// # Errors
    /// When this is no matrix.
    fn dims(&self) -> Result<(usize, usize)>;
    /// The matrix [d, classes] that takes hidden states to logits.
    ///
    /// # Errors
    /// When the host cannot read it.
    fn to_logits(&self, simd: Simd) -> Result<Box<dyn Panels + '_>>;
    /// The matrix [classes, d] that takes gradients of logits to those of hidden states.
    ///
    /// # Errors
    /// When the host cannot read it.
    fn to_hidden(&self, simd: Simd) -> Result<Box<dyn Panels + '_>>;
}

/// A matrix of a float dtype.
impl Projection for Tensor {
    fn dims(&self) -> Result<(usize, usize)> {
        self.dims2("output projection")
    }
    fn to_logits(&self, simd: Simd) -> Result<Box<dyn Panels + '_>> {
        Ok(Box::new(Dense::new(simd, self.as_mat("output projection")?.transposed())))
    }
    fn to_hidden(&self, simd: Simd) -> Result<Box<dyn Panels + '_>> {
        Ok(Box::new(Dense::new(simd, self.as_mat("output projection")?)))
    }
}

/// The sum of -log softmax(`hidden` · `weight`ᵀ)\[target\] over the rows that have a target, over `divisor`; and the
/// gradients that are wanted, for a gradient of 1 of the loss. `hidden` is [tokens, d], `weight` [classes, d],
/// `targets` `[tokens]` of i32 where -1 means none.
///
/// # Errors
/// When a target is no class, shapes or dtypes do not fit, `divisor` is not positive, or devices differ.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &dyn Projection,
    targets: &Tensor,
    divisor: f32,
    wants: Wants,
) -> Result<LinearCrossEntropy> {
    let device = same_device(OP, &[hidden, targets])?;
    let (tokens, width) = hidden.dims2(OP)?;
    let (classes, _) = check_widths(hidden, weight)?;
    check_targets(OP, targets, tokens, divisor)?;
    let (hidden, targets) = (hidden.contiguous()?, targets.contiguous()?);
    let held = rows_at_once(classes).min(tokens);
    let mut rows = device.alloc(&[held, width], DType::F32)?;
    let mut d_rows = device.alloc(&[held, width], DType::F32)?;
    let mut logits = device.alloc(&[held, classes], DType::F32)?;
    let (mut loss, mut losses) = (device.alloc(&[], DType::F32)?, device.alloc(&[tokens], DType::F32)?);
    let mut d_hidden = wants.hidden.then(|| device.alloc(hidden.shape(), hidden.dtype())).transpose()?;
    let mut d_weight = wants.weight.then(|| device.alloc(&[classes, width], DType::F32)).transpose()?;
    let args = Args {
        hidden: &hidden,
        weight,
        targets: &targets,
        divisor,
        rows: rows.view(),
        d_rows: d_rows.view(),
        logits: logits.view(),
        loss: loss.view(),
        losses: losses.view(),
        d_hidden: d_hidden.as_mut().map(Output::view),
        d_weight: d_weight.as_mut().map(Output::view),
    };
    device.run(&LINEAR_CROSS_ENTROPY, args)?;
    Ok(LinearCrossEntropy {
        loss: loss.finish(),
        losses: losses.finish(),
        d_hidden: d_hidden.map(Output::finish),
        d_weight: d_weight.map(Output::finish),
    })
}

/// -log p(target) of every row, f32, 0 where the target is -1; see [`linear_cross_entropy`].
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn token_losses(hidden: &Tensor, weight: &dyn Projection, targets: &Tensor) -> Result<Tensor> {
    Ok(linear_cross_entropy(hidden, weight, targets, 1.0, Wants::default())?.losses)
}

/// The logits of chosen rows of `hidden` [tokens, d], such as the last of each prompt: [rows, classes] in f32.
///
/// # Errors
/// When there is no such row, or shapes or dtypes do not fit.
pub fn logits(hidden: &Tensor, weight: &dyn Projection, rows: &[usize]) -> Result<Tensor> {
    let (tokens, _) = hidden.dims2("logits")?;
    let (classes, _) = check_widths(hidden, weight)?;
    if let Some(row) = rows.iter().find(|&&row| row >= tokens) {
        return Err(Error::shape("logits", format!("row {row} of {:?}", hidden.shape())));
    }
    let device = hidden.device();
    let mut out = device.alloc(&[rows.len(), classes], DType::F32)?;
    device.run(&LOGITS, Rows { hidden: &hidden.contiguous()?, weight, rows, out: out.view() })?;
    Ok(out.finish())
}

fn check_widths(hidden: &Tensor, weight: &dyn Projection) -> Result<(usize, usize)> {
    let ((_, width), (classes, weight_width)) = (hidden.dims2(OP)?, weight.dims()?);
    if width != weight_width || classes == 0 {
        return Err(Error::shape(OP, format!("hidden {:?} by weight [{classes}, {weight_width}]", hidden.shape())));
    }
    if !hidden.dtype().is_float() {
        return Err(Error::dtype(OP, format!("hidden states of {}", hidden.dtype())));
    }
    Ok((classes, width))
}

fn linear_cross_entropy_cpu(cpu: &Cpu, mut args: Args<'_>) -> Result<()> {
    let (classes, _) = args.weight.dims()?;
    let targets = classes_of(OP, args.targets.as_slice()?, classes)?;
    let rows: Vec<Row> = targets.iter().enumerate().filter_map(|(i, t)| t.map(|class| (i, class))).collect();
    args.losses.as_mut_slice::<f32>()?.fill(0.0);
    if let Some(d_weight) = &mut args.d_weight {
        d_weight.as_mut_slice::<f32>()?.fill(0.0);
    }
    dispatch!(float args.hidden.dtype(), OP, T => {
        if let Some(d_hidden) = &mut args.d_hidden {
            d_hidden.as_mut_slice::<T>()?.fill(T::from_f32(0.0));
        }
        // Chunks of about one length: a short last one would take another path through the products, with other bits.
        let chunks = rows.len().div_ceil(rows_at_once(classes)).max(1);
        rows.chunks(rows.len().div_ceil(chunks).max(1)).try_for_each(|rows| chunk::<T>(cpu, &mut args, rows))
    })?;
    let loss = mean_loss(args.losses.as_mut_slice()?, args.divisor);
    args.loss.as_mut_slice()?[0] = loss;
    Ok(())
}

/// A row of the hidden states and its target class.
type Row = (usize, usize);

/// Losses and gradients of some rows.
fn chunk<T: Float>(cpu: &Cpu, args: &mut Args<'_>, rows: &[Row]) -> Result<()> {
    let (simd, n) = (cpu.simd(), rows.len());
    let (classes, width) = args.weight.dims()?;
    let hidden = &mut args.rows.as_mut_slice::<f32>()?[..n * width];
    for ((row, _), wide) in rows.iter().zip(hidden.chunks_exact_mut(width)) {
        T::widen(simd, &args.hidden.as_slice::<T>()?[row * width..][..width], wide);
    }
    let hidden = Mat::row_major(Elems::F32(hidden), n, width)?;
    let logits = &mut args.logits.as_mut_slice::<f32>()?[..n * classes];
    gemm(cpu, &hidden, &*args.weight.to_logits(simd)?, Out::F32(logits), classes, Options::default())?;
    let losses = losses_and_gradients(cpu, rows, logits, args.divisor);
    for ((row, _), loss) in rows.iter().zip(losses) {
        args.losses.as_mut_slice::<f32>()?[*row] = loss;
    }
    let logits = Mat::row_major(Elems::F32(logits), n, classes)?;
    if let Some(d_hidden) = &mut args.d_hidden {
        let d_rows = &mut args.d_rows.as_mut_slice::<f32>()?[..n * width];
        gemm(cpu, &logits, &*args.weight.to_hidden(simd)?, Out::F32(d_rows), width, Options::default())?;
        let d_hidden = d_hidden.as_mut_slice::<T>()?;
        for ((row, _), d_row) in rows.iter().zip(d_rows.chunks_exact(width)) {
            T::narrow(simd, d_row, &mut d_hidden[row * width..][..width]);
        }
    }
    if let Some(d_weight) = &mut args.d_weight {
        let options = Options { accumulate: Accumulate::Add, ..Options::default() };
        let d_weight = Out::F32(d_weight.as_mut_slice()?);
        gemm(cpu, &logits.transposed(), &Dense::new(simd, hidden), d_weight, width, options)?;
    }
    Ok(())
}

/// The loss of each row; its logits become their gradient, (softmax - onehot) / divisor.
fn losses_and_gradients(cpu: &Cpu, rows: &[Row], logits: &mut [f32], divisor: f32) -> Vec<f32> {
    let (simd, classes) = (cpu.simd(), logits.len() / rows.len());
    let mut losses = vec![0.0; rows.len()];
    cpu.chunks2((&mut losses, 1), (logits, classes), |i, loss, logits| {
        let (target, lse) = (rows[i].1, log_sum_exp(simd, logits));
        loss[0] = lse - logits[target];
        logits_to_gradient(simd, logits, target, lse, 1.0 / divisor);
    });
    losses
}

fn logits_cpu(cpu: &Cpu, mut args: Rows<'_>) -> Result<()> {
    let (classes, width) = args.weight.dims()?;
    let mut chosen = vec![0.0; args.rows.len() * width];
    dispatch!(float args.hidden.dtype(), "logits", T => {
        let hidden = args.hidden.as_slice::<T>()?;
        for (row, wide) in args.rows.iter().zip(chosen.chunks_exact_mut(width.max(1))) {
            T::widen(cpu.simd(), &hidden[row * width..][..width], wide);
        }
        Ok::<(), Error>(())
    })?;
    let chosen = Mat::row_major(Elems::F32(&chosen), args.rows.len(), width)?;
    let out = Out::F32(args.out.as_mut_slice()?);
    gemm(cpu, &chosen, &*args.weight.to_logits(cpu.simd())?, out, classes, Options::default())
}
