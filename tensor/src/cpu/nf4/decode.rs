//! Decoding of 4-bit blocks: the scale goes into the 16 levels once a block, and an element is then one
//! lookup. With AVX-512 the levels are one register and the lookup of 16 elements one permute.

#[cfg(target_arch = "x86_64")]
use super::super::Level;
use super::Blocks;
use crate::cpu::Simd;
use crate::cpu::convert::bf16_from_f32;
use half::bf16;

/// The levels of one block, times its scale.
type Table<T> = [T; 16];

pub(super) fn decode(simd: Simd, blocks: &Blocks, start: usize, out: &mut [f32]) {
    match simd.level() {
        // SAFETY: a `Simd` of this level is only made after these features were detected.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512 => unsafe { avx512::decode(blocks, start, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::decode(blocks, start, out) },
        _ => decode_with(blocks, start, out, scaled, lookup_pairs),
    }
}

/// As [`decode`], rounded to bf16 once more.
pub(super) fn decode_bf16(simd: Simd, blocks: &Blocks, start: usize, out: &mut [bf16]) {
    match simd.level() {
        // SAFETY: as in `decode`.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512 => unsafe { avx512::decode_bf16(blocks, start, out) },
        _ => decode_with(blocks, start, out, |levels, scale| scaled(levels, scale).map(bf16_from_f32), lookup_pairs),
    }
}

/// The levels times the scale.
#[inline(always)]
fn scaled(levels: &Table<f32>, scale: f32) -> Table<f32> {
    levels.map(|level| level * scale)
}

/// Walks over the blocks that hold `out`; `table` makes the elements that a block's codes stand for, `lookup` decodes whole bytes of
/// one block.
#[inline(always)]
fn decode_with<T: Copy>(
    blocks: &Blocks,
    start: usize,
    out: &mut [T],
    table: impl Fn(&Table<f32>, f32) -> Table<T>,
    lookup: impl Fn(&Table<T>, &[u8], &mut [T]),
) {
    let shift = blocks.blocksize.trailing_zeros();
    let mut at = start;
    let mut rest = out;
    while !rest.is_empty() {
        let block = at >> shift;
        let end = (block + 1) << shift;
        let (piece, after) = rest.split_at_mut((end - at).min(rest.len()));
        let table = table(blocks.format.levels(), blocks.absmax.get(block));
        at += piece.len();
        decode_piece(&table, blocks.codes, at - piece.len(), piece, &lookup);
        rest = after;
    }
}

/// Decodes elements of one block, which may start at a low nibble and end at a high one.
#[inline(always)]
fn decode_piece<T: Copy>(
    table: &Table<T>,
    codes: &[u8],
    at: usize,
    out: &mut [T],
    lookup: &impl Fn(&Table<T>, &[u8], &mut [T]),
) {
    let (low, out) = out.split_at_mut(at % 2);
    if let [v] = low {
        *v = table[(codes[at / 2] & 15) as usize];
    }
    let codes = &codes[at.div_ceil(2)..][..out.len().div_ceil(2)];
    let (pairs, high) = out.split_at_mut(out.len() & !1);
    lookup(table, &codes[..pairs.len() / 2], pairs);
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
    use super::{Blocks, Table, decode_with, lookup_pairs, scaled};
    use crate::cpu::convert::avx512::round_bf16;
    use half::bf16;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn decode(blocks: &Blocks, start: usize, out: &mut [f32]) {
        decode_with(blocks, start, out, scaled, |table, codes, out| {
            let (codes, codes_rest) = codes.as_chunks::<16>();
            let (out, out_rest) = out.as_chunks_mut::<32>();
            for (codes, out) in codes.iter().zip(out) {
                lookup_32(table, codes, out);
            }
            lookup_pairs(table, codes_rest, out_rest);
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn decode_bf16(blocks: &Blocks, start: usize, out: &mut [bf16]) {
        decode_with(
            blocks,
            start,
            out,
            |levels, scale| scaled_bf16(levels, scale),
            |table, codes, out| {
                let (codes, codes_rest) = codes.as_chunks::<16>();
                let (out, out_rest) = out.as_chunks_mut::<32>();
                for (codes, out) in codes.iter().zip(out) {
                    lookup_32_bf16(table, codes, out);
                }
                lookup_pairs(table, codes_rest, out_rest);
            },
        );
    }

    /// [`super::bf16_from_f32`] of the levels times the scale.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    fn scaled_bf16(levels: &Table<f32>, scale: f32) -> Table<bf16> {
        let mut table = [bf16::ZERO; 16];
        // SAFETY: an unaligned load and a store of exactly the arrays' lengths.
        unsafe {
            let x = _mm512_mul_ps(_mm512_loadu_ps(levels.as_ptr()), _mm512_set1_ps(scale));
            _mm256_storeu_si256(table.as_mut_ptr().cast(), round_bf16(x));
        }
        table
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    fn lookup_32_bf16(table: &Table<bf16>, codes: &[u8; 16], out: &mut [bf16; 32]) {
        // SAFETY: unaligned loads and stores of exactly the arrays' lengths.
        unsafe {
            let table = _mm512_broadcast_i64x4(_mm256_loadu_si256(table.as_ptr().cast()));
            let low = _mm_loadu_si128(codes.as_ptr().cast());
            // A permute reads the low five bits of an index only, and the table is there twice.
            let high = _mm_srli_epi16::<4>(low);
            let nibbles = _mm256_set_m128i(_mm_unpackhi_epi8(high, low), _mm_unpacklo_epi8(high, low));
            let found = _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(nibbles), table);
            _mm512_storeu_si512(out.as_mut_ptr().cast(), found);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    fn lookup_32(table: &Table<f32>, codes: &[u8; 16], out: &mut [f32; 32]) {
        // SAFETY: unaligned loads and stores of exactly the arrays' lengths.
        unsafe {
            let table = _mm512_loadu_ps(table.as_ptr());
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
    use super::{Blocks, Table, decode_with, lookup_pairs, scaled};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn decode(blocks: &Blocks, start: usize, out: &mut [f32]) {
        decode_with(blocks, start, out, scaled, |table, codes, out| {
            let (codes, codes_rest) = codes.as_chunks::<8>();
            let (out, out_rest) = out.as_chunks_mut::<16>();
            for (codes, out) in codes.iter().zip(out) {
                lookup_16(table, codes, out);
            }
            lookup_pairs(table, codes_rest, out_rest);
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
