//! Products of matrices and of batches of matrices.

use crate::cpu::Cpu;
use crate::cpu::gemm::{self, Accumulate, Dense, Elems, Mat, Options, Out};
use crate::{DType, Error, Float, Result, Tensor, TensorMut, broadcast_shape, kernel, ops, same_device};
use std::ops::Range;

mod cuda;
mod plan;
mod tiles;

pub use plan::{Machine, Plan, Sizes, Tile};
pub use tiles::{PlainTiles, Target, Tiles, comes_in_chunks};

/// Arguments of [`MATMUL`]: out = a b, and what the epilogue makes of it.
pub struct MatmulArgs<'a> {
    /// [batch.., m, k], any float dtype; any layout whose last two strides are not negative.
    pub a: &'a Tensor,
    /// [batch.., k, n], with the batch of `a` (broadcast: strides of 0), float dtype and layout as for `a`.
    pub b: &'a Tensor,
    /// [batch.., m, n], any float dtype (on a CUDA device f32 or that of `a`); read only to be added to. For one matrix it may be wider.
    pub out: TensorMut<'a>,
    /// The first column of `out` that results go to: 0, unless it is wider.
    pub column: usize,
    /// What is done with the product.
    pub epilogue: Epilogue<'a>,
    /// What a CUDA device may do with f32 operands.
    pub freedom: Freedom,
    /// How tensor cores go about it; `None` leaves that to [`Machine::plan`]. Nothing to a CPU.
    pub plan: Option<Plan>,
}
kernel!(pub MATMUL = "matmul", MatmulArgs, matmul_cpu, cuda::matmul_cuda);

impl<'a> MatmulArgs<'a> {
    /// out = a b.
    #[must_use]
    pub fn new(a: &'a Tensor, b: &'a Tensor, out: TensorMut<'a>) -> Self {
        MatmulArgs { a, b, out, column: 0, epilogue: Epilogue::default(), freedom: Freedom::None, plan: None }
    }
}

/// What a CUDA device may do with an f32 operand `a`, to multiply on tensor cores. A CPU makes no use of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Freedom {
    /// Nothing: sums have the CPU's order, and its bits.
    #[default]
    None,
    /// Add up in another order, with the precision of f32: so for f32 times bf16.
    Order,
    /// Round f32 operands to TF32, 10 bits of mantissa, too: so for f32 times f32.
    Tf32,
}

/// What is done with a product a b before it is stored: out = alpha a b + scale u vᵀ + bias, or out += that.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// The factor of the product.
    pub alpha: f32,
    /// Overwrite `out` or add to it.
    pub accumulate: Accumulate,
    /// A product of narrow matrices that is added, as an adapter's; for one matrix only.
    pub low_rank: Option<LowRank<'a>>,
    /// `[n]`, float, contiguous: added to every row; for one matrix only.
    pub bias: Option<&'a Tensor>,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Epilogue { alpha: 1.0, accumulate: Accumulate::Store, low_rank: None, bias: None }
    }
}

/// The product scale u vᵀ, in f32.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// [m, r], float, of any layout.
    pub u: &'a Tensor,
    /// [n, r], float, of any layout.
    pub v: &'a Tensor,
    /// Its factor.
    pub scale: f32,
}

impl<'a> Epilogue<'a> {
    /// Whether it fits a product of one matrix [m, n], or a batch of them.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self, batches: usize, m: usize, n: usize) -> Result<()> {
        let fits = |x: &Tensor, shape: &[usize]| x.dtype().is_float() && x.shape() == shape;
        let low_rank = self.low_rank.is_none_or(|LowRank { u, v, .. }| match u.shape() {
            [_, r] => fits(u, &[m, *r]) && fits(v, &[n, *r]),
            _ => false,
        });
        let bias = self.bias.is_none_or(|bias| fits(bias, &[n]) && bias.is_contiguous());
        let plain = self.low_rank.is_none() && self.bias.is_none();
        if (low_rank && bias && batches == 1) || plain {
            return Ok(());
        }
        Err(Error::shape("matmul", format!("{self:?} behind {batches} products [{m}, {n}]")))
    }

    /// The terms behind a product on the CPU, and what their bias is kept in.
    ///
    /// # Errors
    /// When a part is not on the host.
    pub fn on_cpu(&self, bias: &'a mut Vec<f32>) -> Result<gemm::After<'a>> {
        let low_rank = self.low_rank.map(|LowRank { u, v, scale }| {
            Ok::<_, Error>(gemm::LowRank { u: u.as_mat("matmul")?, v: v.as_mat("matmul")?, scale })
        });
        let bias = match self.bias {
            None => None,
            Some(values) => {
                *bias = values.to_dtype(DType::F32)?.to_vec()?;
                Some(&bias[..])
            }
        };
        Ok(gemm::After { low_rank: low_rank.transpose()?, bias })
    }
}

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
    device.run(&MATMUL, MatmulArgs::new(&a, &b, out.view()))?;
    Ok(out.finish())
}

/// `out += a b`, added up in f32, where `out` has the full shape of the product.
///
/// # Errors
/// As [`matmul`], and when `out` has another shape.
pub fn matmul_into(a: &Tensor, b: &Tensor, out: TensorMut<'_>) -> Result<()> {
    add_product(a, b, out, Freedom::None)
}

/// As [`matmul_into`], where f32 `a` and bf16 `b` need not be added up in the CPU's order on a CUDA device: for gradients of
/// parameters, sums over all tokens.
///
/// # Errors
/// As [`matmul_into`].
pub fn matmul_into_in_any_order(a: &Tensor, b: &Tensor, out: TensorMut<'_>) -> Result<()> {
    add_product(a, b, out, Freedom::Order)
}

fn add_product(a: &Tensor, b: &Tensor, out: TensorMut<'_>, freedom: Freedom) -> Result<()> {
    let device = same_device("matmul", &[a, b])?;
    let (a, b, shape) = operands(a, b)?;
    if shape != out.shape() || device != out.device() {
        return Err(Error::shape("matmul", format!("a product {shape:?} into {:?}", out.shape())));
    }
    let epilogue = Epilogue { accumulate: Accumulate::Add, ..Epilogue::default() };
    device.run(&MATMUL, MatmulArgs { epilogue, freedom, ..MatmulArgs::new(&a, &b, out) })
}

/// The most f32 values that [`product_into`] holds beside its operands: 16 MiB.
const SCRATCH: usize = 1 << 22;

/// `out` = alpha a b, or `out` += that, for matrices a [m, k] and b [k, n]: how ops that are made of products run where no
/// kernel of their own does all at once. As everywhere, bf16 `a` rounds an f32 `b` and no other.
///
/// # Errors
/// When shapes or devices do not fit, a dtype is no float, or `options` ask for other roundings.
pub fn product_into(a: &Tensor, b: &Tensor, out: TensorMut<'_>, options: gemm::Options) -> Result<()> {
    let gemm::Options { alpha, accumulate, round_bf16 } = options;
    if round_bf16 != (a.dtype() == DType::BF16 && b.dtype() != DType::F16) {
        let dtypes = (a.dtype(), b.dtype());
        return Err(Error::unsupported(format!("matmul of {dtypes:?}, rounded to bf16: {round_bf16}")));
    }
    product_with(a, b, out, 0, Epilogue { alpha, accumulate, ..Epilogue::default() })
}

/// The product of matrices a [m, k] and b [k, n] with an epilogue, into columns `column` .. column + n of `out`. An `out` of 16 bits
/// and of another dtype than `a` is reached through f32, a chunk of rows at a time.
///
/// # Errors
/// When shapes or devices do not fit, or a dtype is no float.
pub fn product_with(a: &Tensor, b: &Tensor, out: TensorMut<'_>, column: usize, epilogue: Epilogue<'_>) -> Result<()> {
    let device = same_device("matmul", &[a, b])?;
    let (a, b, shape) = operands(a, b)?;
    let &[m, n] = &shape[..] else { return Err(Error::shape("matmul", format!("a product {shape:?}, no matrix"))) };
    let &[rows, columns] = &out.shape() else { return Err(Error::shape("matmul", format!("into {:?}", out.shape()))) };
    if m != *rows || column > *columns || n > columns - column || device != out.device() {
        return Err(Error::shape("matmul", format!("a product {shape:?} into {:?} from column {column}", out.shape())));
    }
    epilogue.check(1, m, n)?;
    let dtype = out.dtype();
    if dtype != DType::F32 && dtype != a.dtype() && n == *columns {
        return through_f32(out, epilogue.accumulate, |rows, out| {
            let u = epilogue.low_rank.map(|low_rank| low_rank.u.narrow(0, rows.start, rows.len())).transpose()?;
            let low_rank = epilogue.low_rank.zip(u.as_ref()).map(|(low_rank, u)| LowRank { u, ..low_rank });
            let epilogue = Epilogue { accumulate: Accumulate::Store, low_rank, ..epilogue };
            product_with(&a.narrow(0, rows.start, rows.len())?, &b, out, 0, epilogue)
        });
    }
    device.run(&MATMUL, MatmulArgs { column, epilogue, ..MatmulArgs::new(&a, &b, out) })
}

/// Forms rows of `out` [m, n] in f32, a chunk at a time, and stores or adds them. `form` gets the rows and a place for them.
pub(crate) fn through_f32(
    mut out: TensorMut<'_>,
    accumulate: Accumulate,
    mut form: impl FnMut(Range<usize>, TensorMut<'_>) -> Result<()>,
) -> Result<()> {
    let (m, n) = (out.shape()[0], out.shape()[1]);
    for rows in even_chunks(m, (SCRATCH / n.max(1)).max(LEAST_ROWS)) {
        let mut formed = out.device().alloc(&[rows.len(), n], DType::F32)?;
        form(rows.clone(), formed.view())?;
        let mut part = out.part(rows.start * n, &[rows.len(), n])?;
        match accumulate {
            Accumulate::Add => ops::accumulate(&mut part, &formed.finish())?,
            Accumulate::Store => ops::copy_into(&formed.finish(), part)?,
        }
    }
    Ok(())
}

/// So many rows that even half of them take the path of many rows.
const LEAST_ROWS: usize = 64;

/// 0..n in pieces of about one length, at most `most`: a short last one could take another path through a product, with
/// other bits. Whole tiles of rows, where that leaves a last piece of many.
pub(crate) fn even_chunks(n: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let pieces = n.div_ceil(most).max(1);
    let len = n.div_ceil(pieces).max(1);
    let tiles = len.next_multiple_of(32);
    let len = if tiles <= most && (pieces - 1) * tiles + LEAST_ROWS <= n { tiles } else { len };
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
    let MatmulArgs { a, b, column, epilogue, .. } = args;
    let Epilogue { alpha, accumulate, .. } = epilogue;
    let options = Options { alpha, accumulate, round_bf16: a.dtype() == DType::BF16 && b.dtype() != DType::F16 };
    let pairs: Vec<(Mat<'_>, Mat<'_>)> = mats(a)?.into_iter().zip(mats(b)?).collect();
    match &pairs[..] {
        [] => Ok(()),
        [(a, b)] => {
            let ldc = *args.out.shape().last().expect("a product has columns");
            let mut out = args.out.part(column, &[args.out.len().saturating_sub(column)])?;
            let mut bias = Vec::new();
            let after = epilogue.on_cpu(&mut bias)?;
            gemm::gemm_and(cpu, a, &Dense::new(cpu.simd(), *b), out.as_out("matmul")?, ldc, options, after)
        }
        _ => match args.out.dtype() {
            DType::F32 => products(cpu, &pairs, args.out.as_mut_slice()?, |c| Out::F32(c), options),
            DType::BF16 => products(cpu, &pairs, args.out.as_mut_slice()?, |c| Out::Bf16(c), options),
            DType::F16 => products(cpu, &pairs, args.out.as_mut_slice()?, |c| Out::F16(c), options),
            other => Err(Error::dtype("matmul", format!("a product in {other}"))),
        },
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
