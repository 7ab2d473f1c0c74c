//! Products of f32 operands as they lie. A micro-kernel of a matrix product reads the lanes of a step side by side, as many as it
//! has rows; here a step's lanes are a whole row of memory, or a lane's steps are, so that nothing is transposed and a head of 64
//! need not be filled up to 70.
//!
//! Bits: an element is one chain of fused steps, which goes on from C; so it matters neither how rows and keys are cut nor on which
//! level.

#[cfg(target_arch = "x86_64")]
use crate::cpu::Level;
use crate::cpu::Simd;

/// What lanes are filled up to.
pub(super) const LANES: usize = 8;

/// C [m, n] += A B, or C = A B unless `add`, of `k` steps in runs of `run`: step s of run r of lane i of A is
/// `a[i * LANE + r * jump + s * step]`, and rows of B are n apart.
struct Product<'a, const LANE: usize> {
    m: usize,
    k: usize,
    a: &'a [f32],
    step: usize,
    run: usize,
    jump: usize,
    b: &'a [f32],
    ldc: usize,
    add: bool,
}

/// `c` [LANES, nr] = A B, or += that if `add`: steps of A lie one after another, [`LANES`] floats each; those of B are rows of `b`.
pub(super) fn by_steps(simd: Simd, nr: usize, a: &[f32], b: &[f32], c: &mut [f32], add: bool) {
    let k = b.len() / nr;
    Product::<1> { m: LANES, k, a, step: LANES, run: k, jump: 0, b, ldc: nr, add }.run(simd, nr, c);
}

/// `c` [m, nr] += A B, where A lies in strips of `nr` columns, `jump` from one to the next, rows of a strip and of B side by side, and
/// rows of C are `ldc` apart.
pub(super) fn by_strips(simd: Simd, [m, nr]: [usize; 2], a: &[f32], jump: usize, b: &[f32], c: &mut [f32], ldc: usize) {
    let k = b.len() / nr;
    match nr {
        32 => Product::<32> { m, k, a, step: 1, run: nr, jump, b, ldc, add: true }.run(simd, nr, c),
        _ => Product::<16> { m, k, a, step: 1, run: nr, jump, b, ldc, add: true }.run(simd, nr, c),
    }
}

impl<const LANE: usize> Product<'_, LANE> {
    fn run(self, simd: Simd, nr: usize, c: &mut [f32]) {
        let Product { m, k, a, step, run, jump, b, ldc, .. } = self;
        if m == 0 || k == 0 {
            assert!(self.add, "a product of nothing");
            return;
        }
        let last = (m - 1) * LANE + (k - 1) / run * jump + (run.min(k) - 1) * step;
        assert!(last < a.len() && k * nr <= b.len() && (m - 1) * ldc + nr <= c.len(), "attention: operand too short");
        match (simd.level(), nr) {
            // SAFETY: the level proves the instructions; operands are as long as the assertion says.
            #[cfg(target_arch = "x86_64")]
            (level, 32) if level >= Level::Avx512 => unsafe { avx512::run(&self, c) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, 16) => unsafe { avx2::run(&self, c) },
            _ => self.in_order(nr, c),
        }
    }

    /// The same, a row of C at a time.
    fn in_order(&self, nr: usize, c: &mut [f32]) {
        for (i, c) in c.chunks_mut(self.ldc).enumerate().take(self.m) {
            let c = &mut c[..nr];
            if !self.add {
                c.fill(0.0);
            }
            for (kk, b) in self.b.chunks_exact(nr).enumerate().take(self.k) {
                let a = self.a[i * LANE + kk / self.run * self.jump + kk % self.run * self.step];
                c.iter_mut().zip(b).for_each(|(c, b)| *c = a.mul_add(*b, *c));
            }
        }
    }
}

/// Tiles of `$rows` rows (and of half as many, and one) and two registers of `$lanes` floats.
#[cfg(target_arch = "x86_64")]
macro_rules! level {
    ($level:ident, $features:literal, $lanes:literal, $rows:literal,
     $zero:ident, $load:ident, $store:ident, $splat:ident, $fma:ident) => {
        mod $level {
            use super::Product;
            use std::arch::x86_64::*;

            /// # Safety
            /// The level's instructions; operands as [`Product::run`] asserts, with two registers of columns.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn run<const LANE: usize>(p: &Product<LANE>, c: &mut [f32]) {
                // Rows side by side in memory come in whole eights; others in tiles as large as there are registers for.
                let tall = if LANE == 1 { 0 } else { p.m / $rows * $rows };
                let even = tall + (p.m - tall) / ($lanes / 2) * ($lanes / 2);
                // SAFETY: rows i .. i + M <= m of A and C; the caller's operands.
                unsafe {
                    (0..tall).step_by($rows).for_each(|i| tile::<$rows, LANE>(p, i, c));
                    (tall..even).step_by($lanes / 2).for_each(|i| tile::<{ $lanes / 2 }, LANE>(p, i, c));
                    (even..p.m).for_each(|i| tile::<1, LANE>(p, i, c));
                }
            }

            /// Rows `i .. i + M` of C.
            ///
            /// # Safety
            /// As for [`run`]; i + M <= m.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn tile<const M: usize, const LANE: usize>(p: &Product<LANE>, i: usize, c: &mut [f32]) {
                let (mut a, mut b) = (p.a[i * LANE..].as_ptr(), p.b.as_ptr());
                let c = c[i * p.ldc..].as_mut_ptr();
                let mut acc = [[$zero(); 2]; M];
                // SAFETY: M rows of C, and k steps of A's rows and of B (the caller's).
                unsafe {
                    if p.add {
                        for (row, acc) in acc.iter_mut().enumerate() {
                            *acc = [$load(c.add(row * p.ldc)), $load(c.add(row * p.ldc + $lanes))];
                        }
                    }
                    let mut left = p.k;
                    while left > 0 {
                        let (run, next) = (p.run.min(left), a.wrapping_add(p.jump));
                        for _ in 0..run {
                            let columns = [$load(b), $load(b.add($lanes))];
                            for (row, acc) in acc.iter_mut().enumerate() {
                                let a = $splat(*a.add(row * LANE));
                                for (acc, columns) in acc.iter_mut().zip(columns) {
                                    *acc = $fma(a, columns, *acc);
                                }
                            }
                            (a, b) = (a.wrapping_add(p.step), b.add(2 * $lanes));
                        }
                        (a, left) = (next, left - run);
                    }
                    for (row, acc) in acc.into_iter().enumerate() {
                        $store(c.add(row * p.ldc), acc[0]);
                        $store(c.add(row * p.ldc + $lanes), acc[1]);
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
level!(
    avx512,
    "avx512f",
    16,
    14,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps
);
#[cfg(target_arch = "x86_64")]
level!(avx2, "avx2,fma", 8, 6, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps);
