//! Finished f32 products into C, whatever its dtype.

use half::{bf16, f16};

use super::{Accumulate, Out};
use crate::Float;
use crate::cpu::shared::Shared;
use crate::cpu::{Simd, simd};

impl Out<'_> {
    /// C [m, n] = 0, with rows `ldc` apart.
    pub(super) fn clear(&mut self, simd: Simd, [m, n]: [usize; 2], ldc: usize) {
        let zeros = vec![0.0; n];
        (0..m).for_each(|i| self.store(simd, i * ldc, &zeros, 1.0, Accumulate::Store));
    }

    /// The same C, for a callee.
    pub(super) fn again(&mut self) -> Out<'_> {
        match self {
            Out::F32(c) => Out::F32(c),
            Out::Bf16(c) => Out::Bf16(c),
            Out::F16(c) => Out::F16(c),
        }
    }

    /// C[at..] = alpha `values`, or C[at..] += that.
    pub(super) fn store(&mut self, simd: Simd, at: usize, values: &[f32], alpha: f32, accumulate: Accumulate) {
        let end = at + values.len();
        match self {
            Out::F32(c) => store_f32(simd, &mut c[at..end], values, alpha, accumulate),
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

    /// Rows of `n` elements of an f32 C from `place` on.
    ///
    /// # Safety
    /// Nothing else writes these elements meanwhile.
    pub(super) unsafe fn load(&self, place: [usize; 2], values: &mut [f32], n: usize) {
        let Data::F32(c) = &self.data else { unreachable!("C in 16 bits is added to when it is stored") };
        for (i, values) in values.chunks_exact_mut(n).enumerate() {
            // SAFETY: the caller's.
            values.copy_from_slice(unsafe { c.slice(self.at(place) + i * self.ldc, n) });
        }
    }

    /// Rows of `n` values into C from `place` on, or added to it there.
    ///
    /// # Safety
    /// Nothing else accesses these elements meanwhile.
    pub(super) unsafe fn store(&self, simd: Simd, place: [usize; 2], values: &[f32], n: usize, accumulate: Accumulate) {
        for (i, values) in values.chunks_exact(n).enumerate() {
            let at = self.at(place) + i * self.ldc;
            // SAFETY: the caller's, for each.
            unsafe {
                match &self.data {
                    Data::F32(c) if accumulate == Accumulate::Store => c.slice(at, n).copy_from_slice(values),
                    Data::F32(c) => store_f32(simd, c.slice(at, n), values, 1.0, accumulate),
                    Data::Bf16(c) => store_half(simd, c.slice(at, n), values, 1.0, accumulate),
                    Data::F16(c) => store_half(simd, c.slice(at, n), values, 1.0, accumulate),
                }
            }
        }
    }
}

simd! {
    fn store_f32(c: &mut [f32], values: &[f32], alpha: f32, accumulate: Accumulate) {
        for (c, x) in c.iter_mut().zip(values) {
            *c = if accumulate == Accumulate::Add { alpha.mul_add(*x, *c) } else { alpha * x };
        }
    }
}

/// The sum is formed in f32 and rounded once.
#[inline]
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
        store_f32(simd, wide, values, alpha, accumulate);
        T::narrow(simd, wide, c);
    }
}
