//! Concatenation along one dimension.

use super::copy_into;
use crate::{Error, Result, Tensor, same_device};

/// The tensors of `parts` one after another along `dim`; the other dimensions and the dtype are equal.
///
/// # Errors
/// When they are not, or there are no parts.
pub fn cat(parts: &[Tensor], dim: usize) -> Result<Tensor> {
    let device = same_device("cat", &parts.iter().collect::<Vec<_>>())?;
    let first = &parts[0];
    let mut shape = first.shape().to_vec();
    first.dim(dim)?;
    shape[dim] = 0;
    for part in parts {
        let fits = part.rank() == shape.len()
            && part.dtype() == first.dtype()
            && (0..shape.len()).all(|d| d == dim || part.shape()[d] == shape[d]);
        if !fits {
            let what = format!("{:?} {} after {:?} {}", part.shape(), part.dtype(), first.shape(), first.dtype());
            return Err(Error::shape("cat", what));
        }
        shape[dim] += part.shape()[dim];
    }
    // With `dim` in front, parts lie one after another; the result is seen through the same permutation.
    let mut order: Vec<usize> = (0..shape.len()).collect();
    order.swap(0, dim);
    let front: Vec<usize> = order.iter().map(|&d| shape[d]).collect();
    let mut out = device.alloc(&front, first.dtype())?;
    let row: usize = front[1..].iter().product();
    let mut start = 0;
    for part in parts {
        let part = part.permute(&order)?;
        copy_into(&part, out.view().part(start * row, part.shape())?)?;
        start += part.shape()[0];
    }
    out.finish().permute(&order)
}
