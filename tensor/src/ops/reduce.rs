//! Sums, means and extremes over dimensions, and the position of a maximum.
//!
//! What is reduced into one element is cut into chunks of [`CHUNK`]; a chunk is summed in 64 lanes that are folded in
//! halves, and the chunks' results are reduced in the same way. The tree depends on the number of elements alone, so the
//! bits depend neither on threads nor on how the tensor lies in memory.

use crate::blocks::{BLOCK, Reader, write_rows};
use crate::cpu::reduce::LANES;
use crate::cpu::{Cpu, Simd, simd};
use crate::cuda::{self, Arg, Cuda, View};
use crate::{DType, Element, Error, Result, Tensor, TensorMut, broadcast_shape, dispatch, kernel, same_device};

/// Which reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// The sum; 0 of nothing.
    Sum,
    /// The sum divided by the number of elements.
    Mean,
    /// The largest; NaN if there is one.
    Max,
    /// The smallest; NaN if there is one.
    Min,
}

/// Elements that are reduced in one go.
const CHUNK: usize = 8 * BLOCK;
/// Neighbouring results that are reduced together where the elements of one lie far apart.
const COLUMNS: usize = 64;

/// Arguments of [`REDUCE`]: out = `op` over all but the first dimensions of x.
pub struct ReduceArgs<'a> {
    /// Which reduction.
    pub op: Reduce,
    /// The kept dimensions, then the reduced ones; any layout and float dtype.
    pub x: &'a Tensor,
    /// How many dimensions are kept.
    pub kept: usize,
    /// The kept dimensions, dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub REDUCE = "reduce", ReduceArgs, reduce_cpu, reduce_cuda);

/// Arguments of [`EXTREME_BACKWARD`]: the gradient of a maximum or minimum by x: the first element that equals it gets
/// dy.
pub struct ExtremeBackwardArgs<'a> {
    /// The kept dimensions, then the reduced ones; any layout and float dtype.
    pub x: &'a Tensor,
    /// The maximum or minimum: the kept dimensions, dtype of `x`, contiguous.
    pub y: &'a Tensor,
    /// Its gradient: shape and dtype of `y`, contiguous.
    pub dy: &'a Tensor,
    /// Shape and dtype of `x`.
    pub dx: TensorMut<'a>,
}
kernel!(pub EXTREME_BACKWARD = "extreme_backward", ExtremeBackwardArgs, extreme_backward_cpu, extreme_backward_cuda);

/// Arguments of [`ARGMAX`]: out = the index of the first largest element.
pub struct ArgmaxArgs<'a> {
    /// The kept dimensions, then the reduced one; any layout and float dtype.
    pub x: &'a Tensor,
    /// The kept dimensions, i32.
    pub out: TensorMut<'a>,
}
kernel!(pub ARGMAX = "argmax", ArgmaxArgs, argmax_cpu, argmax_cuda);

/// `op` over the dimensions `dims`, which stay with size 1 if `keep`, else are dropped.
///
/// # Errors
/// When a dimension is not there or given twice, the dtype is no float, or an extreme is asked of nothing.
pub fn reduce(op: Reduce, x: &Tensor, dims: &[usize], keep: bool) -> Result<Tensor> {
    let (moved, kept) = reduced_last("reduce", x, dims)?;
    let count: usize = moved.shape()[kept..].iter().product();
    if count == 0 && matches!(op, Reduce::Max | Reduce::Min) {
        return Err(Error::shape("reduce", format!("{op:?} of no elements: dimensions {dims:?} of {:?}", x.shape())));
    }
    let mut out = x.device().alloc(&moved.shape()[..kept], x.dtype().expect_float("reduce")?)?;
    x.device().run(&REDUCE, ReduceArgs { op, x: &moved, kept, out: out.view() })?;
    let out = out.finish();
    if keep { out.reshape(&kept_shape(x, dims)) } else { Ok(out) }
}

/// The shape of `x` with the dimensions `dims` of size 1.
#[must_use]
pub fn kept_shape(x: &Tensor, dims: &[usize]) -> Vec<usize> {
    x.shape().iter().enumerate().map(|(d, &size)| if dims.contains(&d) { 1 } else { size }).collect()
}

/// The gradient of [`Reduce::Max`] or [`Reduce::Min`] by `x`, given the result `y` (with the dimensions dropped) and its
/// gradient: the first element that equals the result gets it.
///
/// # Errors
/// When the shapes do not fit together.
pub fn extreme_backward(x: &Tensor, y: &Tensor, dy: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let device = same_device("extreme_backward", &[x, y, dy])?;
    let (moved, kept) = reduced_last("extreme_backward", x, dims)?;
    y.expect_like("extreme_backward", dy)?;
    if *y.shape() != moved.shape()[..kept] || y.dtype() != x.dtype() {
        return Err(Error::shape("extreme_backward", format!("{:?} of {:?} over {dims:?}", y.shape(), x.shape())));
    }
    let (y, dy) = (y.contiguous()?, dy.contiguous()?);
    let mut dx = device.alloc(moved.shape(), x.dtype())?;
    device.run(&EXTREME_BACKWARD, ExtremeBackwardArgs { x: &moved, y: &y, dy: &dy, dx: dx.view() })?;
    // Back from [kept, reduced] to the order of x.
    let order = kept_then_reduced(x, dims);
    let back: Vec<usize> = (0..x.rank()).filter_map(|d| order.iter().position(|&o| o == d)).collect();
    dx.finish().permute(&back)
}

/// The index (i32) of the first largest element along `dim`, which is dropped; a NaN is larger than any number.
///
/// # Errors
/// When there is no such dimension, it is empty, or the dtype is no float.
pub fn argmax(x: &Tensor, dim: usize) -> Result<Tensor> {
    let (moved, kept) = reduced_last("argmax", x, &[dim])?;
    x.dtype().expect_float("argmax")?;
    if x.dim(dim)? == 0 {
        return Err(Error::shape("argmax", format!("dimension {dim} of {:?} is empty", x.shape())));
    }
    let mut out = x.device().alloc(&moved.shape()[..kept], DType::I32)?;
    x.device().run(&ARGMAX, ArgmaxArgs { x: &moved, out: out.view() })?;
    Ok(out.finish())
}

/// The sum of `x` over the dimensions along which `shape` was broadcast to it: the gradient of a broadcast.
///
/// # Errors
/// When `shape` does not broadcast to the shape of `x`.
pub fn sum_to(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    if broadcast_shape("sum_to", x.shape(), shape)?[..] != *x.shape() {
        return Err(Error::shape("sum_to", format!("{shape:?} does not broadcast to {:?}", x.shape())));
    }
    let lead = x.rank() - shape.len();
    let repeated = |&d: &usize| d < lead || (shape[d - lead] == 1 && x.shape()[d] != 1);
    let dims: Vec<usize> = (0..x.rank()).filter(repeated).collect();
    if dims.is_empty() {
        return Ok(x.clone());
    }
    reduce(Reduce::Sum, x, &dims, false)?.reshape(shape)
}

fn kept_then_reduced(x: &Tensor, dims: &[usize]) -> Vec<usize> {
    let (mut order, reduced): (Vec<usize>, Vec<usize>) = (0..x.rank()).partition(|d| !dims.contains(d));
    order.extend(reduced);
    order
}

/// `x` with the dimensions `dims` moved behind the others, and how many others there are.
fn reduced_last(op: &str, x: &Tensor, dims: &[usize]) -> Result<(Tensor, usize)> {
    let wrong = dims.iter().enumerate().any(|(i, d)| *d >= x.rank() || dims[..i].contains(d));
    if wrong {
        return Err(Error::shape(op, format!("dimensions {dims:?} of shape {:?}", x.shape())));
    }
    Ok((x.permute(&kept_then_reduced(x, dims))?, x.rank() - dims.len()))
}

fn reduce_cpu(cpu: &Cpu, mut args: ReduceArgs<'_>) -> Result<()> {
    let count: usize = args.x.shape()[args.kept..].iter().product();
    dispatch!(float args.x.dtype(), "reduce", T => {
        let out = args.out.as_mut_slice::<T>()?;
        let results = all(cpu, args.op, args.x, args.kept)?;
        for (out, &result) in out.iter_mut().zip(&results) {
            *out = T::from_f32(if args.op == Reduce::Mean { result / count as f32 } else { result });
        }
        Ok(())
    })
}

/// One f32 an entry of the kept dimensions.
fn all(cpu: &Cpu, op: Reduce, x: &Tensor, kept: usize) -> Result<Vec<f32>> {
    let (outer, count) = outer_and_count(x, kept);
    let mut chunks = count.div_ceil(CHUNK).max(1);
    let mut results = vec![0.0; outer * chunks];
    if results_are_neighbours(x, kept) {
        let order: Vec<usize> = (kept..x.rank()).chain(0..kept).collect();
        let columns = x.permute(&order)?;
        let columns = Reader::new(&columns, cpu.simd())?;
        cpu.chunks(&mut results, COLUMNS * chunks, |task, results| {
            by_columns(cpu.simd(), op, &columns, [count, outer], task * COLUMNS, chunks, results);
        });
    } else {
        by_rows(cpu, op, &Reader::new(x, cpu.simd())?, count, chunks, &mut results);
    }
    while chunks > 1 {
        let (count, parts) = (chunks, results);
        chunks = count.div_ceil(CHUNK);
        results = vec![0.0; outer * chunks];
        by_rows(cpu, op, &Reader::of(&parts, cpu.simd()), count, chunks, &mut results);
    }
    Ok(results)
}

/// How many results there are, and of how many elements each.
fn outer_and_count(x: &Tensor, kept: usize) -> (usize, usize) {
    (x.shape()[..kept].iter().product(), x.shape()[kept..].iter().product())
}

/// Whether the elements of neighbouring results lie side by side, while those of one result lie apart.
fn results_are_neighbours(x: &Tensor, kept: usize) -> bool {
    let innermost = |dims: std::ops::Range<usize>| dims.rev().find(|&d| x.shape()[d] > 1);
    let stride = |d: usize| x.layout().strides()[d].unsigned_abs();
    match (innermost(0..kept), innermost(kept..x.rank())) {
        (Some(k), Some(r)) => stride(k) < stride(r),
        _ => false,
    }
}

/// The elements of each result follow each other in `x`.
fn by_rows(cpu: &Cpu, op: Reduce, x: &Reader<'_>, count: usize, chunks: usize, results: &mut [f32]) {
    let group = (CHUNK / count.clamp(1, CHUNK)).max(1);
    cpu.chunks(results, group, |task, results| {
        let mut block = [0.0; BLOCK];
        for (i, result) in results.iter_mut().enumerate() {
            let (row, chunk) = ((task * group + i) / chunks, (task * group + i) % chunks);
            let mut lanes = [op.start(); LANES];
            let (start, end) = (chunk * CHUNK, count.min((chunk + 1) * CHUNK));
            for at in (start..end).step_by(BLOCK) {
                let range = row * count + at..row * count + end.min(at + BLOCK);
                take(cpu.simd(), op, x.read(range, &mut block), &mut lanes);
            }
            *result = fold(cpu.simd(), op, &mut lanes);
        }
    });
}

/// `columns` is [count, outer]: the first elements of all results, then the second ones, ... The results from `first`
/// on, as many as there is room for, in the order of additions of [`by_rows`].
fn by_columns(
    simd: Simd,
    op: Reduce,
    columns: &Reader<'_>,
    [count, outer]: [usize; 2],
    first: usize,
    chunks: usize,
    results: &mut [f32],
) {
    let width = results.len() / chunks;
    let mut block = [0.0; COLUMNS];
    for chunk in 0..chunks {
        let mut lanes = [[op.start(); COLUMNS]; LANES];
        for i in chunk * CHUNK..count.min((chunk + 1) * CHUNK) {
            let at = i * outer + first;
            take_one_each(simd, op, columns.read(at..at + width, &mut block), &mut lanes[i % LANES]);
        }
        for column in 0..width {
            let mut own = lanes.map(|lane| lane[column]);
            results[column * chunks + chunk] = fold(simd, op, &mut own);
        }
    }
}

impl Reduce {
    /// What nothing reduces to.
    fn start(self) -> f32 {
        match self {
            Reduce::Sum | Reduce::Mean => 0.0,
            Reduce::Max => f32::NEG_INFINITY,
            Reduce::Min => f32::INFINITY,
        }
    }

    #[inline(always)]
    fn join(self, a: f32, b: f32) -> f32 {
        match self {
            Reduce::Sum | Reduce::Mean => a + b,
            Reduce::Max if a > b || a.is_nan() => a,
            Reduce::Min if a < b || a.is_nan() => a,
            Reduce::Max | Reduce::Min => b,
        }
    }
}

simd! {
    /// Element i joins lane i mod 64.
    fn take(op: Reduce, x: &[f32], lanes: &mut [f32; LANES]) {
        match op {
            Reduce::Sum | Reduce::Mean => each_lane(Reduce::Sum, x, lanes),
            Reduce::Max => each_lane(Reduce::Max, x, lanes),
            Reduce::Min => each_lane(Reduce::Min, x, lanes),
        }
    }

    /// Element i joins the one lane that result i has here.
    fn take_one_each(op: Reduce, x: &[f32], lane: &mut [f32; COLUMNS]) {
        match op {
            Reduce::Sum | Reduce::Mean => join_all(Reduce::Sum, lane, x),
            Reduce::Max => join_all(Reduce::Max, lane, x),
            Reduce::Min => join_all(Reduce::Min, lane, x),
        }
    }

    /// The lanes in halves.
    fn fold(op: Reduce, lanes: &mut [f32; LANES]) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = op.join(lanes[i], lanes[i + half]);
            }
            half /= 2;
        }
        lanes[0]
    }
}

#[inline(always)]
fn each_lane(op: Reduce, x: &[f32], lanes: &mut [f32; LANES]) {
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        join_all(op, lanes, chunk);
    }
    join_all(op, lanes, rest);
}

#[inline(always)]
fn join_all(op: Reduce, lanes: &mut [f32], x: &[f32]) {
    for (lane, &x) in lanes.iter_mut().zip(x) {
        *lane = op.join(*lane, x);
    }
}

fn extreme_backward_cpu(cpu: &Cpu, args: ExtremeBackwardArgs<'_>) -> Result<()> {
    let ExtremeBackwardArgs { x, y, dy, mut dx } = args;
    let count = x.len() / y.len().max(1);
    dispatch!(float x.dtype(), "extreme_backward", T => {
        let (x, y, dy) = (Reader::new(x, cpu.simd())?, y.as_slice::<T>()?, dy.as_slice::<T>()?);
        write_rows(cpu, &mut dx, count, 1, &|row, dx, scratch| {
            let extreme = y[row].to_f32();
            let x = x.read(row * count..(row + 1) * count, scratch);
            dx.fill(0.0);
            if let Some(first) = x.iter().position(|&x| x == extreme || (x.is_nan() && extreme.is_nan())) {
                dx[first] = dy[row].to_f32();
            }
        })
    })
}

fn argmax_cpu(cpu: &Cpu, mut args: ArgmaxArgs<'_>) -> Result<()> {
    let count = args.x.shape().last().copied().unwrap_or(1);
    let group = CHUNK.div_ceil(count);
    let x = Reader::new(args.x, cpu.simd())?;
    cpu.chunks(args.out.as_mut_slice::<i32>()?, group, |task, out| {
        let mut row = cpu.scratch(count);
        for (i, out) in out.iter_mut().enumerate() {
            let start = (task * group + i) * count;
            *out = first_largest(x.read(start..start + count, &mut row)) as i32;
        }
    });
    Ok(())
}

fn first_largest(x: &[f32]) -> usize {
    let mut best = 0;
    for (i, &v) in x.iter().enumerate() {
        if v > x[best] || (v.is_nan() && !x[best].is_nan()) {
            best = i;
        }
    }
    best
}

/// Chunk by chunk to f32, and the chunks' results in the same way, until one chunk is left: that pass makes the result.
fn reduce_cuda(cuda: &Cuda, args: ReduceArgs<'_>) -> Result<()> {
    let ReduceArgs { op, x, kept, out } = args;
    let (outer, count) = outer_and_count(x, kept);
    let partial_op = if op == Reduce::Mean { Reduce::Sum } else { op };
    let (mut x, mut kept, mut chunks) = (x.clone(), kept, count.div_ceil(CHUNK));
    while chunks > 1 {
        let mut partial = x.device().alloc(&[outer, chunks], DType::F32)?;
        reduce_chunks(cuda, partial_op, &x, kept, count, &partial.view())?;
        (x, kept, chunks) = (partial.finish(), 1, chunks.div_ceil(CHUNK));
    }
    reduce_chunks(cuda, op, &x, kept, count, &out)
}

/// Each chunk of the elements of each result to one element of `out`; a mean is the sum divided by `divisor`.
fn reduce_chunks(cuda: &Cuda, op: Reduce, x: &Tensor, kept: usize, divisor: usize, out: &TensorMut<'_>) -> Result<()> {
    let (outer, count) = outer_and_count(x, kept);
    let chunks = count.div_ceil(CHUNK).max(1);
    let columns = results_are_neighbours(x, kept);
    let order: Vec<usize> = if columns { (kept..x.rank()).chain(0..kept).collect() } else { (0..x.rank()).collect() };
    let x = x.permute(&order)?;
    let (types, view) = (format!("{}_{}", x.dtype(), out.dtype()), View::new(&x)?);
    let args = [
        Arg::U32(op as u32),
        cuda::read(&x)?,
        view.arg(),
        cuda::count(outer),
        cuda::count(count),
        Arg::F32(divisor as f32),
        cuda::written(out)?,
    ];
    if columns {
        let blocks = outer.div_ceil(CUDA_COLUMNS) * chunks;
        cuda::start(cuda, "reduce", &format!("reduce_columns_{types}"), blocks, cuda::THREADS, &args)
    } else {
        cuda::over_rows(cuda, "reduce", &format!("reduce_{types}"), outer * chunks, &args)
    }
}

/// `COLUMNS` of reduce.cu: neighbouring results that a block reduces together.
const CUDA_COLUMNS: usize = 32;

fn extreme_backward_cuda(cuda: &Cuda, args: ExtremeBackwardArgs<'_>) -> Result<()> {
    let ExtremeBackwardArgs { x, y, dy, dx } = args;
    let (rows, width, view) = (y.len(), x.len() / y.len().max(1), View::new(x)?);
    let args = [
        cuda::read(x)?,
        view.arg(),
        cuda::read(y)?,
        cuda::read(dy)?,
        cuda::written(&dx)?,
        cuda::count(rows),
        cuda::number(width)?,
    ];
    cuda::over_rows(cuda, "reduce", &format!("extreme_backward_{}", x.dtype()), rows, &args)
}

fn argmax_cuda(cuda: &Cuda, args: ArgmaxArgs<'_>) -> Result<()> {
    let ArgmaxArgs { x, out } = args;
    let (rows, width) = x.dims_rows("argmax")?;
    let view = View::new(x)?;
    let args = [cuda::read(x)?, view.arg(), cuda::written(&out)?, cuda::count(rows), cuda::number(width)?];
    cuda::over_rows(cuda, "reduce", &format!("argmax_{}", x.dtype()), rows, &args)
}
