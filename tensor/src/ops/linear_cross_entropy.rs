//! Output projection and cross-entropy in one: the logits hidden · weightᵀ exist for one chunk of rows at a time, and
//! only for rows that have a target. Gradients are made in the same pass, while the logits are there.

mod cpu;
mod cuda;

use super::cross_entropy::check_divisor;
use super::matmul::{even_chunks, product_into};
use crate::cpu::Simd;
use crate::cpu::gemm::{Accumulate, Dense, Options, Panels};
use crate::targets::Targets;
use crate::{DType, Device, Error, Output, Result, Tensor, TensorMut, kernel, same_device};
use std::ops::Range;

const OP: &str = "linear_cross_entropy";

/// Target rows whose logits exist at once: the weight is packed once for each such chunk (read, on a GPU), so few rows cost
/// time and many cost memory, on top of all that the backward pass needs. At most 64 MiB of logits on a host and 128 MiB on a
/// GPU, unless even 64 rows take more.
fn rows_at_once(classes: usize, device: &Device) -> usize {
    let (logits, most): (usize, usize) = if device.as_cuda().is_ok() { (1 << 25, 256) } else { (1 << 24, 192) };
    (logits / classes / 32 * 32).clamp(64, most)
}

/// The targets cut into chunks of about one length: a short last one would take another path through the products, with
/// other bits.
fn chunks(targets: &Targets, classes: usize) -> impl Iterator<Item = Range<usize>> {
    even_chunks(targets.count(), rows_at_once(classes, targets.device()))
}

/// Arguments of [`LINEAR_CROSS_ENTROPY`]: loss = Σ -log softmax(Σ x · weightᵀ over the terms)\[target\] / divisor, and
/// its gradients.
pub struct LinearCrossEntropyArgs<'a> {
    /// The products whose sum is the logits; each x is contiguous.
    pub terms: &'a [Term<'a>],
    /// The gradients of each term.
    pub gradients: Vec<TermGradientsMut<'a>>,
    /// The classes to be predicted, all of them below the number of classes.
    pub targets: &'a Targets,
    /// What the sum of the losses is divided by; positive.
    pub divisor: f32,
    /// Where a host works; kernels of a CUDA device make their own room.
    pub room: Option<Room<'a>>,
    /// A scalar, f32.
    pub loss: TensorMut<'a>,
    /// `[tokens]`, f32: 0 where there is no target.
    pub losses: TensorMut<'a>,
}

/// The wanted gradients of a [`Term`].
pub struct TermGradientsMut<'a> {
    /// The gradient by x, where it is wanted: shape and dtype of x.
    pub x: Option<TensorMut<'a>>,
    /// The gradient by the weight, where it is wanted: [classes, d], f32.
    pub weight: Option<TensorMut<'a>>,
}

/// Room for one chunk of rows, f32.
pub struct Room<'a> {
    /// [rows, classes]
    pub logits: TensorMut<'a>,
    /// For each term rows of its x and their gradient: [rows, d].
    pub terms: Vec<[TensorMut<'a>; 2]>,
}
kernel!(pub LINEAR_CROSS_ENTROPY = "linear_cross_entropy", LinearCrossEntropyArgs, cpu::linear_cross_entropy, cuda::linear_cross_entropy);

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
kernel!(pub LOGITS = "logits", LogitsArgs, cpu::logits, cuda::logits);

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
    /// Whether its elements are f16, which are not rounded to bf16 beside bf16 hidden states, as all others are.
    fn is_f16(&self) -> bool;
    /// out = x · weightᵀ, or out += that, with x [rows, d] and out [rows, classes], by kernels of their device.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    fn logits_into(&self, x: &Tensor, out: TensorMut<'_>, accumulate: Accumulate) -> Result<()>;
    /// out = g · weight, with the gradients g [rows, classes] of logits and out [rows, d], by kernels of their device.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    fn hidden_into(&self, g: &Tensor, out: TensorMut<'_>) -> Result<()>;
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
    fn is_f16(&self) -> bool {
        self.dtype() == DType::F16
    }
    fn logits_into(&self, x: &Tensor, out: TensorMut<'_>, accumulate: Accumulate) -> Result<()> {
        product_into(x, &self.transpose(0, 1)?, out, Options { accumulate, ..rounded(x, self.dtype()) })
    }
    fn hidden_into(&self, g: &Tensor, out: TensorMut<'_>) -> Result<()> {
        product_into(g, self, out, rounded(g, self.dtype()))
    }
}

/// Beside bf16 a matrix of f32 is rounded to bf16, as in every product.
fn rounded(x: &Tensor, weight: DType) -> Options {
    Options { round_bf16: x.dtype() == DType::BF16 && weight != DType::F16, ..Options::default() }
}

/// The sum of -log softmax(logits)\[target\] over the rows that have a target, over `divisor`, where the logits are the
/// sum of the terms' products; and the gradients that are wanted, for a gradient of 1 of the loss.
///
/// # Errors
/// When a target is no class, shapes or dtypes do not fit, `divisor` is not positive, devices differ, or there is no
/// term.
pub fn linear_cross_entropy(terms: &[Term<'_>], targets: &Targets, divisor: f32) -> Result<LinearCrossEntropy> {
    let (tokens, classes) = check_terms(terms)?;
    let device = same_device(OP, &terms.iter().map(|term| term.x).collect::<Vec<_>>())?;
    if targets.device() != device {
        return Err(Error::device(OP, format!("hidden states on {device:?}, targets on {:?}", targets.device())));
    }
    if targets.rows() != tokens {
        return Err(Error::shape(OP, format!("targets of {} rows for {tokens} rows", targets.rows())));
    }
    check_divisor(OP, divisor)?;
    targets.check(OP, classes)?;
    let xs: Vec<Tensor> = terms.iter().map(|term| term.x.contiguous()).collect::<Result<_>>()?;
    let terms: Vec<Term<'_>> = terms.iter().zip(&xs).map(|(term, x)| Term { x, ..*term }).collect();
    let mut gradients: Vec<Gradients> =
        terms.iter().map(|term| Gradients::new(term, classes)).collect::<Result<_>>()?;
    let (mut loss, mut losses) = (device.alloc(&[], DType::F32)?, device.alloc(&[tokens], DType::F32)?);
    let mut room = match device.as_cuda() {
        Ok(_) => None,
        Err(_) => Some(HostRoom::new(&terms, rows_at_once(classes, device).min(tokens), classes)?),
    };
    let args = LinearCrossEntropyArgs {
        terms: &terms,
        gradients: gradients.iter_mut().map(Gradients::view).collect(),
        targets,
        divisor,
        room: room.as_mut().map(HostRoom::view),
        loss: loss.view(),
        losses: losses.view(),
    };
    device.run(&LINEAR_CROSS_ENTROPY, args)?;
    let finish = |g: Gradients| TermGradients { x: g.x.map(Output::finish), weight: g.weight.map(Output::finish) };
    Ok(LinearCrossEntropy {
        loss: loss.finish(),
        losses: losses.finish(),
        gradients: gradients.into_iter().map(finish).collect(),
    })
}

/// Owns what a [`TermGradientsMut`] shows.
struct Gradients {
    x: Option<Output>,
    weight: Option<Output>,
}

impl Gradients {
    fn new(term: &Term<'_>, classes: usize) -> Result<Self> {
        let (x, device) = (term.x, term.x.device());
        let (_, width) = x.dims2(OP)?;
        Ok(Gradients {
            x: term.wants.x.then(|| device.alloc(x.shape(), x.dtype())).transpose()?,
            weight: term.wants.weight.then(|| device.alloc(&[classes, width], DType::F32)).transpose()?,
        })
    }

    fn view(&mut self) -> TermGradientsMut<'_> {
        TermGradientsMut { x: self.x.as_mut().map(Output::view), weight: self.weight.as_mut().map(Output::view) }
    }
}

/// Owns what a [`Room`] shows.
struct HostRoom {
    logits: Output,
    terms: Vec<[Output; 2]>,
}

impl HostRoom {
    fn new(terms: &[Term<'_>], rows: usize, classes: usize) -> Result<Self> {
        let alloc = |term: &Term<'_>, width| term.x.device().alloc(&[rows, width], DType::F32);
        let pair = |term: &Term<'_>| {
            let (_, width) = term.x.dims2(OP)?;
            Ok([alloc(term, width)?, alloc(term, width)?])
        };
        Ok(HostRoom { logits: alloc(&terms[0], classes)?, terms: terms.iter().map(pair).collect::<Result<_>>()? })
    }

    fn view(&mut self) -> Room<'_> {
        Room {
            logits: self.logits.view(),
            terms: self.terms.iter_mut().map(|pair| pair.each_mut().map(Output::view)).collect(),
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
pub fn token_losses(hidden: &Tensor, weight: &dyn Projection, targets: &Targets) -> Result<Tensor> {
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
