//! Products of matrices and of batches of matrices.

use crate::cpu::Cpu;
use crate::cpu::gemm::{self, Dense, Elems, Mat, Options, Out};
use crate::cuda::{self, Arg, Cuda, View};
use crate::{DType, Error, Float, Result, Tensor, TensorMut, broadcast_shape, kernel, ops, same_device};
use std::ops::Range;

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
kernel!(pub MATMUL = "matmul", MatmulArgs, matmul_cpu, matmul_cuda);

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

/// The most f32 values that [`product_into`] holds beside its operands: 16 MiB.
const SCRATCH: usize = 1 << 22;

/// `out` = alpha a b, or `out` += that, for matrices a [m, k] and b [k, n]: how ops that are made of products run where no
/// kernel of their own does all at once. What [`MATMUL`] leaves out (a factor, a 16-bit `out` of another dtype than
/// `a`) passes through f32 a chunk of rows at a time. As everywhere, bf16 `a` rounds an f32 `b` and no other.
///
/// # Errors
/// When shapes or devices do not fit, a dtype is no float, or `options` ask for other roundings.
pub fn product_into(a: &Tensor, b: &Tensor, mut out: TensorMut<'_>, options: gemm::Options) -> Result<()> {
    let gemm::Options { alpha, accumulate, round_bf16 } = options;
    let device = same_device("matmul", &[a, b])?;
    let (a, b, shape) = operands(a, b)?;
    let &[m, n] = &shape[..] else { return Err(Error::shape("matmul", format!("a product {shape:?}, no matrix"))) };
    if shape != out.shape() || device != out.device() {
        return Err(Error::shape("matmul", format!("a product {shape:?} into {:?}", out.shape())));
    }
    if round_bf16 != (a.dtype() == DType::BF16 && b.dtype() != DType::F16) {
        let dtypes = (a.dtype(), b.dtype());
        return Err(Error::unsupported(format!("matmul of {dtypes:?}, rounded to bf16: {round_bf16}")));
    }
    if alpha == 1.0 && (out.dtype() == DType::F32 || out.dtype() == a.dtype()) {
        return device.run(&MATMUL, MatmulArgs { a: &a, b: &b, out, accumulate });
    }
    let factor = Tensor::full(alpha, &[1], DType::F32, device)?;
    for rows in even_chunks(m, (SCRATCH / n.max(1)).max(LEAST_ROWS)) {
        let mut product = device.alloc(&[rows.len(), n], DType::F32)?;
        let a = a.narrow(0, rows.start, rows.len())?;
        let store = gemm::Accumulate::Store;
        device.run(&MATMUL, MatmulArgs { a: &a, b: &b, out: product.view(), accumulate: store })?;
        let product = product.finish();
        let mut out = out.part(rows.start * n, &[rows.len(), n])?;
        match (accumulate, out.dtype()) {
            (gemm::Accumulate::Add, DType::F32) => ops::add_scaled(&product, &factor, out)?,
            (gemm::Accumulate::Add, _) => ops::accumulate(&mut out, &ops::scale(&product, &factor)?)?,
            (gemm::Accumulate::Store, _) => ops::copy_into(&ops::scale(&product, &factor)?, out)?,
        }
    }
    Ok(())
}

/// So many rows that even half of them take the path of many rows.
const LEAST_ROWS: usize = 64;

/// 0..n in pieces of about one length, at most `most`: a short last one could take another path through a product, with
/// other bits.
pub(crate) fn even_chunks(n: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let len = n.div_ceil(n.div_ceil(most).max(1)).max(1);
    (0..n).step_by(len).map(move |start| start..n.min(start + len))
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

/// Few rows go the way that they go on the CPU, so that they have its bits.
fn matmul_cuda(cuda: &Cuda, args: MatmulArgs<'_>) -> Result<()> {
    let MatmulArgs { a, b, out, accumulate } = args;
    let (Operand { batch: a_batch, strides: [a_m, a_k] }, Operand { batch: b_batch, strides: [b_k, b_n] }) =
        (Operand::new(a)?, Operand::new(b)?);
    let [batch @ .., m, n] = out.shape() else { return Err(Error::shape("matmul", "a product is a matrix")) };
    let (batches, k) = (batch.iter().product::<usize>(), a.dim(a.rank() - 1)?);
    let args = [
        cuda::read(a)?,
        Arg::U64(a_m),
        Arg::U64(a_k),
        a_batch.arg(),
        cuda::read(b)?,
        Arg::U64(b_k),
        Arg::U64(b_n),
        b_batch.arg(),
        cuda::written(&out)?,
        Arg::U32((accumulate == gemm::Accumulate::Add).into()),
        cuda::number(batches)?,
        cuda::number(*m)?,
        cuda::number(*n)?,
        cuda::number(k)?,
    ];
    let types = format!("{}_{}_{}", a.dtype(), b.dtype(), out.dtype());
    if *m <= gemm::FEW_ROWS && b_k == 1 {
        return cuda::over_rows(cuda, "matmul", &format!("matmul_rows_{types}"), out.len(), &args);
    }
    let blocks = batches * m.div_ceil(SIDE) * n.div_ceil(SIDE);
    let threads = if on_tensor_cores(a.dtype(), b.dtype()) { CORE_THREADS } else { cuda::THREADS };
    cuda::start(cuda, "matmul", &format!("matmul_{types}"), blocks, threads, &args)
}

/// Rows and columns of a tile of matmul.cu, and the threads that make one on tensor cores.
const SIDE: usize = 64;
const CORE_THREADS: u32 = 128;

fn on_tensor_cores(a: DType, b: DType) -> bool {
    matches!((a, b), (DType::BF16, DType::BF16 | DType::F32) | (DType::F16, DType::F16))
}

/// How the matrices of an operand [batch.., rows, cols] lie: the first of each by a view, and from row to row and from
/// column to column.
struct Operand {
    batch: View,
    strides: [u64; 2],
}

impl Operand {
    fn new(x: &Tensor) -> Result<Self> {
        let lead = x.rank() - 2;
        let stride = |d: usize| match x.layout().strides()[lead + d] {
            // Nothing is there to step over.
            _ if x.is_empty() => Ok(0),
            stride => u64::try_from(stride).map_err(|_| Error::unsupported(format!("matmul: a stride of {stride}"))),
        };
        Ok(Operand { batch: View::of(&x.layout().leading(lead))?, strides: [stride(0)?, stride(1)?] })
    }
}
