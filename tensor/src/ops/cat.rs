//! Tensors joined along a dimension.

use crate::blocks::Elements;
use crate::cpu::Cpu;
use crate::cuda::{self, Cuda, View};
use crate::{Error, Result, Tensor, TensorMut, dispatch, kernel, same_device};

/// Arguments of [`CAT`]: tensors one after another along a dimension.
pub struct CatArgs<'a> {
    /// Of one dtype and of one shape but for `dim`; any layout.
    pub xs: &'a [Tensor],
    /// The dimension.
    pub dim: usize,
    /// Their dtype and shape, with the sum of their sizes along `dim`.
    pub out: TensorMut<'a>,
}
kernel!(pub CAT = "cat", CatArgs, cat_cpu, cat_cuda);

/// The tensors one after another along `dim`.
///
/// # Errors
/// When there is none, or they differ in dtype, device or in a dimension other than `dim`.
pub fn cat(xs: &[&Tensor], dim: usize) -> Result<Tensor> {
    let device = same_device("cat", xs)?;
    let first = xs[0];
    let fits = |x: &Tensor| {
        let same = |d: usize| d == dim || x.shape()[d] == first.shape()[d];
        x.dtype() == first.dtype() && x.rank() == first.rank() && (0..first.rank()).all(same)
    };
    if dim >= first.rank() || !xs.iter().all(|x| fits(x)) {
        let all: Vec<String> = xs.iter().map(|x| format!("{:?} {}", x.shape(), x.dtype())).collect();
        return Err(Error::shape("cat", format!("{} along dimension {dim}", all.join(", "))));
    }
    let mut shape = first.shape().to_vec();
    let joined = xs.iter().try_fold(0usize, |sum, x| sum.checked_add(x.shape()[dim]));
    shape[dim] = joined.ok_or_else(|| Error::shape("cat", format!("more than all memory along dimension {dim}")))?;
    let xs: Vec<Tensor> = xs.iter().map(|&x| x.clone()).collect();
    let mut out = device.alloc(&shape, first.dtype())?;
    device.run(&CAT, CatArgs { xs: &xs, dim, out: out.view() })?;
    Ok(out.finish())
}

/// The tensors, of one shape, along a new dimension before `dim`.
///
/// # Errors
/// As [`cat`].
pub fn stack(xs: &[&Tensor], dim: usize) -> Result<Tensor> {
    let xs: Vec<Tensor> = xs.iter().map(|x| x.unsqueeze(dim)).collect::<Result<_>>()?;
    cat(&xs.iter().collect::<Vec<_>>(), dim)
}

/// `x` with `before` zeros in front of it and `after` behind it along `dim`: the gradient of a narrowed view.
///
/// # Errors
/// When there is no such dimension.
pub fn pad(x: &Tensor, dim: usize, before: usize, after: usize) -> Result<Tensor> {
    x.dim(dim)?;
    let zero = Tensor::zeros(&[], x.dtype(), x.device())?;
    let zeros = |len: usize| {
        let mut shape = x.shape().to_vec();
        shape[dim] = len;
        zero.broadcast_to(&shape)
    };
    cat(&[&zeros(before)?, x, &zeros(after)?], dim)
}

fn cat_cpu(cpu: &Cpu, mut args: CatArgs<'_>) -> Result<()> {
    // The result is rows of everything behind the dimensions before `dim`; each input has a piece of every row.
    let inner: usize = args.out.shape()[args.dim + 1..].iter().product();
    let row = args.out.shape()[args.dim] * inner;
    dispatch!(any args.out.dtype(), T => {
        let pieces = args.xs.iter().map(|x| Ok((Elements::<T>::new(x)?, x.shape()[args.dim] * inner)));
        let pieces: Vec<_> = pieces.collect::<Result<_>>()?;
        cpu.chunks(args.out.as_mut_slice::<T>()?, row, |i, mut out| {
            for (x, len) in &pieces {
                let (piece, rest) = out.split_at_mut(*len);
                x.fill(i * len, piece, |v| v);
                out = rest;
            }
        });
        Ok(())
    })
}

/// One launch a tensor, to its piece of every row.
fn cat_cuda(cuda: &Cuda, args: CatArgs<'_>) -> Result<()> {
    let CatArgs { xs, dim, out } = args;
    let inner: usize = out.shape()[dim + 1..].iter().product();
    let (entry, row) = (format!("cat_b{}", 8 * out.dtype().size()), out.shape()[dim] * inner);
    let mut start = 0;
    for x in xs {
        let (view, piece) = (View::new(x)?, x.shape()[dim] * inner);
        let args = [
            cuda::read(x)?,
            view.arg(),
            cuda::written(&out)?,
            cuda::count(x.len()),
            cuda::count(piece),
            cuda::count(row),
            cuda::count(start),
        ];
        cuda::over_threads(cuda, "cat", &entry, x.len(), &args)?;
        start += piece;
    }
    Ok(())
}
