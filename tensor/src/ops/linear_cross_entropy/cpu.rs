//! The loss over an output projection on the host.

use super::{LinearCrossEntropyArgs, LogitsArgs, OP, Room, Term, TermGradientsMut, check_terms, chunks};
use crate::cpu::gemm::{Accumulate, Dense, Elems, Mat, Options, Out, gemm};
use crate::cpu::{Cpu, Simd};
use crate::ops::cross_entropy::{log_sum_exp, logits_to_gradient, mean_loss};
use crate::{DType, Element as _, Error, Result, Tensor, TensorMut, dispatch};

pub(super) fn linear_cross_entropy(cpu: &Cpu, mut args: LinearCrossEntropyArgs<'_>) -> Result<()> {
    let (_, classes) = check_terms(args.terms)?;
    args.losses.as_mut_slice::<f32>()?.fill(0.0);
    for gradients in &mut args.gradients {
        // Rows without a target have none, and a weight's is stored by the first chunk, if there is one.
        let weight = gradients.weight.as_mut().filter(|_| args.targets.count() == 0);
        for gradient in gradients.x.as_mut().into_iter().chain(weight) {
            dispatch!(float gradient.dtype(), OP, T => {
                gradient.as_mut_slice::<T>()?.fill(T::from_f32(0.0));
                Ok(())
            })?;
        }
    }
    let mut room = args.room.take().ok_or_else(|| Error::invalid(format!("{OP}: no room to work in")))?;
    let targets = args.targets.list();
    for rows in chunks(args.targets, classes) {
        let onto = if rows.start == 0 { Accumulate::Store } else { Accumulate::Add };
        chunk(cpu, &mut args, &mut room, &targets[rows], onto)?;
    }
    let loss = mean_loss(args.losses.as_mut_slice()?, args.divisor);
    args.loss.as_mut_slice()?[0] = loss;
    Ok(())
}

/// A row of the hidden states and its target class.
type Row = (usize, usize);

/// Losses and gradients of some rows; `onto` says what becomes of the weights' gradients so far.
fn chunk(
    cpu: &Cpu,
    args: &mut LinearCrossEntropyArgs<'_>,
    room: &mut Room<'_>,
    rows: &[Row],
    onto: Accumulate,
) -> Result<()> {
    let (simd, n, classes) = (cpu.simd(), rows.len(), room.logits.shape()[1]);
    let logits = &mut room.logits.as_mut_slice::<f32>()?[..n * classes];
    for (i, (term, [x, _])) in args.terms.iter().zip(&mut room.terms).enumerate() {
        let (_, width) = term.x.dims2(OP)?;
        let x = &mut x.as_mut_slice::<f32>()?[..n * width];
        gather(simd, term.x, rows, x)?;
        let accumulate = if i == 0 { Accumulate::Store } else { Accumulate::Add };
        let options = Options { accumulate, ..rounding(term) };
        let x = Mat::row_major(Elems::F32(x), n, width)?;
        gemm(cpu, &x, &*term.weight.to_logits(simd)?, Out::F32(logits), classes, options)?;
    }
    let losses = losses_and_gradients(cpu, rows, logits, args.divisor);
    for ((row, _), loss) in rows.iter().zip(losses) {
        args.losses.as_mut_slice::<f32>()?[*row] = loss;
    }
    let d_logits = Mat::row_major(Elems::F32(logits), n, classes)?;
    let wanted = args.gradients.iter_mut().zip(&mut room.terms);
    let mut each = args.terms.iter().zip(wanted);
    each.try_for_each(|(term, (out, room))| gradients(cpu, term, out, room, &d_logits, rows, onto))
}

/// Beside bf16 hidden states both factors of a product are rounded to bf16, as in every product of a model: the weight, and on the way
/// back the gradients of the logits. (Those of the weight are sums in f32 of f32.)
fn rounding(term: &Term<'_>) -> Options {
    Options { round_bf16: term.x.dtype() == DType::BF16 && !term.weight.is_f16(), ..Options::default() }
}

/// With logits = x Wᵀ: dx = d_logits W, dW += d_logitsᵀ x.
fn gradients(
    cpu: &Cpu,
    term: &Term<'_>,
    out: &mut TermGradientsMut<'_>,
    [x, d_x]: &mut [TensorMut<'_>; 2],
    d_logits: &Mat<'_>,
    rows: &[Row],
    onto: Accumulate,
) -> Result<()> {
    let (simd, n) = (cpu.simd(), rows.len());
    let (_, width) = term.x.dims2(OP)?;
    if let Some(out) = &mut out.x {
        let d_x = &mut d_x.as_mut_slice::<f32>()?[..n * width];
        gemm(cpu, d_logits, &*term.weight.to_hidden(simd)?, Out::F32(d_x), width, rounding(term))?;
        scatter(simd, d_x, rows, out)?;
    }
    if let Some(out) = &mut out.weight {
        let x = &x.as_mut_slice::<f32>()?[..n * width];
        let x = Dense::new(simd, Mat::row_major(Elems::F32(x), n, width)?);
        let options = Options { accumulate: onto, ..Options::default() };
        gemm(cpu, &d_logits.transposed(), &x, Out::F32(out.as_mut_slice()?), width, options)?;
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

pub(super) fn logits(cpu: &Cpu, mut args: LogitsArgs<'_>) -> Result<()> {
    let (classes, width) = args.weight.dims()?;
    let rows: Vec<Row> = args.rows.iter().map(|&row| (row, 0)).collect();
    let mut chosen = vec![0.0; rows.len() * width];
    gather(cpu.simd(), args.hidden, &rows, &mut chosen)?;
    let chosen = Mat::row_major(Elems::F32(&chosen), args.rows.len(), width)?;
    let out = Out::F32(args.out.as_mut_slice()?);
    gemm(cpu, &chosen, &*args.weight.to_logits(cpu.simd())?, out, classes, Options::default())
}
