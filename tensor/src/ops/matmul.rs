//! Products of matrices and of batches of matrices.

use crate::cpu::Cpu;
use crate::cpu::gemm::{self, Dense, Elems, Mat, Options, Out};
use crate::{DType, Error, Float, Result, Tensor, TensorMut, broadcast_shape, kernel, same_device};

/// Arguments of [`MATMUL`]: out = a b or out += a b.
pub struct MatmulArgs<'a> {
    /// [batch.., m, k], any float dtype; any layout whose last two strides are not negative.
    pub a: &'a Tensor,
    /// [batch.., k, n], with the batch of `a` (broadcast: strides of 0), float dtype and layout as for `a`.
    pub b: &'a Tensor,
    /// [batch.., m, n], any float dtype; read only to be added to.
    pub out: TensorMut<'a>,
    /// Overwrite `out` or add to it.
    pub accumulate: gemm::Accumulate,
}
kernel!(pub MATMUL = "matmul", MatmulArgs, matmul_cpu);

/// Products of fewer multiplications than this are handed out whole, one a task; larger ones are cut themselves.
const SMALL: usize = 1 << 18;

/// a [.., m, k] times b [.., k, n], where the dimensions before the last two broadcast. The result has the dtype of `a`;
/// products are added up in f32. With `a` in bf16, an f32 `b` is rounded to bf16 first.
///
/// # Errors
/// When shapes do not fit, devices differ, or a dtype is no float.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let device = same_device("matmul", &[a, b])?;
    if let Some(flat) = flattened(a, b)? {
        let n = b.dim(1)?;
        let shape = [&a.shape()[..a.rank() - 1], &[n]].concat();
        return matmul(&flat, b)?.reshape(&shape);
    }
    let (a, b, shape) = operands(a, b)?;
    let mut out = device.alloc(&shape, a.dtype())?;
    device.run(&MATMUL, MatmulArgs { a: &a, b: &b, out: out.view(), accumulate: gemm::Accumulate::Store })?;
    Ok(out.finish())
}

/// `out += a b`, added up in f32, where `out` has the full shape of the product.
///
/// # Errors
/// As [`matmul`], and when `out` has another shape.
pub fn matmul_into(a: &Tensor, b: &Tensor, out: TensorMut<'_>) -> Result<()> {
    let device = same_device("matmul", &[a, b])?;
    let (a, b, shape) = operands(a, b)?;
    if shape != out.shape() || device != out.device() {
        return Err(Error::shape("matmul", format!("a product {shape:?} into {:?}", out.shape())));
    }
    device.run(&MATMUL, MatmulArgs { a: &a, b: &b, out, accumulate: gemm::Accumulate::Add })
}

/// `a` as one matrix, when all of its batches meet the one matrix `b` and that needs no copy.
fn flattened(a: &Tensor, b: &Tensor) -> Result<Option<Tensor>> {
    match (a.shape(), b.rank()) {
        ([outer @ .., k], 2) if outer.len() > 1 => a.reshaped_view(&[outer.iter().product(), *k]),
        _ => Ok(None),
    }
}

/// Both operands with the same batch dimensions, as the kernel takes them, and the shape of the product.
fn operands(a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor, Vec<usize>)> {
    a.dtype().expect_float("matmul")?;
    b.dtype().expect_float("matmul")?;
    let ([a_batch @ .., m, k], [b_batch @ .., k2, n]) = (a.shape(), b.shape()) else {
        return Err(Error::shape("matmul", format!("takes matrices, not {:?} and {:?}", a.shape(), b.shape())));
    };
    if k != k2 {
        return Err(Error::shape("matmul", format!("{:?} times {:?}", a.shape(), b.shape())));
    }
    let batch = broadcast_shape("matmul", a_batch, b_batch)?;
    let whole = |x: &Tensor, rows: usize, cols: usize| {
        let x = x.broadcast_to(&[&batch[..], &[rows, cols]].concat())?;
        // The packed product counts forwards only.
        let backwards = x.layout().strides()[batch.len()..].iter().any(|&s| s < 0);
        if backwards { x.contiguous() } else { Ok(x) }
    };
    Ok((whole(a, *m, *k)?, whole(b, *k, *n)?, [&batch[..], &[*m, *n]].concat()))
}

fn matmul_cpu(cpu: &Cpu, mut args: MatmulArgs<'_>) -> Result<()> {
    let round_bf16 = args.a.dtype() == DType::BF16 && args.b.dtype() == DType::F32;
    let options = Options { accumulate: args.accumulate, round_bf16, ..Options::default() };
    let pairs: Vec<(Mat<'_>, Mat<'_>)> = mats(args.a)?.into_iter().zip(mats(args.b)?).collect();
    match args.out.dtype() {
        DType::F32 => products(cpu, &pairs, args.out.as_mut_slice()?, |c| Out::F32(c), options),
        DType::BF16 => products(cpu, &pairs, args.out.as_mut_slice()?, |c| Out::Bf16(c), options),
        DType::F16 => products(cpu, &pairs, args.out.as_mut_slice()?, |c| Out::F16(c), options),
        other => Err(Error::dtype("matmul", format!("a product in {other}"))),
    }
}

/// The product of each pair into its part of `out`: many small ones side by side, large ones one by one.
fn products<T: Float>(
    cpu: &Cpu,
    pairs: &[(Mat<'_>, Mat<'_>)],
    out: &mut [T],
    wrap: fn(&mut [T]) -> Out<'_>,
    options: Options,
) -> Result<()> {
    let Some((a, b)) = pairs.first() else { return Ok(()) };
    let (size, n) = (a.rows() * b.cols(), b.cols());
    let multiply = |cpu: &Cpu, i: usize, out: &mut [T]| {
        let (a, b) = &pairs[i];
        gemm::gemm(cpu, a, &Dense::new(cpu.simd(), *b), wrap(out), n, options)
    };
    if pairs.len() == 1 || size * a.cols() >= SMALL {
        return out.chunks_mut(size.max(1)).enumerate().try_for_each(|(i, out)| multiply(cpu, i, out));
    }
    let caller = cpu.on_caller();
    cpu.chunks(out, size, |i, out| multiply(&caller, i, out).expect("`operands` checked the shapes"));
    Ok(())
}

/// The matrices of a tensor [batch.., rows, cols].
fn mats(x: &Tensor) -> Result<Vec<Mat<'_>>> {
    let lead = x.rank() - 2;
    let (shape, strides) = (&x.shape()[lead..], &x.layout().strides()[lead..]);
    let batch = x.layout().leading(lead);
    let starts = batch.runs(0..batch.len()).flat_map(|run| (0..run.len).map(move |i| run.at(i)));
    let mat = |start: usize| {
        let elements = match x.dtype() {
            DType::BF16 => Elems::Bf16(x.span()?.get(start..).unwrap_or_default()),
            DType::F16 => Elems::F16(x.span()?.get(start..).unwrap_or_default()),
            _ => Elems::F32(x.span()?.get(start..).unwrap_or_default()),
        };
        Mat::new(elements, shape[0], shape[1], strides[0].unsigned_abs(), strides[1].unsigned_abs())
    };
    starts.map(mat).collect()
}
