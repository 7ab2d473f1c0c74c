//! Reading and adding at indices along one dimension.

use crate::blocks::TASK;
use crate::cpu::Cpu;
use crate::cuda::{self, Cuda, Flag, View};
use crate::layout::Layout;
use crate::{DType, Element, Error, Result, Tensor, TensorMut, dispatch, kernel, ops, same_device};

/// Arguments of [`GATHER`]: out[.., i, ..] = x[.., index[.., i, ..], ..] along `dim`.
pub struct GatherArgs<'a> {
    /// Shape of `index` but for `dim`, any dtype, contiguous.
    pub x: &'a Tensor,
    /// The dimension.
    pub dim: usize,
    /// Shape of `out`, i32, any layout; the kernel checks it.
    pub index: &'a Tensor,
    /// Any shape, dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub GATHER = "gather", GatherArgs, gather_cpu, gather_cuda);

/// Arguments of [`SCATTER_ADD`]: out[.., index[.., i, ..], ..] += src[.., i, ..] along `dim`.
pub struct ScatterAddArgs<'a> {
    /// The dimension.
    pub dim: usize,
    /// Shape of `out` but for `dim`, i32, any layout; the kernel checks it.
    pub index: &'a Tensor,
    /// Shape of `index`, any float dtype, contiguous.
    pub src: &'a Tensor,
    /// Any shape, f32; read and written.
    pub out: TensorMut<'a>,
}
kernel!(pub SCATTER_ADD = "scatter_add", ScatterAddArgs, scatter_add_cpu, scatter_add_cuda);

/// out[.., i, ..] = x[.., index[.., i, ..], ..] along `dim`: `index` (i32) has the shape of the result, and that of `x`
/// but for `dim`.
///
/// # Errors
/// When shapes do not fit, `index` is not i32, or an index is out of range.
pub fn gather(x: &Tensor, dim: usize, index: &Tensor) -> Result<Tensor> {
    let device = same_device("gather", &[x, index])?;
    check("gather", x.shape(), dim, index)?;
    let x = x.contiguous()?;
    let mut out = device.alloc(index.shape(), x.dtype())?;
    device.run(&GATHER, GatherArgs { x: &x, dim, index, out: out.view() })?;
    Ok(out.finish())
}

/// The entries `ids` (i32, one dimension) of `x` along `dim`.
///
/// # Errors
/// As [`gather`].
pub fn index_select(x: &Tensor, dim: usize, ids: &Tensor) -> Result<Tensor> {
    gather(x, dim, &along("index_select", x.shape(), dim, ids)?)
}

/// `x`, with every element of `src` added at its index along `dim`; `index` has the shape of `src`. Repeated indices
/// add up in f32, in order.
///
/// # Errors
/// When shapes or dtypes do not fit, `index` is not i32, or an index is out of range.
pub fn scatter_add(x: &Tensor, dim: usize, index: &Tensor, src: &Tensor) -> Result<Tensor> {
    let device = same_device("scatter_add", &[x, index, src])?;
    check("scatter_add", x.shape(), dim, index)?;
    if src.shape() != index.shape() || src.dtype() != x.dtype() {
        let what = format!("{:?} of {} at {:?} into {}", src.shape(), src.dtype(), index.shape(), x.dtype());
        return Err(Error::shape("scatter_add", what));
    }
    x.dtype().expect_float("scatter_add")?;
    let src = src.contiguous()?;
    let mut out = device.alloc(x.shape(), DType::F32)?;
    ops::copy_into(x, out.view())?;
    device.run(&SCATTER_ADD, ScatterAddArgs { dim, index, src: &src, out: out.view() })?;
    out.finish().to_dtype(x.dtype())
}

/// `x`, with entry i of `src` along `dim` added to entry `ids[i]`.
///
/// # Errors
/// As [`scatter_add`].
pub fn index_add(x: &Tensor, dim: usize, ids: &Tensor, src: &Tensor) -> Result<Tensor> {
    scatter_add(x, dim, &along("index_add", x.shape(), dim, ids)?, src)
}

/// The index that says `ids` along `dim` for every place of the other dimensions of `shape`: a view.
fn along(op: &str, shape: &[usize], dim: usize, ids: &Tensor) -> Result<Tensor> {
    let [count] = *ids.shape() else {
        return Err(Error::shape(op, format!("takes one dimension of ids, not {:?}", ids.shape())));
    };
    let (mut once, mut all) = (vec![1; shape.len()], shape.to_vec());
    match (once.get_mut(dim), all.get_mut(dim)) {
        (Some(a), Some(b)) => (*a, *b) = (count, count),
        _ => return Err(Error::shape(op, format!("no dimension {dim} in shape {shape:?}"))),
    }
    ids.reshape(&once)?.broadcast_to(&all)
}

fn check(op: &str, shape: &[usize], dim: usize, index: &Tensor) -> Result<()> {
    if index.dtype() != DType::I32 {
        return Err(Error::dtype(op, format!("takes i32 indices, not {}", index.dtype())));
    }
    let others_agree = || (0..shape.len()).all(|d| d == dim || shape[d] == index.shape()[d]);
    if dim >= shape.len() || index.rank() != shape.len() || !others_agree() {
        return Err(Error::shape(op, format!("indices {:?} along dimension {dim} of {shape:?}", index.shape())));
    }
    Ok(())
}

/// The sizes before `dim`, of it, and behind it.
fn around(shape: &[usize], dim: usize) -> [usize; 3] {
    [shape[..dim].iter().product(), shape[dim], shape[dim + 1..].iter().product()]
}

fn stray(op: &str, index: i32, limit: usize) -> Error {
    Error::invalid(format!("{op}: index {index} is not in 0..{limit}"))
}

/// Indices in row-major order.
struct Index<'a> {
    values: &'a [i32],
    layout: Layout,
    limit: usize,
}

impl<'a> Index<'a> {
    /// # Errors
    /// When an index is not below `limit`.
    fn new(op: &str, index: &'a Tensor, limit: usize) -> Result<Self> {
        let index = Index { values: index.span::<i32>()?, layout: index.layout().merged(), limit };
        let first = index.read(0..index.layout.len()).find(|&i| i >= limit);
        match first {
            None => Ok(index),
            Some(i) => Err(stray(op, i as i32, limit)),
        }
    }

    /// The indices of the elements of `range`; a negative one becomes too large.
    fn read(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = usize> {
        self.layout.runs(range).flat_map(move |run| (0..run.len).map(move |i| self.values[run.at(i)] as usize))
    }
}

fn gather_cpu(cpu: &Cpu, mut args: GatherArgs<'_>) -> Result<()> {
    let [_, count, inner] = around(args.index.shape(), args.dim);
    let index = Index::new("gather", args.index, args.x.shape()[args.dim])?;
    dispatch!(any args.x.dtype(), T => {
        let x = args.x.as_slice::<T>()?;
        cpu.chunks(args.out.as_mut_slice::<T>()?, TASK, |task, out| {
            let start = task * TASK;
            for ((at, out), id) in (start..).zip(&mut *out).zip(index.read(start..start + TASK)) {
                *out = x[(at / (count * inner) * index.limit + id) * inner + at % inner];
            }
        });
        Ok(())
    })
}

fn scatter_add_cpu(cpu: &Cpu, mut args: ScatterAddArgs<'_>) -> Result<()> {
    let [_, count, inner] = around(args.index.shape(), args.dim);
    let limit = args.out.shape()[args.dim];
    let index = Index::new("scatter_add", args.index, limit)?;
    dispatch!(float args.src.dtype(), "scatter_add", T => {
        let src = args.src.as_slice::<T>()?;
        // One task adds in order to all that lies behind one entry of the dimensions before `dim`.
        cpu.chunks(args.out.as_mut_slice::<f32>()?, limit * inner, |task, out| {
            let range = task * count * inner..(task + 1) * count * inner;
            for ((at, src), id) in src[range.clone()].iter().enumerate().zip(index.read(range)) {
                out[id * inner + at % inner] += src.to_f32();
            }
        });
        Ok(())
    })
}

fn gather_cuda(cuda: &Cuda, args: GatherArgs<'_>) -> Result<()> {
    let GatherArgs { x, dim, index, out } = args;
    let ([_, count, inner], limit) = (around(index.shape(), dim), x.shape()[dim]);
    let (flag, view) = (Flag::max(x.device())?, View::new(index)?);
    let args = [
        cuda::read(x)?,
        cuda::read(index)?,
        view.arg(),
        cuda::written(&out)?,
        flag.arg(),
        cuda::count(out.len()),
        cuda::number(count)?,
        cuda::number(limit)?,
        cuda::count(inner),
    ];
    cuda::over_threads(cuda, "gather", &format!("gather_b{}", 8 * x.dtype().size()), out.len(), &args)?;
    check_stray(flag, "gather", limit);
    Ok(())
}

fn scatter_add_cuda(cuda: &Cuda, args: ScatterAddArgs<'_>) -> Result<()> {
    let ScatterAddArgs { dim, index, src, out } = args;
    let ([outer, count, inner], limit) = (around(index.shape(), dim), out.shape()[dim]);
    let (flag, view) = (Flag::max(src.device())?, View::new(index)?);
    let args = [
        cuda::read(index)?,
        view.arg(),
        cuda::read(src)?,
        cuda::written(&out)?,
        flag.arg(),
        cuda::count(outer),
        cuda::number(count)?,
        cuda::number(limit)?,
        cuda::count(inner),
    ];
    cuda::over_threads(cuda, "gather", &format!("scatter_add_{}", src.dtype()), outer * inner, &args)?;
    check_stray(flag, "scatter_add", limit);
    Ok(())
}

/// The kernels leave the first index that is not below `limit`.
fn check_stray(flag: Flag, op: &'static str, limit: usize) {
    flag.check(move |word| stray(op, cuda::first_at_fault(word).1, limit));
}
