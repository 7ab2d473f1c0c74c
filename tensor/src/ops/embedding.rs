//! Embedding: the rows of a table that ids choose.

use crate::cpu::Cpu;
use crate::cpu::reduce;
use crate::cuda::{self, Cuda, Flag};
use crate::{DType, Error, Float, Result, Tensor, TensorMut, dispatch, kernel, same_device};

/// Arguments of [`EMBEDDING`]: the rows of a table that ids choose.
pub struct EmbeddingArgs<'a> {
    /// [vocabulary, d], any float dtype, contiguous.
    pub weight: &'a Tensor,
    /// `[tokens]`, i32, contiguous: rows of the table, which the kernel checks.
    pub ids: &'a Tensor,
    /// [tokens, d], any float dtype.
    pub out: TensorMut<'a>,
}
kernel!(pub EMBEDDING = "embedding", EmbeddingArgs, forward_cpu, forward_cuda);

/// Arguments of [`EMBEDDING_BACKWARD`]: row i of dy is added to row `ids[i]` of out.
pub struct EmbeddingBackwardArgs<'a> {
    /// [tokens, d], any float dtype, contiguous.
    pub dy: &'a Tensor,
    /// `[tokens]`, i32, contiguous: rows of the table, which the kernel checks.
    pub ids: &'a Tensor,
    /// [vocabulary, d], f32; read and written.
    pub out: TensorMut<'a>,
}
kernel!(pub EMBEDDING_BACKWARD = "embedding_backward", EmbeddingBackwardArgs, backward_cpu, backward_cuda);

/// Into how many ranges of table rows the scatter is cut.
const RANGES: usize = 64;

/// Row `ids[i]` of `weight` [vocabulary, d] for each i, as `dtype`: [ids, d]. `ids` is a vector of i32.
///
/// # Errors
/// When an id is not in the table, shapes or dtypes do not fit, or devices differ.
pub fn embedding(weight: &Tensor, ids: &Tensor, dtype: DType) -> Result<Tensor> {
    let device = same_device("embedding", &[weight, ids])?;
    let (_, width) = weight.dims2("embedding")?;
    let tokens = check_ids(ids)?;
    let mut out = device.alloc(&[tokens, width], dtype)?;
    let (weight, ids) = (weight.contiguous()?, ids.contiguous()?);
    device.run(&EMBEDDING, EmbeddingArgs { weight: &weight, ids: &ids, out: out.view() })?;
    Ok(out.finish())
}

/// Adds the gradient of [`embedding`] with respect to the weight to `out` [vocabulary, d] of f32: row i of `dy` to row
/// `ids[i]`, in the order of the ids.
///
/// # Errors
/// As [`embedding`].
pub fn embedding_backward(dy: &Tensor, ids: &Tensor, out: TensorMut<'_>) -> Result<()> {
    let device = same_device("embedding_backward", &[dy, ids])?;
    let (rows, width) = dy.dims2("embedding_backward")?;
    let tokens = check_ids(ids)?;
    if rows != tokens || out.shape().len() != 2 || out.shape()[1] != width || out.device() != device {
        let shapes = format!("gradient {:?} of {tokens} ids into {:?}", dy.shape(), out.shape());
        return Err(Error::shape("embedding_backward", shapes));
    }
    let (dy, ids) = (dy.contiguous()?, ids.contiguous()?);
    device.run(&EMBEDDING_BACKWARD, EmbeddingBackwardArgs { dy: &dy, ids: &ids, out })
}

fn check_ids(ids: &Tensor) -> Result<usize> {
    match *ids.shape() {
        [tokens] if ids.dtype() == DType::I32 => Ok(tokens),
        ref shape => {
            Err(Error::shape("embedding", format!("ids are a vector of i32, not {shape:?} of {}", ids.dtype())))
        }
    }
}

/// The error about an id that is no row of a table of `vocabulary` rows.
#[must_use]
pub fn stray_id(id: i32, index: usize, vocabulary: usize) -> Error {
    Error::invalid(format!("embedding: id {id} at index {index} is not in a vocabulary of {vocabulary}"))
}

/// The ids as row numbers of a table of `vocabulary` rows.
fn rows_of(ids: &Tensor, vocabulary: usize) -> Result<Vec<usize>> {
    let row = |(i, &id): (usize, &i32)| {
        usize::try_from(id).ok().filter(|&id| id < vocabulary).ok_or_else(|| stray_id(id, i, vocabulary))
    };
    ids.as_slice::<i32>()?.iter().enumerate().map(row).collect()
}

fn forward_cpu(cpu: &Cpu, mut args: EmbeddingArgs<'_>) -> Result<()> {
    let (vocabulary, width) = args.weight.dims2("embedding")?;
    let rows = rows_of(args.ids, vocabulary)?;
    dispatch!(float args.weight.dtype(), "embedding", W => dispatch!(float args.out.dtype(), "embedding", T => {
        gather::<W, T>(cpu, args.weight.as_slice()?, &rows, width, args.out.as_mut_slice()?);
        Ok(())
    }))
}

fn gather<W: Float, T: Float>(cpu: &Cpu, weight: &[W], rows: &[usize], width: usize, out: &mut [T]) {
    let simd = cpu.simd();
    cpu.chunks(out, width, |i, out| {
        let mut wide = Vec::new();
        T::narrow(simd, W::as_f32(simd, &weight[rows[i] * width..][..width], &mut wide), out);
    });
}

fn backward_cpu(cpu: &Cpu, mut args: EmbeddingBackwardArgs<'_>) -> Result<()> {
    let (vocabulary, width) = (args.out.shape()[0], args.out.shape()[1]);
    let rows = rows_of(args.ids, vocabulary)?;
    dispatch!(float args.dy.dtype(), "embedding_backward", T => {
        scatter::<T>(cpu, args.dy.as_slice()?, &rows, width, args.out.as_mut_slice()?);
        Ok(())
    })
}

/// Each task owns a range of table rows and looks through all ids for its own, so that every row is added to in the
/// order of the ids.
fn scatter<T: Float>(cpu: &Cpu, dy: &[T], rows: &[usize], width: usize, out: &mut [f32]) {
    let (simd, len) = (cpu.simd(), (out.len() / width.max(1)).div_ceil(RANGES) * width);
    cpu.chunks(out, len, |i, out| {
        let mut wide = Vec::new();
        let first = i * len / width;
        let own = first..first + out.len() / width;
        for (&row, dy) in rows.iter().zip(dy.chunks_exact(width)).filter(|(row, _)| own.contains(row)) {
            let dy = T::as_f32(simd, dy, &mut wide);
            reduce::axpy(simd, 1.0, dy, &mut out[(row - first) * width..][..width]);
        }
    });
}

fn forward_cuda(cuda: &Cuda, args: EmbeddingArgs<'_>) -> Result<()> {
    let EmbeddingArgs { weight, ids, out } = args;
    let (vocabulary, width) = weight.dims2("embedding")?;
    let stray = Flag::max(ids.device())?;
    let entry = format!("embedding_{}_{}", weight.dtype(), out.dtype());
    let args = [
        cuda::read(weight)?,
        cuda::read(ids)?,
        cuda::written(&out)?,
        stray.arg(),
        cuda::number(vocabulary)?,
        cuda::number(width)?,
    ];
    cuda::start(cuda, "embedding", &entry, ids.len(), cuda::THREADS, &args)?;
    check_stray_ids(stray, vocabulary);
    Ok(())
}

fn backward_cuda(cuda: &Cuda, args: EmbeddingBackwardArgs<'_>) -> Result<()> {
    let EmbeddingBackwardArgs { dy, ids, out } = args;
    let (vocabulary, width) = (out.shape()[0], out.shape()[1]);
    let stray = Flag::max(ids.device())?;
    let args = [
        cuda::read(dy)?,
        cuda::read(ids)?,
        cuda::written(&out)?,
        stray.arg(),
        cuda::number(ids.len())?,
        cuda::number(vocabulary)?,
        cuda::number(width)?,
    ];
    let entry = format!("embedding_backward_{}", dy.dtype());
    cuda::start(cuda, "embedding", &entry, ids.len(), cuda::THREADS, &args)?;
    check_stray_ids(stray, vocabulary);
    Ok(())
}

/// After the launch of a kernel that leaves the first id outside of a table of `vocabulary` rows in a [`Flag::max`]: that is
/// the device's error, as [`Flag::check`] says.
pub fn check_stray_ids(flag: Flag, vocabulary: usize) {
    flag.check(move |word| {
        let (index, id) = cuda::first_at_fault(word);
        stray_id(id, index, vocabulary)
    });
}
