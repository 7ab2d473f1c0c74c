//! Finished f32 products into C, whatever its dtype.

use half::{bf16, f16};

use super::{Accumulate, Options, Out};
use crate::cpu::Simd;
use crate::cpu::shared::Shared;
use crate::dtype::Float;

impl Out<'_> {
    /// C[at..] = alpha `values`, or C[at..] += that.
    pub(super) fn store(&mut self, simd: Simd, at: usize, values: &[f32], alpha: f32, accumulate: Accumulate) {
        let end = at + values.len();
        match self {
            Out::F32(c) => store_f32(&mut c[at..end], values, alpha, accumulate),
            Out::Bf16(c) => store_half(simd, &mut c[at..end], values, alpha, accumulate),
            Out::F16(c) => store_half(simd, &mut c[at..end], values, alpha, accumulate),
        }
    }
}

/// A rectangle of C that tasks write parts of. Places in it are rows and columns of C.
pub(super) struct Target<'a> {
    data: Data<'a>,
    ldc: usize,
    /// The row and the column that lie at the start of the data.
    first: [usize; 2],
}

enum Data<'a> {
    F32(Shared<'a, f32>),
    Bf16(Shared<'a, bf16>),
    F16(Shared<'a, f16>),
}

impl<'a> Target<'a> {
    /// `out`, whose rows are `ldc` apart and which starts with row and column `first`.
    pub(super) fn new(out: Out<'a>, ldc: usize, first: [usize; 2]) -> Self {
        let data = match out {
            Out::F32(c) => Data::F32(Shared::new(c)),
            Out::Bf16(c) => Data::Bf16(Shared::new(c)),
            Out::F16(c) => Data::F16(Shared::new(c)),
        };
        Target { data, ldc, first }
    }

    /// Whether products can be summed up in place.
    pub(super) fn is_f32(&self) -> bool {
        matches!(self.data, Data::F32(_))
    }

    fn at(&self, [row, column]: [usize; 2]) -> usize {
        (row - self.first[0]) * self.ldc + column - self.first[1]
    }

    /// The first element of a rectangle of f32, and the distance between its rows; `None` for other types. To write through it is
    /// as unsafe as [`Target::store`].
    pub(super) fn rectangle(&self, place: [usize; 2], [m, n]: [usize; 2]) -> Option<(*mut f32, usize)> {
        match &self.data {
            Data::F32(c) => Some((c.rectangle(self.at(place), m, n, self.ldc), self.ldc)),
            _ => None,
        }
    }

    /// `values` times alpha into C from `place` on along its row, or added to it there.
    ///
    /// # Safety
    /// Nothing else accesses these elements meanwhile.
    pub(super) unsafe fn store(&self, simd: Simd, place: [usize; 2], values: &[f32], options: Options) {
        let (at, len, Options { alpha, accumulate, .. }) = (self.at(place), values.len(), options);
        // SAFETY: the caller's, for each.
        unsafe {
            match &self.data {
                Data::F32(c) => store_f32(c.slice(at, len), values, alpha, accumulate),
                Data::Bf16(c) => store_half(simd, c.slice(at, len), values, alpha, accumulate),
                Data::F16(c) => store_half(simd, c.slice(at, len), values, alpha, accumulate),
            }
        }
    }

    /// C [m, n] = 0.
    pub(super) fn clear(self, simd: Simd, m: usize, n: usize) {
        let zeros = vec![0.0; n];
        for i in 0..m {
            // SAFETY: `self` is the only one left.
            unsafe { self.store(simd, [i, 0], &zeros, Options::default()) };
        }
    }
}

fn store_f32(c: &mut [f32], values: &[f32], alpha: f32, accumulate: Accumulate) {
    for (c, x) in c.iter_mut().zip(values) {
        *c = if accumulate == Accumulate::Add { alpha.mul_add(*x, *c) } else { alpha * x };
    }
}

/// The sum is formed in f32 and rounded once.
fn store_half<T: Float>(simd: Simd, c: &mut [T], values: &[f32], alpha: f32, accumulate: Accumulate) {
    if alpha == 1.0 && accumulate == Accumulate::Store {
        return T::narrow(simd, values, c);
    }
    let mut wide = [0.0; 64];
    for (c, values) in c.chunks_mut(wide.len()).zip(values.chunks(wide.len())) {
        let wide = &mut wide[..c.len()];
        if accumulate == Accumulate::Add {
            T::widen(simd, c, wide);
        }
        store_f32(wide, values, alpha, accumulate);
        T::narrow(simd, wide, c);
    }
}
