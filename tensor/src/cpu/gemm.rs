//! Matrix products: C = alpha A B or C += alpha A B, accumulated in f32.
//!
//! Two paths, chosen by shape. Products of many rows are packed and blocked as in GotoBLAS and BLIS
//! (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008): B goes through
//! [`Panels::pack`], so a quantised weight is decoded a tile at a time and never exists widened. Products
//! of at most [`FEW_ROWS`] rows (decoding a token) take one dot product an element, see [`reduce`].
//!
//! Operands that are bf16, or are to be rounded to it, are packed as such where the CPU multiplies that (AVX-512 BF16, AMX): pairs of
//! products, added up in f32. Elsewhere they are widened.
//!
//! Bits: the order in which an output element's products are added depends on k, the options and the path alone, not on m, n, the
//! element's place or the threads; and not on the SIMD level, but for packed bf16, whose instructions also take subnormal numbers for
//! zero. Packed f32: chains of [`KC`] fused steps, added up block by block. So a row's result is the same in every batch that takes the
//! same path.
//!
//! [`reduce`]: crate::cpu::reduce

mod blocked;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod micro_amx;
#[cfg(target_arch = "x86_64")]
mod micro_avx2;
#[cfg(target_arch = "x86_64")]
mod micro_avx512;
#[cfg(target_arch = "x86_64")]
mod micro_avx512bf16;
mod micro_portable;
mod pack;
mod pack_bf16;
mod packed;
mod rows;
mod store;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use kernel::{Kernel, Shape};
pub use pack::{Dense, interleave};
pub(crate) use pack::{Lanes, pack_lanes};
pub(crate) use pack_bf16::{Strips, pack_lanes_bf16};
pub use pack_bf16::{pair_columns, pair_rows};

use std::ops::Range;

use half::{bf16, f16};

use super::{Cpu, span};
use crate::{Error, Result};

/// How many steps along k one accumulator takes before it is added to C.
pub const KC: usize = 256;

/// Up to how many rows of A the dot-product path takes.
pub const FEW_ROWS: usize = 8;

/// Elements of an operand as they are stored.
#[derive(Clone, Copy, Debug)]
pub enum Elems<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
}

impl Elems<'_> {
    fn len(&self) -> usize {
        match self {
            Elems::F32(x) => x.len(),
            Elems::Bf16(x) => x.len(),
            Elems::F16(x) => x.len(),
        }
    }
}

/// A strided view of a matrix: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: Elems<'a>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A view of `rows` x `cols` elements of `data`.
    ///
    /// # Errors
    /// When the last element lies outside `data`.
    pub fn new(data: Elems<'a>, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Result<Self> {
        if rows == 0 || cols == 0 {
            // Nothing to step over: no offset into an empty matrix may leave `data`.
            return Ok(Mat { data, rows, cols, row_stride: 0, col_stride: 0 });
        }
        let last = |n: usize, stride: usize| (n - 1).checked_mul(stride);
        let last = last(rows, row_stride).zip(last(cols, col_stride)).and_then(|(r, c)| r.checked_add(c));
        if last.is_some_and(|at| at < data.len()) {
            return Ok(Mat { data, rows, cols, row_stride, col_stride });
        }
        let strides = format!("[{rows}, {cols}] with strides [{row_stride}, {col_stride}]");
        Err(Error::shape("gemm", format!("a matrix of {strides} needs more than its {} elements", data.len())))
    }

    /// A view of a contiguous [rows, cols] matrix.
    ///
    /// # Errors
    /// When `data` is shorter than that.
    pub fn row_major(data: Elems<'a>, rows: usize, cols: usize) -> Result<Self> {
        Mat::new(data, rows, cols, cols, 1)
    }

    /// The same elements as [cols, rows].
    #[must_use]
    pub fn transposed(self) -> Self {
        let Mat { data, rows, cols, row_stride, col_stride } = self;
        Mat { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// The right-hand operand B [k, n] of a product, decoded a tile at a time: dense matrices here
/// ([`Dense`]), quantised weights in the crate that knows their blocks.
pub trait Panels: Sync {
    /// Rows of B.
    fn k(&self) -> usize;

    /// Columns of B.
    fn n(&self) -> usize;

    /// Writes B[k, n] as f32 in strips of `nr` columns: `out[strip][kk][col]`, with zeros in the columns
    /// past the end of `n`. `out` has exactly `n.len().div_ceil(nr) * k.len() * nr` elements.
    fn pack(&self, k: Range<usize>, n: Range<usize>, nr: usize, out: &mut [f32]);

    /// As [`Panels::pack`], rounded to bf16 and in pairs of steps: `out[strip][kk / 2][col][kk % 2]`, with zeros past the last column and
    /// from the last step to the end of a strip; strips are equally long. Only what [is dense](Panels::is_dense) is asked for more than
    /// one strip, or for more steps than `k` has, rounded up to pairs. [`pair_columns`] and [`pair_rows`] make such strips.
    fn pack_bf16(&self, k: Range<usize>, n: Range<usize>, nr: usize, out: &mut [bf16]);

    /// Writes column `n` of B, its rows `k`, as f32: for products of few rows, where packing does not pay.
    fn column(&self, n: usize, k: Range<usize>, out: &mut [f32]);

    /// Column `n` if it already lies in memory as contiguous f32: no copy.
    fn contiguous_column(&self, _n: usize) -> Option<&[f32]> {
        None
    }

    /// How to multiply few rows with columns as they are stored, where there is a faster way than to decode each column
    /// and multiply it.
    fn few_rows<'a>(&'a self, _x: FewRows<'a>) -> Option<Box<dyn Columns + 'a>> {
        None
    }

    /// Whether elements are stored as floats, so that packing them only moves them and widens them. What is not stored
    /// so is decoded a strip at a time by the task that multiplies it, and is never shared packed.
    fn is_dense(&self) -> bool {
        false
    }

    /// Whether reading single columns is as cheap as packing; if not, products of few rows are packed too.
    fn columns_are_cheap(&self) -> bool {
        true
    }
}

/// At most [`FEW_ROWS`] rows of A, for [`Panels::few_rows`].
#[derive(Clone, Copy, Debug)]
pub struct FewRows<'a> {
    /// What the product runs on.
    pub cpu: &'a Cpu,
    /// [m, k], widened to f32, contiguous.
    pub rows: &'a [f32],
    /// How many.
    pub m: usize,
    /// Elements of a row.
    pub k: usize,
    /// Whether they are stored in 16 bits.
    pub is_half: bool,
    /// As in [`Options`]; the rows are rounded already.
    pub round_bf16: bool,
}

/// Products of few rows with columns of B.
pub trait Columns: Sync {
    /// The dot products of each column from `first` on with each row: `out` is [columns, m].
    fn dot(&self, first: usize, out: &mut [f32]);
}

/// C [m, n], row-major with a leading dimension.
#[derive(Debug)]
pub enum Out<'a> {
    /// 32-bit floats: products are accumulated in place.
    F32(&'a mut [f32]),
    /// bfloat16: accumulated in f32 beside it, rounded once to nearest even.
    Bf16(&'a mut [bf16]),
    /// Half precision, rounded likewise.
    F16(&'a mut [f16]),
}

impl Out<'_> {
    fn len(&self) -> usize {
        match self {
            Out::F32(x) => x.len(),
            Out::Bf16(x) => x.len(),
            Out::F16(x) => x.len(),
        }
    }
}

/// What becomes of C's old contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accumulate {
    /// C = alpha A B; what C held is never read.
    Store,
    /// C += alpha A B.
    Add,
}

/// How to multiply.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The factor of the product.
    pub alpha: f32,
    /// Overwrite C or add to it.
    pub accumulate: Accumulate,
    /// Round both operands to bf16 (nearest even) before multiplying: the bf16 compute mode.
    pub round_bf16: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { alpha: 1.0, accumulate: Accumulate::Store, round_bf16: false }
    }
}

/// What is added to a product behind it: a low-rank term, then a bias.
#[derive(Clone, Copy, Debug, Default)]
pub struct After<'a> {
    /// scale U Vᵀ, multiplied in f32; beside a 16-bit C where bf16 is multiplied as such, in two bf16 parts of each factor.
    pub low_rank: Option<LowRank<'a>>,
    /// `[n]`, added to every row.
    pub bias: Option<&'a [f32]>,
}

/// The term scale U Vᵀ.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// U [m, r].
    pub u: Mat<'a>,
    /// V [n, r].
    pub v: Mat<'a>,
    /// Its factor.
    pub scale: f32,
}

impl After<'_> {
    fn check(&self, m: usize, n: usize) -> Result<()> {
        let low_rank = self.low_rank.is_none_or(|l| l.u.rows == m && l.v.rows == n && l.u.cols == l.v.cols);
        if low_rank && self.bias.is_none_or(|bias| bias.len() == n) {
            return Ok(());
        }
        Err(Error::shape("gemm", format!("a low-rank term or a bias of other sizes behind a product [{m}, {n}]")))
    }
}

/// C [m, n] = alpha A [m, k] B [k, n], or C += that. `ldc` is the distance between rows of C.
///
/// # Errors
/// When A's columns are not B's rows, rows of C overlap (`ldc < n`), or C is too short.
pub fn gemm(cpu: &Cpu, a: &Mat, b: &dyn Panels, c: Out, ldc: usize, options: Options) -> Result<()> {
    gemm_and(cpu, a, b, c, ldc, options, After::default())
}

/// As [`gemm`], and then C += `after`: all of it is added up in f32, and a 16-bit C rounded once where products are packed. Those of
/// few rows are rounded after each term.
///
/// # Errors
/// As [`gemm`], and when `after` does not fit C.
pub fn gemm_and(
    cpu: &Cpu,
    a: &Mat,
    b: &dyn Panels,
    mut c: Out,
    ldc: usize,
    options: Options,
    after: After,
) -> Result<()> {
    let (m, n, k) = (a.rows, b.n(), b.k());
    if a.cols != k {
        return Err(Error::shape("gemm", format!("[{m}, {}] times [{k}, {n}]", a.cols)));
    }
    after.check(m, n)?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    if ldc < n || span(m, ldc, n).is_none_or(|needed| needed > c.len()) {
        let detail = format!("[{m}, {n}] does not fit into {} elements with rows {ldc} apart", c.len());
        return Err(Error::shape("gemm", detail));
    }
    if m <= FEW_ROWS && b.columns_are_cheap() {
        rows::gemm(cpu, a, b, &mut c, ldc, options);
        rows::add(cpu, &mut c, ldc, [m, n], after);
    } else {
        blocked::gemm(cpu, a, b, c, ldc, options, after);
    }
    Ok(())
}
