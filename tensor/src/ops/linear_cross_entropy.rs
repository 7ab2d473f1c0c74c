//! Output projection and cross-entropy in one: the logits hidden · weightᵀ exist for one chunk of rows at a time, and
//! only for rows that have a target. Gradients are made in the same pass, while the logits are there.

use super::cross_entropy::{check_targets, classes_of, log_sum_exp, logits_to_gradient, mean_loss};
use crate::cpu::gemm::{Accumulate, Dense, Elems, Mat, Options, Out, Panels, gemm};
use crate::cpu::{Cpu, Simd};
use crate::{DType, Element as _, Error, Float as _, Output, Result, Tensor, TensorMut, dispatch, kernel, same_device};

const OP: &str = "linear_cross_entropy";

/// Target rows whose logits exist at once: the weight is packed once for each such chunk, so few rows cost time and
/// many cost memory. At most 64 MiB of logits unless even 64 rows take more.
fn rows_at_once(classes: usize) -> usize {
    ((1 << 24) / classes / 32 * 32).clamp(64, 256)
}

/// Arguments of [`LINEAR_CROSS_ENTROPY`]: loss = Σ -log softmax(Σ x · weightᵀ over the terms)\[target\] / divisor, and
/// its gradients.
pub struct LinearCrossEntropyArgs<'a> {
    /// The products whose sum is the logits; each x is contiguous.
    pub terms: &'a [Term<'a>],
    /// Room and gradients of each term.
    pub rooms: Vec<TermRoom<'a>>,
    /// `[tokens]`, i32, contiguous: the class, which the kernel checks, or -1 for none.
    pub targets: &'a Tensor,
    /// What the sum of the losses is divided by; positive.
    pub divisor: f32,
    /// Room for the logits of one chunk of rows: [rows, classes], f32.
    pub logits: TensorMut<'a>,
    /// A scalar, f32.
    pub loss: TensorMut<'a>,
    /// `[tokens]`, f32: 0 where there is no target.
    pub losses: TensorMut<'a>,
}

/// Room for one chunk of rows of a [`Term`], and its wanted gradients.
pub struct TermRoom<'a> {
    /// Rows of x: [rows, d], f32.
    pub rows: TensorMut<'a>,
    /// Their gradient: [rows, d], f32.
    pub d_rows: TensorMut<'a>,
    /// The gradient by x, where it is wanted: shape and dtype of x.
    pub d_x: Option<TensorMut<'a>>,
    /// The gradient by the weight, where it is wanted: [classes, d], f32.
    pub d_weight: Option<TensorMut<'a>>,
}
kernel!(pub LINEAR_CROSS_ENTROPY = "linear_cross_entropy", LinearCrossEntropyArgs, linear_cross_entropy_cpu);

/// Arguments of [`LOGITS`]: out = hidden · weightᵀ for chosen rows.
pub struct LogitsArgs<'a> {
    /// [tokens, d], any float dtype, contiguous.
    pub hidden: &'a Tensor,
    /// [classes, d], in any form.
    pub weight: &'a dyn Projection,
    /// Rows of `hidden`.
    pub rows: &'a [usize],
    /// [rows, classes], f32.
    pub out: TensorMut<'a>,
}
kernel!(pub LOGITS = "logits", LogitsArgs, logits_cpu);

/// One product of the logits, x · weightᵀ: that of the hidden states and the output projection, or that of a low-rank
/// adapter beside it.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// [tokens, d]
    pub x: &'a Tensor,
    /// [classes, d]
    pub weight: &'a dyn Projection,
    /// Which gradients to make.
    pub wants: Wants,
}

/// Which gradients of a [`Term`] are made beside the loss.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Wants {
    /// That of x.
    pub x: bool,
    /// That of the weight.
    pub weight: bool,
}

/// What [`linear_cross_entropy`] gives.
pub struct LinearCrossEntropy {
    /// The sum of the losses over the divisor, a scalar of f32.
    pub loss: Tensor,
    /// -log p(target) of each row, f32; 0 where there is no target.
    pub losses: Tensor,
    /// The gradients of `loss`, term by term.
    pub gradients: Vec<TermGradients>,
}

/// The gradients of a [`Term`].
pub struct TermGradients {
    /// With respect to x, in its dtype.
    pub x: Option<Tensor>,
    /// With respect to the weight, in f32.
    pub weight: Option<Tensor>,
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

/// The sum of -log softmax(logits)\[target\] over the rows that have a target, over `divisor`, where the logits are the
/// sum of the terms' products; and the gradients that are wanted, for a gradient of 1 of the loss. `targets` is
/// `[tokens]` of i32 where -1 means none.
///
/// # Errors
/// When a target is no class, shapes or dtypes do not fit, `divisor` is not positive, devices differ, or there is no
/// term.
pub fn linear_cross_entropy(terms: &[Term<'_>], targets: &Tensor, divisor: f32) -> Result<LinearCrossEntropy> {
    let all: Vec<&Tensor> = terms.iter().map(|term| term.x).chain([targets]).collect();
    let device = same_device(OP, &all)?;
    let (tokens, classes) = check_terms(terms)?;
    check_targets(OP, targets, tokens, divisor)?;
    let targets = targets.contiguous()?;
    let xs: Vec<Tensor> = terms.iter().map(|term| term.x.contiguous()).collect::<Result<_>>()?;
    let terms: Vec<Term<'_>> = terms.iter().zip(&xs).map(|(term, x)| Term { x, ..*term }).collect();
    let held = rows_at_once(classes).min(tokens);
    let mut logits = device.alloc(&[held, classes], DType::F32)?;
    let (mut loss, mut losses) = (device.alloc(&[], DType::F32)?, device.alloc(&[tokens], DType::F32)?);
    let mut outputs: Vec<Outputs> =
        terms.iter().map(|term| Outputs::new(term, held, classes)).collect::<Result<_>>()?;
    let args = LinearCrossEntropyArgs {
        terms: &terms,
        rooms: outputs.iter_mut().map(Outputs::view).collect(),
        targets: &targets,
        divisor,
        logits: logits.view(),
        loss: loss.view(),
        losses: losses.view(),
    };
    device.run(&LINEAR_CROSS_ENTROPY, args)?;
    let gradients = |o: Outputs| TermGradients { x: o.d_x.map(Output::finish), weight: o.d_weight.map(Output::finish) };
    Ok(LinearCrossEntropy {
        loss: loss.finish(),
        losses: losses.finish(),
        gradients: outputs.into_iter().map(gradients).collect(),
    })
}

/// Owns what a [`TermRoom`] shows.
struct Outputs {
    rows: Output,
    d_rows: Output,
    d_x: Option<Output>,
    d_weight: Option<Output>,
}

impl Outputs {
    fn new(term: &Term<'_>, held: usize, classes: usize) -> Result<Self> {
        let (x, device) = (term.x, term.x.device());
        let (_, width) = x.dims2(OP)?;
        Ok(Outputs {
            rows: device.alloc(&[held, width], DType::F32)?,
            d_rows: device.alloc(&[held, width], DType::F32)?,
            d_x: term.wants.x.then(|| device.alloc(x.shape(), x.dtype())).transpose()?,
            d_weight: term.wants.weight.then(|| device.alloc(&[classes, width], DType::F32)).transpose()?,
        })
    }

    fn view(&mut self) -> TermRoom<'_> {
        TermRoom {
            rows: self.rows.view(),
            d_rows: self.d_rows.view(),
            d_x: self.d_x.as_mut().map(Output::view),
            d_weight: self.d_weight.as_mut().map(Output::view),
        }
    }
}

/// The tokens and classes that all terms agree on.
fn check_terms(terms: &[Term<'_>]) -> Result<(usize, usize)> {
    let Some((first, more)) = terms.split_first() else {
        return Err(Error::invalid(format!("{OP}: no term")));
    };
    let (tokens, _) = first.x.dims2(OP)?;
    let (classes, _) = check_widths(first.x, first.weight)?;
    for term in more {
        let found = (term.x.dims2(OP)?.0, check_widths(term.x, term.weight)?.0);
        if found != (tokens, classes) {
            return Err(Error::shape(OP, format!("terms of [tokens, classes] {:?} and {found:?}", (tokens, classes))));
        }
    }
    Ok((tokens, classes))
}

/// -log p(target) of every row, f32, 0 where the target is -1; see [`linear_cross_entropy`].
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn token_losses(hidden: &Tensor, weight: &dyn Projection, targets: &Tensor) -> Result<Tensor> {
    let term = Term { x: hidden, weight, wants: Wants::default() };
    Ok(linear_cross_entropy(&[term], targets, 1.0)?.losses)
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
    device.run(&LOGITS, LogitsArgs { hidden: &hidden.contiguous()?, weight, rows, out: out.view() })?;
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

fn linear_cross_entropy_cpu(cpu: &Cpu, mut args: LinearCrossEntropyArgs<'_>) -> Result<()> {
    let (_, classes) = check_terms(args.terms)?;
    let targets = classes_of(OP, args.targets.as_slice()?, classes)?;
    let rows: Vec<Row> = targets.iter().enumerate().filter_map(|(i, t)| t.map(|class| (i, class))).collect();
    args.losses.as_mut_slice::<f32>()?.fill(0.0);
    for room in &mut args.rooms {
        for gradient in [&mut room.d_x, &mut room.d_weight].into_iter().flatten() {
            dispatch!(float gradient.dtype(), OP, T => {
                gradient.as_mut_slice::<T>()?.fill(T::from_f32(0.0));
                Ok(())
            })?;
        }
    }
    // Chunks of about one length: a short last one would take another path through the products, with other bits.
    let chunks = rows.len().div_ceil(rows_at_once(classes)).max(1);
    rows.chunks(rows.len().div_ceil(chunks).max(1)).try_for_each(|rows| chunk(cpu, &mut args, rows))?;
    let loss = mean_loss(args.losses.as_mut_slice()?, args.divisor);
    args.loss.as_mut_slice()?[0] = loss;
    Ok(())
}

/// A row of the hidden states and its target class.
type Row = (usize, usize);

/// Losses and gradients of some rows.
fn chunk(cpu: &Cpu, args: &mut LinearCrossEntropyArgs<'_>, rows: &[Row]) -> Result<()> {
    let (simd, n, classes) = (cpu.simd(), rows.len(), args.logits.shape()[1]);
    let logits = &mut args.logits.as_mut_slice::<f32>()?[..n * classes];
    for (i, (term, room)) in args.terms.iter().zip(&mut args.rooms).enumerate() {
        let (_, width) = term.x.dims2(OP)?;
        let x = &mut room.rows.as_mut_slice::<f32>()?[..n * width];
        gather(simd, term.x, rows, x)?;
        let options =
            Options { accumulate: if i == 0 { Accumulate::Store } else { Accumulate::Add }, ..Options::default() };
        let x = Mat::row_major(Elems::F32(x), n, width)?;
        gemm(cpu, &x, &*term.weight.to_logits(simd)?, Out::F32(logits), classes, options)?;
    }
    let losses = losses_and_gradients(cpu, rows, logits, args.divisor);
    for ((row, _), loss) in rows.iter().zip(losses) {
        args.losses.as_mut_slice::<f32>()?[*row] = loss;
    }
    let d_logits = Mat::row_major(Elems::F32(logits), n, classes)?;
    args.terms.iter().zip(&mut args.rooms).try_for_each(|(term, room)| gradients(cpu, term, room, &d_logits, rows))
}

/// With logits = x Wᵀ: dx = d_logits W, dW += d_logitsᵀ x.
fn gradients(cpu: &Cpu, term: &Term<'_>, room: &mut TermRoom<'_>, d_logits: &Mat<'_>, rows: &[Row]) -> Result<()> {
    let (simd, n) = (cpu.simd(), rows.len());
    let (_, width) = term.x.dims2(OP)?;
    if let Some(d_x) = &mut room.d_x {
        let d_rows = &mut room.d_rows.as_mut_slice::<f32>()?[..n * width];
        gemm(cpu, d_logits, &*term.weight.to_hidden(simd)?, Out::F32(d_rows), width, Options::default())?;
        scatter(simd, d_rows, rows, d_x)?;
    }
    if let Some(d_weight) = &mut room.d_weight {
        let x = &room.rows.as_mut_slice::<f32>()?[..n * width];
        let x = Dense::new(simd, Mat::row_major(Elems::F32(x), n, width)?);
        let options = Options { accumulate: Accumulate::Add, ..Options::default() };
        gemm(cpu, &d_logits.transposed(), &x, Out::F32(d_weight.as_mut_slice()?), width, options)?;
    }
    Ok(())
}

/// The chosen rows of `x`, one after another, in f32.
fn gather(simd: Simd, x: &Tensor, rows: &[Row], out: &mut [f32]) -> Result<()> {
    let (_, width) = x.dims2(OP)?;
    dispatch!(float x.dtype(), OP, T => {
        let x = x.as_slice::<T>()?;
        for ((row, _), wide) in rows.iter().zip(out.chunks_exact_mut(width.max(1))) {
            T::widen(simd, &x[row * width..][..width], wide);
        }
        Ok(())
    })
}

/// Rows into their places in `out`.
fn scatter(simd: Simd, from: &[f32], rows: &[Row], out: &mut TensorMut<'_>) -> Result<()> {
    let width = out.shape()[1];
    dispatch!(float out.dtype(), OP, T => {
        let out = out.as_mut_slice::<T>()?;
        for ((row, _), wide) in rows.iter().zip(from.chunks_exact(width.max(1))) {
            T::narrow(simd, wide, &mut out[row * width..][..width]);
        }
        Ok(())
    })
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

fn logits_cpu(cpu: &Cpu, mut args: LogitsArgs<'_>) -> Result<()> {
    let (classes, width) = args.weight.dims()?;
    let rows: Vec<Row> = args.rows.iter().map(|&row| (row, 0)).collect();
    let mut chosen = vec![0.0; rows.len() * width];
    gather(cpu.simd(), args.hidden, &rows, &mut chosen)?;
    let chosen = Mat::row_major(Elems::F32(&chosen), args.rows.len(), width)?;
    let out = Out::F32(args.out.as_mut_slice()?);
    gemm(cpu, &chosen, &*args.weight.to_logits(cpu.simd())?, out, classes, Options::default())
}
