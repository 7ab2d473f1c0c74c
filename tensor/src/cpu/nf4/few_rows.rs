//! Products of few rows with 4-bit blocks, decoded in registers. Where the CPU multiplies pairs of bf16 and they are to be rounded to that,
//! [`few_rows_bf16`] does it; here are the others, with the bits of decoding first (`gemm/rows.rs`), whose 64 lanes
//! are kept, an element's lane being its place modulo 64.
//!
//! 64 codes are 16 words of 16 bits. Widened, a word's four codes are looked up by the permute of a table of 16 floats, which reads the
//! low four bits of an index: shifted by 0, 4, 8 and 12. So register j has elements 4 i + [1, 0, 3, 2][j] of the 64, as two elements
//! lie in a byte with the first in the high nibble, and rows of x are laid out alike before.

use super::{Blocks, few_rows_bf16};
use crate::cpu::convert::avx512::round_bf16;
use crate::cpu::gemm::{Columns, FewRows};
use crate::cpu::scratch::Buffer;
use crate::cpu::{Level, Simd, fetch};
use std::arch::x86_64::*;
use std::ops::Range;

/// Codes that are looked up together.
pub(super) const CHUNK: usize = 64;
/// Which of four neighbours each register has.
const ORDER: [usize; 4] = [1, 0, 3, 2];
/// Rows of x that are multiplied at once.
pub(super) const MOST_ROWS: usize = 4;
/// How far ahead memory is asked for.
pub(super) const AHEAD: usize = 2048;

/// The product of few rows with columns of Wᵀ, where the CPU has AVX-512 and rows of W are whole blocks of whole chunks.
#[must_use]
pub(super) fn columns<'a>(blocks: Blocks<'a>, x: FewRows<'a>) -> Option<Box<dyn Columns + 'a>> {
    let whole = blocks.blocksize.is_multiple_of(CHUNK) && x.k.is_multiple_of(blocks.blocksize) && x.k > 0;
    if x.cpu.simd().level() < Level::Avx512 || !whole {
        return None;
    }
    if x.round_bf16 && x.cpu.simd().level() >= Level::Avx512Bf16 {
        return Some(few_rows_bf16::columns(blocks, x));
    }
    let mut ordered = x.cpu.scratch(x.rows.len());
    for (x, out) in x.rows.as_chunks::<CHUNK>().0.iter().zip(ordered.as_chunks_mut::<CHUNK>().0) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = x[i % 16 * 4 + ORDER[i / 16]];
        }
    }
    Some(Box::new(FourBitColumns { simd: x.cpu.simd(), blocks, ordered, m: x.m, k: x.k, round_bf16: x.round_bf16 }))
}

struct FourBitColumns<'a> {
    simd: Simd,
    blocks: Blocks<'a>,
    /// [m, k]
    ordered: Buffer,
    m: usize,
    k: usize,
    round_bf16: bool,
}

impl Columns for FourBitColumns<'_> {
    fn dot(&self, first: usize, out: &mut [f32]) {
        assert!(self.simd.level() >= Level::Avx512, "made where it is so");
        let rows = first..first + out.len() / self.m;
        for at in (0..self.m).step_by(MOST_ROWS) {
            // SAFETY: the level proves AVX-512.
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

impl FourBitColumns<'_> {
    /// The products of rows `at` to `at + M` of x with `rows` of W.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn dot_rows<const M: usize>(&self, at: usize, rows: Range<usize>, out: &mut [f32]) {
        let (k, Blocks { blocksize, absmax, .. }) = (self.k, self.blocks);
        let x = &self.ordered[at * k..][..M * k];
        // SAFETY: a load of exactly the 16 levels.
        let levels = unsafe { _mm512_loadu_ps(self.blocks.format.levels().as_ptr()) };
        for (row, out) in rows.zip(out.chunks_exact_mut(self.m)) {
            let codes = &self.blocks.codes[row * k / 2..][..k / 2];
            let mut sums = [[_mm512_setzero_ps(); 4]; M];
            for (block, codes) in codes.chunks_exact(blocksize / 2).enumerate() {
                let scale = absmax.get(row * (k / blocksize) + block);
                let mut table = _mm512_mul_ps(levels, _mm512_set1_ps(scale));
                if self.round_bf16 {
                    table = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(round_bf16(table))));
                }
                for (chunk, codes) in codes.as_chunks::<{ CHUNK / 2 }>().0.iter().enumerate() {
                    fetch(codes.as_ptr().wrapping_add(AHEAD));
                    add_chunk(table, codes, x, k, block * blocksize + chunk * CHUNK, &mut sums);
                }
            }
            for i in 0..M {
                out[at + i] = fold(&sums[i]);
            }
        }
    }
}

/// Adds 64 products of each of the M rows of `x`, from its element `start` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn add_chunk<const M: usize>(
    table: __m512,
    codes: &[u8; CHUNK / 2],
    x: &[f32],
    k: usize,
    start: usize,
    sums: &mut [[__m512; 4]; M],
) {
    // SAFETY: a load of exactly the codes.
    let words = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) });
    let weights = [
        _mm512_permutexvar_ps(words, table),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(words), table),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<8>(words), table),
        _mm512_permutexvar_ps(_mm512_srli_epi32::<12>(words), table),
    ];
    for i in 0..M {
        let x = &x[i * k + start..][..CHUNK];
        for j in 0..4 {
            // SAFETY: a load of 16 of the 64 elements.
            let x = unsafe { _mm512_loadu_ps(x.as_ptr().add(16 * j)) };
            sums[i][j] = _mm512_fmadd_ps(x, weights[j], sums[i][j]);
        }
    }
}

/// The 64 lanes in halves: those of a register first, which are four apart, and then the registers.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold(sums: &[__m512; 4]) -> f32 {
    let [b, a, d, c] = [fold_register(sums[0]), fold_register(sums[1]), fold_register(sums[2]), fold_register(sums[3])];
    (a + c) + (b + d)
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn fold_register(sums: __m512) -> f32 {
    let eight = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[cfg(test)]
mod tests {
    use crate::cpu::gemm::FewRows;
    use crate::cpu::nf4::{Absmax, Blocks, Format};
    use crate::cpu::reduce::dot;
    use crate::cpu::{Cpu, Level, Simd};
    use half::bf16;

    /// The bits of decoding, and rounding, first.
    #[test]
    fn has_the_bits_of_decoded_weights() {
        let simds = [Level::Avx512, Level::Portable].into_iter().filter_map(|level| Simd::new(level).ok());
        let cpu = Cpu::single(simds.into_iter().next().expect("portable"));
        for (format, blocksize, k) in
            [(Format::Nf4, 64, 64), (Format::Nf4, 64, 576), (Format::Fp4, 128, 256), (Format::Nf4, 1024, 2048)]
        {
            for m in 1..=8 {
                let n = 5;
                let codes: Vec<u8> =
                    (0..n * k / 2).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
                let absmax: Vec<f32> = (0..n * k / blocksize).map(|i| ((i % 17) as f32 - 3.0) / 7.0).collect();
                let rows: Vec<f32> = (0..m * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 32.0).collect();
                let blocks = Blocks { format, blocksize, codes: &codes, absmax: Absmax::Plain(&absmax) };
                for round_bf16 in [false, true] {
                    let x = FewRows { cpu: &cpu, rows: &rows, m, k, is_half: round_bf16, round_bf16 };
                    let Some(columns) = blocks.few_rows(x) else {
                        assert!(cpu.simd().level() < Level::Avx512, "{cpu:?} decodes in registers");
                        continue;
                    };
                    let mut got = vec![f32::NAN; (n - 1) * m];
                    columns.dot(1, &mut got);
                    for (j, got) in got.chunks_exact(m).enumerate() {
                        let mut weights = vec![0.0; k];
                        blocks.decode(cpu.simd(), (j + 1) * k, &mut weights);
                        if round_bf16 {
                            weights.iter_mut().for_each(|w| *w = bf16::from_f32(*w).to_f32());
                        }
                        for (x, got) in rows.chunks_exact(k).zip(got) {
                            assert_eq!(got.to_bits(), dot(cpu.simd(), x, &weights).to_bits(), "{format:?} {k} x {m}");
                        }
                    }
                }
            }
        }
    }
}
