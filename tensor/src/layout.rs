//! Shapes and strides: where in a storage each element of a tensor lies.

use crate::{Error, Result};
use std::ops::Range;

/// The largest number of dimensions of a tensor.
pub const MAX_RANK: usize = 6;

/// A small inline list, one entry a dimension.
#[derive(Clone, Copy)]
pub struct Dims<T = usize> {
    rank: usize,
    values: [T; MAX_RANK],
}

/// The size of each dimension, outermost first.
pub type Shape = Dims<usize>;

impl<T: Copy + Default> Dims<T> {
    /// # Errors
    /// When there are more than [`MAX_RANK`] dimensions.
    pub fn new(values: &[T]) -> Result<Self> {
        let mut dims = Dims { rank: values.len(), values: [T::default(); MAX_RANK] };
        match dims.values.get_mut(..values.len()) {
            Some(slot) => slot.copy_from_slice(values),
            None => return Err(Error::shape("shape", format!("{} dimensions, at most {MAX_RANK}", values.len()))),
        }
        Ok(dims)
    }
}

impl<T> std::ops::Deref for Dims<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.values[..self.rank]
    }
}

impl<T> std::ops::DerefMut for Dims<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[..self.rank]
    }
}

impl<T: PartialEq> PartialEq for Dims<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Dims<T> {}

impl<T: std::fmt::Debug> std::fmt::Debug for Dims<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

/// The number of elements of `shape`, or an error when it does not fit a `usize`.
pub(crate) fn checked_len(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| isize::try_from(n).is_ok())
        .ok_or_else(|| Error::shape("shape", format!("{shape:?} has too many elements")))
}

/// Shape, strides (in elements; zero where broadcast, negative where flipped) and the first element.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    shape: Shape,
    strides: Dims<isize>,
    offset: usize,
}

impl Layout {
    /// Row-major without gaps, from `offset` elements into the storage.
    pub(crate) fn contiguous(shape: Shape, offset: usize) -> Self {
        let mut strides = Dims { rank: shape.rank, values: [0isize; MAX_RANK] };
        let mut step = 1isize;
        for i in (0..shape.rank).rev() {
            strides[i] = step;
            step *= shape[i].max(1) as isize;
        }
        Layout { shape, strides, offset }
    }

    /// One dimension of `len` neighbours.
    pub(crate) fn flat(len: usize) -> Self {
        let mut shape = Shape { rank: 1, values: [0; MAX_RANK] };
        shape[0] = len;
        Layout::contiguous(shape, 0)
    }

    /// The size of each dimension.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The distance in elements between neighbours along each dimension.
    #[must_use]
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// The position of the first element in the storage.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the elements lie in row-major order without gaps. Strides of dimensions of size 1 do not matter.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1isize;
        for (&d, &s) in self.shape.iter().zip(self.strides.iter()).rev() {
            if d != 1 && s != step {
                return self.is_empty();
            }
            step *= d as isize;
        }
        true
    }

    pub(crate) fn dim(&self, op: &str, dim: usize) -> Result<usize> {
        self.shape
            .get(dim)
            .copied()
            .ok_or_else(|| Error::shape(op, format!("no dimension {dim} in shape {:?}", self.shape)))
    }

    pub(crate) fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        let size = self.dim("narrow", dim)?;
        if start.checked_add(len).is_none_or(|end| end > size) {
            let what = format!("{len} from {start} along dimension {dim} of shape {:?}", self.shape);
            return Err(Error::shape("narrow", what));
        }
        let mut out = *self;
        out.shape[dim] = len;
        if len > 0 {
            out.offset = self.step(dim, start);
        }
        Ok(out)
    }

    pub(crate) fn flip(&self, dim: usize) -> Result<Self> {
        let size = self.dim("flip", dim)?;
        let mut out = *self;
        if size > 1 {
            out.offset = self.step(dim, size - 1);
            out.strides[dim] = -self.strides[dim];
        }
        Ok(out)
    }

    /// The storage position `index` steps along `dim` from the first element.
    fn step(&self, dim: usize, index: usize) -> usize {
        (self.offset as isize + self.strides[dim] * index as isize) as usize
    }

    pub(crate) fn permute(&self, order: &[usize]) -> Result<Self> {
        let rank = self.shape.len();
        let mut seen = [false; MAX_RANK];
        let valid = order.len() == rank && order.iter().all(|&d| d < rank && !std::mem::replace(&mut seen[d], true));
        if !valid {
            return Err(Error::shape("permute", format!("order {order:?} for shape {:?}", self.shape)));
        }
        let mut out = *self;
        for (i, &d) in order.iter().enumerate() {
            out.shape[i] = self.shape[d];
            out.strides[i] = self.strides[d];
        }
        Ok(out)
    }

    pub(crate) fn broadcast_to(&self, shape: &[usize]) -> Result<Self> {
        let target = Shape::new(shape)?;
        checked_len(shape)?;
        let fail = || Error::shape("broadcast", format!("{:?} to {shape:?}", self.shape));
        let lead = shape.len().checked_sub(self.shape.len()).ok_or_else(fail)?;
        let mut strides = Dims::new(&vec![0isize; shape.len()])?;
        for (i, (&d, &s)) in self.shape.iter().zip(self.strides.iter()).enumerate() {
            strides[lead + i] = match d {
                d if d == shape[lead + i] => s,
                1 => 0,
                _ => return Err(fail()),
            };
        }
        Ok(Layout { shape: target, strides, offset: self.offset })
    }

    /// The same elements under another shape, when no copy is needed for it.
    pub(crate) fn reshape(&self, shape: &[usize]) -> Result<Option<Self>> {
        let target = Shape::new(shape)?;
        if checked_len(shape)? != self.len() {
            return Err(Error::shape("reshape", format!("{:?} to {shape:?}", self.shape)));
        }
        if self.is_contiguous() {
            return Ok(Some(Layout::contiguous(target, self.offset)));
        }
        // Match groups of old and new dimensions of equal size; within a group the old ones must be mergeable.
        let old: Vec<(usize, isize)> =
            self.shape.iter().copied().zip(self.strides.iter().copied()).filter(|&(d, _)| d != 1).collect();
        let mut strides = Dims::new(&vec![0isize; shape.len()])?;
        let (mut o, mut n) = (0, 0);
        while n < shape.len() {
            if shape[n] == 1 {
                n += 1;
                continue;
            }
            let (o0, n0) = (o, n);
            let (mut old_size, mut new_size) = (old[o].0, shape[n]);
            while old_size != new_size {
                if old_size < new_size {
                    o += 1;
                    old_size *= old[o].0;
                } else {
                    n += 1;
                    new_size *= shape[n];
                }
            }
            if (o0..o).any(|i| old[i].1 != old[i + 1].1 * old[i + 1].0 as isize) {
                return Ok(None);
            }
            let mut step = old[o].1;
            for i in (n0..=n).rev() {
                strides[i] = step;
                step *= shape[i] as isize;
            }
            (o, n) = (o + 1, n + 1);
        }
        Ok(Some(Layout { shape: target, strides, offset: self.offset }))
    }

    pub(crate) fn squeeze(&self, dim: usize) -> Result<Self> {
        if self.dim("squeeze", dim)? != 1 {
            return Err(Error::shape("squeeze", format!("dimension {dim} of shape {:?} is not 1", self.shape)));
        }
        Ok(self.drop_dim(dim))
    }

    pub(crate) fn drop_dim(&self, dim: usize) -> Self {
        let mut out = *self;
        for i in dim..self.shape.rank - 1 {
            out.shape[i] = self.shape[i + 1];
            out.strides[i] = self.strides[i + 1];
        }
        out.shape.rank -= 1;
        out.strides.rank -= 1;
        out
    }

    pub(crate) fn unsqueeze(&self, dim: usize) -> Result<Self> {
        let rank = self.shape.len();
        if dim > rank {
            return Err(Error::shape("unsqueeze", format!("dimension {dim} of shape {:?}", self.shape)));
        }
        let mut shape = self.shape.to_vec();
        let mut strides = self.strides.to_vec();
        shape.insert(dim, 1);
        strides.insert(dim, 0);
        Ok(Layout { shape: Dims::new(&shape)?, strides: Dims::new(&strides)?, offset: self.offset })
    }

    /// The first `dims` dimensions, at entry 0 of the others.
    pub(crate) fn leading(&self, dims: usize) -> Self {
        let mut out = *self;
        (out.shape.rank, out.strides.rank) = (dims, dims);
        out
    }

    /// The same elements in the same order over as few dimensions as possible: long runs to read.
    pub(crate) fn merged(&self) -> Self {
        let mut out = *self;
        (out.shape.rank, out.strides.rank) = (0, 0);
        for (&size, &stride) in self.shape.iter().zip(self.strides.iter()).filter(|&(&size, _)| size != 1) {
            let rank = out.shape.rank;
            if rank > 0 && out.strides[rank - 1] == stride * size as isize {
                out.shape[rank - 1] *= size;
                out.strides[rank - 1] = stride;
            } else {
                (out.shape.rank, out.strides.rank) = (rank + 1, rank + 1);
                (out.shape[rank], out.strides[rank]) = (size, stride);
            }
        }
        out
    }

    /// Where the elements of `range` (of the row-major order) lie, a run of the innermost dimension at a time.
    pub(crate) fn runs(&self, range: Range<usize>) -> Runs<'_> {
        let (outer, inner) = self.shape.split_at(self.shape.rank.saturating_sub(1));
        let width = inner.first().copied().unwrap_or(1).max(1);
        let mut runs =
            Runs { layout: self, index: [0; MAX_RANK], start: self.offset as isize, skip: 0, left: range.len() };
        runs.skip = range.start % width;
        let mut row = range.start / width;
        for (d, &size) in outer.iter().enumerate().rev() {
            runs.index[d] = row % size.max(1);
            runs.start += self.strides[d] * runs.index[d] as isize;
            row /= size.max(1);
        }
        runs
    }
}

/// See [`Layout::runs`].
pub(crate) struct Runs<'a> {
    layout: &'a Layout,
    /// The indices of the outer dimensions, and where their run starts.
    index: [usize; MAX_RANK],
    start: isize,
    /// Elements of the next run that come before the range.
    skip: usize,
    left: usize,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        if self.left == 0 {
            return None;
        }
        let Layout { shape, strides, .. } = self.layout;
        let outer = shape.len().saturating_sub(1);
        let width = shape.get(outer).copied().unwrap_or(1);
        let stride = strides.get(outer).copied().unwrap_or(1);
        let len = self.left.min(width - self.skip);
        let run = Run { start: (self.start + stride * self.skip as isize) as usize, len, stride };
        (self.left, self.skip) = (self.left - len, 0);
        // Count up like an odometer, the last dimension fastest.
        for d in (0..outer).rev() {
            self.index[d] += 1;
            self.start += strides[d];
            if self.index[d] < shape[d] {
                break;
            }
            self.start -= strides[d] * shape[d] as isize;
            self.index[d] = 0;
        }
        Some(run)
    }
}

/// Neighbours along the innermost dimension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) stride: isize,
}

impl Run {
    /// The storage position of element `i` of this run.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize) -> usize {
        (self.start as isize + i as isize * self.stride) as usize
    }
}

/// The shape that two operands broadcast to, by NumPy's rule.
///
/// # Errors
/// When a dimension differs and neither side is 1.
pub fn broadcast_shape(op: &str, a: &[usize], b: &[usize]) -> Result<Shape> {
    let rank = a.len().max(b.len());
    let mut out = Shape::new(&vec![1; rank])?;
    for i in 0..rank {
        let x = (i + a.len()).checked_sub(rank).map_or(1, |j| a[j]);
        let y = (i + b.len()).checked_sub(rank).map_or(1, |j| b[j]);
        out[i] = match (x, y) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => return Err(Error::shape(op, format!("{a:?} and {b:?} do not broadcast"))),
        };
    }
    Ok(out)
}
