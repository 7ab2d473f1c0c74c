//! Cross-entropy of logits: the negative log-likelihood of one target a row, softmax included.

use crate::cpu::reduce::{LANES, max_body, sum_body};
use crate::cpu::{Cpu, math, simd};
use crate::cuda::{self, Arg, Cuda, Flag};
use crate::{DType, Element, Error, Float, Result, Tensor, TensorMut, dispatch, kernel, same_device};

/// Arguments of [`CROSS_ENTROPY`]: loss = Σ -log softmax(logits)\[target\] / divisor.
pub struct CrossEntropyArgs<'a> {
    /// [rows, classes], any float dtype, contiguous.
    pub logits: &'a Tensor,
    /// `[rows]`, i32, contiguous: the class, which the kernel checks, or -1 for none.
    pub targets: &'a Tensor,
    /// What the sum of the losses is divided by; positive.
    pub divisor: f32,
    /// A scalar, f32.
    pub loss: TensorMut<'a>,
    /// The logarithm of each row's softmax sum: `[rows]`, f32.
    pub lse: TensorMut<'a>,
}
kernel!(pub CROSS_ENTROPY = "cross_entropy", CrossEntropyArgs, forward_cpu, forward_cuda);

/// Arguments of [`CROSS_ENTROPY_BACKWARD`]: the gradient of [`CROSS_ENTROPY`] by the logits.
pub struct CrossEntropyBackwardArgs<'a> {
    /// The gradient of the loss: one element, f32.
    pub dy: &'a Tensor,
    /// [rows, classes], any float dtype, contiguous.
    pub logits: &'a Tensor,
    /// `[rows]`, i32, contiguous: the class, which the kernel checks, or -1 for none.
    pub targets: &'a Tensor,
    /// As the forward pass gave it: `[rows]`, f32, contiguous.
    pub lse: &'a Tensor,
    /// What the sum of the losses is divided by; positive.
    pub divisor: f32,
    /// [rows, classes], dtype of `logits`.
    pub out: TensorMut<'a>,
}
kernel!(pub CROSS_ENTROPY_BACKWARD = "cross_entropy_backward", CrossEntropyBackwardArgs, backward_cpu, backward_cuda);

/// The sum of -log softmax(`logits`)\[target\] over the rows that have one, over `divisor`: a scalar of f32. `logits`
/// is [rows, classes], `targets` `[rows]` of i32 where -1 means none. The second result is the logarithm of each row's
/// softmax sum, which [`cross_entropy_backward`] needs.
///
/// # Errors
/// When a target is no class, shapes or dtypes do not fit, `divisor` is not positive, or devices differ.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, divisor: f32) -> Result<(Tensor, Tensor)> {
    let device = same_device("cross_entropy", &[logits, targets])?;
    let (rows, _) = logits.dims2("cross_entropy")?;
    check_targets("cross_entropy", targets, rows, divisor)?;
    let (mut loss, mut lse) = (device.alloc(&[], DType::F32)?, device.alloc(&[rows], DType::F32)?);
    let (logits, targets) = (logits.contiguous()?, targets.contiguous()?);
    let args = CrossEntropyArgs { logits: &logits, targets: &targets, divisor, loss: loss.view(), lse: lse.view() };
    device.run(&CROSS_ENTROPY, args)?;
    Ok((loss.finish(), lse.finish()))
}

/// The gradient of [`cross_entropy`] with respect to the logits; `dy` is that of the loss, a scalar of f32.
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_backward(
    dy: &Tensor,
    logits: &Tensor,
    targets: &Tensor,
    lse: &Tensor,
    divisor: f32,
) -> Result<Tensor> {
    let device = same_device("cross_entropy_backward", &[dy, logits, targets, lse])?;
    let (rows, _) = logits.dims2("cross_entropy_backward")?;
    check_targets("cross_entropy_backward", targets, rows, divisor)?;
    if dy.len() != 1 || *lse.shape() != [rows] {
        let shapes = format!("gradient {:?}, lse {:?} of logits {:?}", dy.shape(), lse.shape(), logits.shape());
        return Err(Error::shape("cross_entropy_backward", shapes));
    }
    let mut out = device.alloc(logits.shape(), logits.dtype())?;
    let (logits, targets) = (logits.contiguous()?, targets.contiguous()?);
    let (dy, lse) = (dy.to_dtype(DType::F32)?, lse.contiguous()?);
    let args =
        CrossEntropyBackwardArgs { dy: &dy, logits: &logits, targets: &targets, lse: &lse, divisor, out: out.view() };
    device.run(&CROSS_ENTROPY_BACKWARD, args)?;
    Ok(out.finish())
}

fn check_targets(op: &str, targets: &Tensor, rows: usize, divisor: f32) -> Result<()> {
    if *targets.shape() != [rows] {
        return Err(Error::shape(op, format!("targets {:?} for {rows} rows", targets.shape())));
    }
    if targets.dtype() != DType::I32 {
        return Err(Error::dtype(op, format!("targets of {}, not i32", targets.dtype())));
    }
    check_divisor(op, divisor)
}

pub(super) fn check_divisor(op: &str, divisor: f32) -> Result<()> {
    match divisor > 0.0 && divisor.is_finite() {
        true => Ok(()),
        false => Err(Error::invalid(format!("{op}: divisor {divisor}"))),
    }
}

/// Each target as a class, `None` where it is -1.
fn classes_of(op: &str, targets: &[i32], classes: usize) -> Result<Vec<Option<usize>>> {
    let class = |(row, &target): (usize, &i32)| match usize::try_from(target) {
        Ok(class) if class < classes => Ok(Some(class)),
        Err(_) if target == -1 => Ok(None),
        _ => Err(stray(op, target, row, classes)),
    };
    targets.iter().enumerate().map(class).collect()
}

fn stray(op: &str, target: i32, row: usize, classes: usize) -> Error {
    Error::invalid(format!("{op}: target {target} of row {row} is none of {classes} classes"))
}

/// The losses of all rows added up in f64, over the divisor.
pub(super) fn mean_loss(losses: &[f32], divisor: f32) -> f32 {
    (losses.iter().map(|&l| f64::from(l)).sum::<f64>() / f64::from(divisor)) as f32
}

fn forward_cpu(cpu: &Cpu, mut args: CrossEntropyArgs<'_>) -> Result<()> {
    let (_, classes) = args.logits.dims2("cross_entropy")?;
    let targets = classes_of("cross_entropy", args.targets.as_slice()?, classes)?;
    dispatch!(float args.logits.dtype(), "cross_entropy", T => {
        let logits = args.logits.as_slice::<T>()?;
        let lse = args.lse.as_mut_slice::<f32>()?;
        row_lse(cpu, logits, classes, lse);
        let loss = |(row, target): (usize, &Option<usize>)| {
            target.map_or(0.0, |class| lse[row] - logits[row * classes + class].to_f32())
        };
        let losses: Vec<f32> = targets.iter().enumerate().map(loss).collect();
        args.loss.as_mut_slice()?[0] = mean_loss(&losses, args.divisor);
        Ok(())
    })
}

fn row_lse<T: Float>(cpu: &Cpu, logits: &[T], classes: usize, lse: &mut [f32]) {
    cpu.chunks(lse, 1, |row, lse| {
        let mut wide = Vec::new();
        lse[0] = log_sum_exp(cpu.simd(), T::as_f32(cpu.simd(), &logits[row * classes..][..classes], &mut wide));
    });
}

fn backward_cpu(cpu: &Cpu, mut args: CrossEntropyBackwardArgs<'_>) -> Result<()> {
    let (_, classes) = args.logits.dims2("cross_entropy_backward")?;
    let targets = classes_of("cross_entropy_backward", args.targets.as_slice()?, classes)?;
    let scale = args.dy.as_slice::<f32>()?[0] / args.divisor;
    let lse = args.lse.as_slice::<f32>()?;
    dispatch!(float args.logits.dtype(), "cross_entropy_backward", T => {
        row_gradients::<T>(cpu, args.logits.as_slice()?, &targets, lse, classes, scale, args.out.as_mut_slice()?);
        Ok(())
    })
}

fn row_gradients<T: Float>(
    cpu: &Cpu,
    logits: &[T],
    targets: &[Option<usize>],
    lse: &[f32],
    classes: usize,
    scale: f32,
    out: &mut [T],
) {
    let simd = cpu.simd();
    cpu.chunks(out, classes, |row, out| {
        let (mut xs, mut ys) = (Vec::new(), Vec::new());
        let x = T::as_f32(simd, &logits[row * classes..][..classes], &mut xs);
        T::write_f32(simd, out, &mut ys, |y| match targets[row] {
            None => y.fill(0.0),
            Some(target) => {
                y.copy_from_slice(x);
                logits_to_gradient(simd, y, target, lse[row], scale);
            }
        });
    });
}

fn forward_cuda(cuda: &Cuda, args: CrossEntropyArgs<'_>) -> Result<()> {
    let CrossEntropyArgs { logits, targets, divisor, loss, lse } = args;
    let (rows, classes) = logits.dims2("cross_entropy")?;
    let (flag, mut scratch) = (Flag::max(logits.device())?, logits.device().alloc(&[rows], DType::F32)?);
    let losses = cuda::written(&scratch.view())?;
    let args = [
        cuda::read(logits)?,
        cuda::read(targets)?,
        cuda::written(&lse)?,
        losses,
        flag.arg(),
        cuda::count(rows),
        cuda::number(classes)?,
    ];
    cuda::over_rows(cuda, "cross_entropy", &format!("cross_entropy_{}", logits.dtype()), rows, &args)?;
    let args = [losses, Arg::F32(divisor), cuda::written(&loss)?, cuda::count(rows)];
    cuda::start(cuda, "cross_entropy", "cross_entropy_loss", 1, cuda::WARP, &args)?;
    check_stray(flag, "cross_entropy", classes);
    Ok(())
}

fn backward_cuda(cuda: &Cuda, args: CrossEntropyBackwardArgs<'_>) -> Result<()> {
    let CrossEntropyBackwardArgs { dy, logits, targets, lse, divisor, out } = args;
    let (rows, classes) = logits.dims2("cross_entropy_backward")?;
    let flag = Flag::max(logits.device())?;
    let args = [
        cuda::read(dy)?,
        cuda::read(logits)?,
        cuda::read(targets)?,
        cuda::read(lse)?,
        Arg::F32(divisor),
        cuda::written(&out)?,
        flag.arg(),
        cuda::count(rows),
        cuda::number(classes)?,
    ];
    let entry = format!("cross_entropy_backward_{}", logits.dtype());
    cuda::over_rows(cuda, "cross_entropy", &entry, rows, &args)?;
    check_stray(flag, "cross_entropy_backward", classes);
    Ok(())
}

/// The kernels leave the first row whose target is no class.
fn check_stray(flag: Flag, op: &'static str, classes: usize) {
    flag.check(move |word| {
        let (row, target) = cuda::first_at_fault(word);
        stray(op, target, row, classes)
    });
}

simd! {
    /// log Σ exp(x), stable: -inf of an empty row or one of -inf alone, NaN where there is one.
    pub(super) fn log_sum_exp(x: &[f32]) -> f32 {
        let max = max_body(x);
        // Where every term is 0 or one is infinite, x - max would be NaN.
        let shift = if max.is_infinite() { 0.0 } else { max };
        let mut sums = [0.0f32; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                sums[i] += math::exp(chunk[i] - shift);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(rest) {
            *sum += math::exp(x - shift);
        }
        shift + math::log(sum_body(&sums))
    }

    /// From a row of logits to its gradient: (softmax(x) - onehot(target)) · scale.
    pub(super) fn logits_to_gradient(x: &mut [f32], target: usize, lse: f32, scale: f32) {
        for x in x.iter_mut() {
            *x = math::exp(*x - lse) * scale;
        }
        x[target] -= scale;
    }
}
