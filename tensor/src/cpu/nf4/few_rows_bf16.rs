//! Products of few rows of bf16 with 4-bit blocks by the dot product of bf16 pairs.
//!
//! The 16 levels are rounded to bf16 once, and a chunk's products are scaled in f32 when they are added up: an element of W is off by at
//! most half a unit of bf16, 2^-9 of it, as it is when its product with the scale is rounded. So the tolerance is that of the other
//! order; the bits are not those of decoding first.
//!
//! 64 codes are 32 bytes. Widened to words, a byte is looked up twice by the permute of a table of 32 bf16, which reads the low five
//! bits of an index: shifted by 4 for the element at an even place, which has the high nibble, and as it is for the next one, whose
//! fifth bit is that neighbour's; so the table holds the levels twice. Rows of x are laid out alike before: 32 even places, then 32 odd ones.

use super::Blocks;
use super::few_rows::{AHEAD, CHUNK, MOST_ROWS, fold_register};
use crate::cpu::convert::avx512::round_bf16;
use crate::cpu::convert::bf16_from_f32;
use crate::cpu::gemm::{Columns, FewRows};
use crate::cpu::scratch::Buffer;
use crate::cpu::{Level, Simd, fetch};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Chunks whose scales are looked up at a time.
const GROUP: usize = 64;

/// The product of few rows with columns of Wᵀ, whose rows are whole blocks of whole chunks. The CPU has AVX-512 BF16.
pub(super) fn columns<'a>(blocks: Blocks<'a>, x: FewRows<'a>) -> Box<dyn Columns + 'a> {
    assert!(x.cpu.simd().level() >= Level::Avx512Bf16 && x.round_bf16);
    let mut ordered = x.cpu.scratch_of(x.rows.len());
    for (x, out) in x.rows.as_chunks::<CHUNK>().0.iter().zip(ordered.as_chunks_mut::<CHUNK>().0) {
        let (even, odd) = out.split_at_mut(CHUNK / 2);
        for ((pair, even), odd) in x.as_chunks::<2>().0.iter().zip(even).zip(odd) {
            // They are rounded already.
            (*even, *odd) = (bf16_from_f32(pair[0]), bf16_from_f32(pair[1]));
        }
    }
    Box::new(Bf16Columns { simd: x.cpu.simd(), blocks, ordered, m: x.m, k: x.k })
}

struct Bf16Columns<'a> {
    simd: Simd,
    blocks: Blocks<'a>,
    /// [m, k]
    ordered: Buffer<bf16>,
    m: usize,
    k: usize,
}

impl Columns for Bf16Columns<'_> {
    fn dot(&self, first: usize, out: &mut [f32]) {
        assert!(self.simd.level() >= Level::Avx512Bf16, "made where it is so");
        let rows = first..first + out.len() / self.m;
        for at in (0..self.m).step_by(MOST_ROWS) {
            // SAFETY: the level proves AVX-512 BF16.
            unsafe {
                match self.m - at {
                    1 => self.dot_rows::<1>(at, rows.clone(), out),
                    2 => self.dot_rows::<2>(at, rows.clone(), out),
                    3 => self.dot_rows::<3>(at, rows.clone(), out),
                    _ => self.dot_rows::<MOST_ROWS>(at, rows.clone(), out),
                }
            }
        }
    }
}

impl Bf16Columns<'_> {
    /// The products of rows `at` to `at + M` of x with `rows` of W.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn dot_rows<const M: usize>(&self, at: usize, rows: Range<usize>, out: &mut [f32]) {
        let k = self.k;
        let x: [&[[bf16; CHUNK]]; M] = std::array::from_fn(|i| self.ordered[(at + i) * k..][..k].as_chunks().0);
        // SAFETY: a load of exactly the 16 levels.
        let levels = unsafe { _mm512_loadu_ps(self.blocks.format.levels().as_ptr()) };
        let table = _mm512_broadcast_i64x4(round_bf16(levels));
        let mut scales = [0.0; GROUP];
        for (row, out) in rows.zip(out.chunks_exact_mut(self.m)) {
            let codes = self.blocks.codes[row * k / 2..][..k / 2].as_chunks().0;
            let mut sums = [_mm512_setzero_ps(); M];
            for (group, codes) in codes.chunks(GROUP).enumerate() {
                let first = group * GROUP;
                let scales = &mut scales[..codes.len()];
                self.write_scales(row * k / CHUNK + first, scales);
                add_group(table, codes, scales, x.map(|x| &x[first..][..codes.len()]), &mut sums);
            }
            for i in 0..M {
                out[at + i] = fold_register(sums[i]);
            }
        }
    }

    /// The scales of chunks `first`, `first + 1`, ..
    #[inline(always)]
    fn write_scales(&self, first: usize, scales: &mut [f32]) {
        let Blocks { blocksize, absmax, .. } = self.blocks;
        if blocksize == CHUNK {
            return absmax.write(first, scales);
        }
        for (chunk, scale) in (first..).zip(scales) {
            *scale = absmax.get(chunk / (blocksize / CHUNK));
        }
    }
}

/// Adds the products of some chunks of W with each of the M rows of `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn add_group<const M: usize>(
    table: __m512i,
    codes: &[[u8; CHUNK / 2]],
    scales: &[f32],
    x: [&[[bf16; CHUNK]]; M],
    sums: &mut [__m512; M],
) {
    // All as long, so that nothing is checked in the loop.
    let n = codes.len();
    let (scales, x) = (&scales[..n], x.map(|x| &x[..n]));
    for chunk in 0..n {
        let codes = &codes[chunk];
        fetch(codes.as_ptr().wrapping_add(AHEAD));
        // SAFETY: a load of exactly the codes.
        let words = _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) });
        let even = as_pairs(_mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(words), table));
        let odd = as_pairs(_mm512_permutexvar_epi16(words, table));
        for i in 0..M {
            let x = x[i][chunk].as_ptr();
            // SAFETY: loads of the first and the last 32 of the 64 elements.
            let (first, last) = unsafe { (_mm512_loadu_si512(x.cast()), _mm512_loadu_si512(x.add(CHUNK / 2).cast())) };
            let products = _mm512_dpbf16_ps(_mm512_setzero_ps(), even, as_pairs(first));
            let products = _mm512_dpbf16_ps(products, odd, as_pairs(last));
            sums[i] = _mm512_fmadd_ps(products, _mm512_set1_ps(scales[chunk]), sums[i]);
        }
    }
}

/// 32 bf16, whose type has no conversion of its own.
#[inline(always)]
fn as_pairs(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, of which any make a value.
    unsafe { std::mem::transmute(x) }
}

#[cfg(test)]
mod tests {
    use crate::cpu::gemm::FewRows;
    use crate::cpu::nf4::{Absmax, Blocks, DYNAMIC_MAP, Format};
    use crate::cpu::{Cpu, Level, Simd};
    use half::bf16;

    /// Sums of products of x with the rounded level times the scale; and a row's bits do not depend on how many there are.
    #[test]
    fn products_are_those_of_rounded_levels() {
        let cpu = Cpu::single(Simd::detect());
        if cpu.simd().level() < Level::Avx512Bf16 {
            return;
        }
        let n = 5;
        for (format, blocksize, k) in
            [(Format::Nf4, 64, 64), (Format::Nf4, 64, 4672), (Format::Fp4, 128, 256), (Format::Nf4, 1024, 2048)]
        {
            let codes: Vec<u8> =
                (0..n * k / 2).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
            let scales: Vec<u8> = (0..n * k / blocksize).map(|i| (i * 37 % 256) as u8).collect();
            let absmax = Absmax::Nested { codes: &scales, absmax: &[0.7, 0.3], map: &DYNAMIC_MAP, offset: 0.1 };
            let blocks = Blocks { format, blocksize, codes: &codes, absmax };
            let rows: Vec<f32> = (0..8 * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 32.0).collect();
            let weight = |row: usize, column: usize| {
                let at = row * k + column;
                let code = codes[at / 2] >> (4 * (1 - at % 2)) & 15;
                let level = bf16::from_f32(format.levels()[usize::from(code)]);
                level.to_f64() * f64::from(absmax.get(at / blocksize))
            };
            let mut alone = Vec::new();
            for m in 1..=8 {
                let x = FewRows { cpu: &cpu, rows: &rows[..m * k], m, k, is_half: true, round_bf16: true };
                let mut got = vec![f32::NAN; (n - 1) * m];
                blocks.few_rows(x).expect("in registers").dot(1, &mut got);
                if m == 1 {
                    alone.clone_from(&got);
                }
                for (j, got) in got.chunks_exact(m).enumerate() {
                    assert_eq!(got[0].to_bits(), alone[j].to_bits());
                    for (x, &got) in rows.chunks_exact(k).zip(got) {
                        let terms = (0..k).map(|i| f64::from(x[i]) * weight(j + 1, i));
                        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                        // A lane adds k / 16 products, and there are four levels of folding and the scale.
                        let tolerance = size * 2f64.powi(-24) * (k as f64 / 16.0 + 6.0);
                        assert!((f64::from(got) - sum).abs() <= tolerance, "{format:?} {k} x {m}: {got}, not {sum}");
                    }
                }
            }
        }
    }
}
