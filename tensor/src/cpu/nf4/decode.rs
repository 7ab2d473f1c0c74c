//! Decoding of 4-bit blocks: the scale goes into the 16 levels once a block, and an element is then one
//! lookup. With AVX-512 the levels are one register and the lookup of 16 or 32 elements one permute.

#[cfg(target_arch = "x86_64")]
use super::super::Level;
use super::Blocks;
use crate::cpu::Simd;
use crate::cpu::convert::bf16_from_f32;
use half::bf16;

/// The levels, or those of one block, times its scale.
type Table<T> = [T; 16];

pub(super) fn decode(simd: Simd, blocks: &Blocks, start: usize, out: &mut [f32]) {
    match simd.level() {
        // SAFETY: a `Simd` of this level is only made after these features were detected.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512 => unsafe { avx512::decode(blocks, start, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::decode(blocks, start, out) },
        _ => decode_with(blocks, start, out, scaled, |scale, codes, out| {
            lookup_pairs(&scaled(blocks.format.levels(), scale), codes, out);
        }),
    }
}

/// As [`decode`], rounded to bf16 once more.
pub(super) fn decode_bf16(simd: Simd, blocks: &Blocks, start: usize, out: &mut [bf16]) {
    match simd.level() {
        // SAFETY: as in `decode`.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512 => unsafe { avx512::decode_bf16(blocks, start, out) },
        _ => decode_with(blocks, start, out, scaled_bf16, |scale, codes, out| {
            lookup_pairs(&scaled_bf16(blocks.format.levels(), scale), codes, out);
        }),
    }
}

/// The levels times the scale.
#[inline(always)]
fn scaled(levels: &Table<f32>, scale: f32) -> Table<f32> {
    levels.map(|level| level * scale)
}

/// As [`scaled`], rounded.
#[inline(always)]
fn scaled_bf16(levels: &Table<f32>, scale: f32) -> Table<bf16> {
    scaled(levels, scale).map(bf16_from_f32)
}

/// Scales that are looked up at a time.
const SCALES: usize = 64;

/// Walks over the blocks that hold `out`. `decode_block` decodes whole bytes that have one scale; `table` makes the elements that a
/// block's codes stand for, for what is less than a byte or than a block.
#[inline(always)]
fn decode_with<T: Copy>(
    blocks: &Blocks,
    start: usize,
    out: &mut [T],
    table: impl Fn(&Table<f32>, f32) -> Table<T>,
    decode_block: impl Fn(f32, &[u8], &mut [T]),
) {
    let Blocks { blocksize, codes, absmax, format } = *blocks;
    let piece = |at: usize, out: &mut [T]| {
        if !out.is_empty() {
            decode_piece(&table(format.levels(), absmax.get(at / blocksize)), codes, at, out);
        }
    };
    let (head, rest) = out.split_at_mut((start.next_multiple_of(blocksize) - start).min(out.len()));
    let first = start.div_ceil(blocksize);
    let (whole, tail) = rest.split_at_mut(rest.len() / blocksize * blocksize);
    piece(start, head);
    piece(first * blocksize + whole.len(), tail);
    let mut scales = [0.0; SCALES];
    for (group, out) in whole.chunks_mut(SCALES * blocksize).enumerate() {
        let first = first + group * SCALES;
        let scales = &mut scales[..out.len() / blocksize];
        absmax.write(first, scales);
        let codes = codes[first * blocksize / 2..].chunks_exact(blocksize / 2);
        for ((out, codes), &scale) in out.chunks_exact_mut(blocksize).zip(codes).zip(&*scales) {
            decode_block(scale, codes, out);
        }
    }
}

/// Decodes elements of one block, which may start at a low nibble and end at a high one.
#[inline(always)]
fn decode_piece<T: Copy>(table: &Table<T>, codes: &[u8], at: usize, out: &mut [T]) {
    let (low, out) = out.split_at_mut(at % 2);
    if let [v] = low {
        *v = table[(codes[at / 2] & 15) as usize];
    }
    let codes = &codes[at.div_ceil(2)..][..out.len().div_ceil(2)];
    let (pairs, high) = out.split_at_mut(out.len() & !1);
    lookup_pairs(table, &codes[..pairs.len() / 2], pairs);
    if let ([v], [.., code]) = (high, codes) {
        *v = table[(code >> 4) as usize];
    }
}

/// `out[2i]` is the level of the high nibble of `codes[i]`, `out[2i + 1]` that of the low one.
#[inline(always)]
fn lookup_pairs<T: Copy>(table: &Table<T>, codes: &[u8], out: &mut [T]) {
    for (pair, code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        *pair = [table[(code >> 4) as usize], table[(code & 15) as usize]];
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Blocks, Table, decode_with, scaled, scaled_bf16};
    use half::bf16;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn decode(blocks: &Blocks, start: usize, out: &mut [f32]) {
        let levels = blocks.format.levels();
        decode_with(blocks, start, out, scaled, |scale, codes, out| {
            // SAFETY: a load of exactly the array's length.
            let table = unsafe { _mm512_mul_ps(_mm512_loadu_ps(levels.as_ptr()), _mm512_set1_ps(scale)) };
            for (codes, out) in codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<32>().0) {
                lookup_32(table, codes, out);
            }
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn decode_bf16(blocks: &Blocks, start: usize, out: &mut [bf16]) {
        let levels = blocks.format.levels();
        decode_with(blocks, start, out, scaled_bf16, |scale, codes, out| {
            let table = table_bf16(levels, scale);
            for (codes, out) in codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<32>().0) {
                lookup_32_bf16(table, codes, out);
            }
        });
    }

    /// [`scaled_bf16`], twice.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    fn table_bf16(levels: &Table<f32>, scale: f32) -> __m512i {
        // The upper half of each of 16 floats, twice.
        const UPPER: [u16; 32] = {
            let mut index = [0; 32];
            let mut i = 0;
            while i < 32 {
                index[i] = (i % 16 * 2 + 1) as u16;
                i += 1;
            }
            index
        };
        // SAFETY: loads of exactly the arrays' lengths.
        let (levels, upper) = unsafe { (_mm512_loadu_ps(levels.as_ptr()), _mm512_loadu_si512(UPPER.as_ptr().cast())) };
        let table = _mm512_mul_ps(levels, _mm512_set1_ps(scale));
        let bits = _mm512_castps_si512(table);
        let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let mut rounded = _mm512_add_epi32(_mm512_add_epi32(bits, last), _mm512_set1_epi32(0x7fff));
        if !scale.is_finite() {
            // No level is larger than 1, so there are NaNs only here.
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(table, table);
            rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x0040_0000));
        }
        _mm512_permutexvar_epi16(upper, rounded)
    }

    /// A permute reads the low five bits of an index only, and the table is there twice: what lies above a nibble may be anything.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    fn lookup_32_bf16(table: __m512i, codes: &[u8; 16], out: &mut [bf16; 32]) {
        // SAFETY: an unaligned load and a store of exactly the arrays' lengths.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
            let nibbles = _mm512_or_si512(_mm512_srli_epi32::<4>(bytes), _mm512_slli_epi32::<16>(bytes));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi16(nibbles, table));
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    fn lookup_32(table: __m512, codes: &[u8; 16], out: &mut [f32; 32]) {
        // SAFETY: unaligned loads and stores of exactly the arrays' lengths.
        unsafe {
            let low = _mm_loadu_si128(codes.as_ptr().cast());
            // A permute reads the low four bits of an index only, so what lies above may be anything.
            let high = _mm_srli_epi16::<4>(low);
            let first = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(high, low));
            let second = _mm512_cvtepu8_epi32(_mm_unpackhi_epi8(high, low));
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(first, table));
            _mm512_storeu_ps(out.as_mut_ptr().add(16), _mm512_permutexvar_ps(second, table));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Blocks, Table, decode_with, scaled};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn decode(blocks: &Blocks, start: usize, out: &mut [f32]) {
        decode_with(blocks, start, out, scaled, |scale, codes, out| {
            let table = scaled(blocks.format.levels(), scale);
            for (codes, out) in codes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<16>().0) {
                lookup_16(&table, codes, out);
            }
        });
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn lookup_16(table: &Table<f32>, codes: &[u8; 8], out: &mut [f32; 16]) {
        let low = _mm_cvtsi64_si128(i64::from_le_bytes(*codes));
        let high = _mm_srli_epi16::<4>(low);
        let nibbles = _mm_unpacklo_epi8(high, low);
        let first = _mm256_cvtepu8_epi32(nibbles);
        let second = _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(nibbles, nibbles));
        // SAFETY: unaligned stores of exactly the array's length.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), lookup_8(table, first));
            _mm256_storeu_ps(out.as_mut_ptr().add(8), lookup_8(table, second));
        }
    }

    /// A permute looks up eight levels by the low three bits; the fourth picks the half.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn lookup_8(table: &Table<f32>, index: __m256i) -> __m256 {
        // SAFETY: unaligned loads of exactly the array's length.
        let (lower, upper) = unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))) };
        let lower = _mm256_permutevar8x32_ps(lower, index);
        let upper = _mm256_permutevar8x32_ps(upper, index);
        let fourth_bit = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
        _mm256_blendv_ps(lower, upper, fourth_bit)
    }
}

#[cfg(test)]
mod tests {
    use crate::cpu::nf4::{Absmax, Blocks, Format};
    use crate::cpu::{Level, Simd};
    use half::bf16;

    /// Scales of all magnitudes, and what is no number, at every level and place.
    #[test]
    fn bf16_is_the_decoded_number_rounded() {
        let scales = [1.0, -0.37, 1e-39, 3e-38, f32::MAX, f32::INFINITY, f32::NAN, 0.0];
        let absmax: Vec<f32> = scales.into_iter().cycle().take(150).collect();
        for (format, blocksize) in [(Format::Nf4, 32), (Format::Nf4, 64), (Format::Fp4, 256)] {
            let codes: Vec<u8> = (0..absmax.len() * blocksize / 2).map(|i| (i * 151 + i / 7) as u8).collect();
            let blocks = Blocks { format, blocksize, codes: &codes, absmax: Absmax::Plain(&absmax) };
            for simd in Level::ALL.into_iter().filter_map(|level| Simd::new(level).ok()) {
                for (start, len) in [(0, 150 * blocksize), (31, 8 * blocksize), (blocksize, 5 * blocksize + 3), (7, 2)]
                {
                    let (mut wide, mut narrow) = (vec![7.0; len], vec![bf16::ONE; len]);
                    blocks.decode(simd, start, &mut wide);
                    blocks.decode_bf16(simd, start, &mut narrow);
                    for (i, (wide, narrow)) in wide.iter().zip(&narrow).enumerate() {
                        assert_eq!(
                            bf16::from_f32(*wide).to_bits(),
                            narrow.to_bits(),
                            "{simd:?} {blocksize} {start}+{i}"
                        );
                    }
                }
            }
        }
    }
}
