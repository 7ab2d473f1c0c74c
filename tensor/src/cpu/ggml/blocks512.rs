//! Steps of blocks ([`super::steps`]) in registers of AVX-512: the codes of four runs, 16 bytes of each in the first register, and the
//! last 16 of each in the second, where runs have 32.

use super::steps::{RUNS, q3_k_scales, six_bits};
use super::{Format, bits_32};
use std::arch::x86_64::*;

/// Four runs.
pub(super) struct Step {
    /// Codes as bytes without a sign.
    pub(super) unsigned: [__m512i; 2],
    /// Codes as bytes with a sign.
    pub(super) signed: [__m512i; 2],
    /// d of each run.
    pub(super) scales: __m128,
    /// What is added to each element of a run.
    pub(super) mins: __m128,
}

/// Bytes of the longest group of blocks that steps are made from.
pub(super) const MOST_BYTES: usize = 210;

/// A format, whose steps are made from groups of `BYTES` bytes: four blocks of 32, or one of 256.
pub(super) trait Blocks {
    const FORMAT: Format;
    /// What an unsigned and a signed code mean zero by.
    const ZERO: [u8; 2];
    const RUN: usize = Self::FORMAT.run();
    const HAS_MIN: bool = Self::FORMAT.has_min();
    const BYTES: usize = if Self::FORMAT.block_len() == 32 { RUNS } else { 1 } * Self::FORMAT.block_bytes();
    /// Steps of a group.
    const STEPS: usize = if Self::FORMAT.block_len() == 32 { 1 } else { 256 / (RUNS * Self::RUN) };

    /// Step `part` of a group.
    ///
    /// # Safety
    /// `bytes` are [`Blocks::BYTES`], and the CPU has AVX-512 F, BW, DQ and VL, and F16C.
    unsafe fn step(bytes: &[u8], part: usize) -> Step;
}

/// The bytes from `at` on of each of four blocks that lie `stride` apart, 16 of each.
///
/// # Safety
/// They lie in `bytes`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn four(bytes: &[u8], at: usize, stride: usize) -> __m512i {
    debug_assert!(at + 3 * stride + 16 <= bytes.len());
    // SAFETY: inside of the slice by the caller's promise.
    unsafe {
        let block = bytes.as_ptr().add(at);
        let one = _mm512_castsi128_si512(_mm_loadu_si128(block.cast()));
        let two = _mm512_inserti32x4::<1>(one, _mm_loadu_si128(block.add(stride).cast()));
        let three = _mm512_inserti32x4::<2>(two, _mm_loadu_si128(block.add(2 * stride).cast()));
        _mm512_inserti32x4::<3>(three, _mm_loadu_si128(block.add(3 * stride).cast()))
    }
}

/// 32 bytes from `at` on, twice.
///
/// # Safety
/// They lie in `bytes`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn both_halves(bytes: &[u8], at: usize) -> __m512i {
    debug_assert!(at + 32 <= bytes.len());
    // SAFETY: inside of the slice by the caller's promise.
    _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) })
}

/// The 16 bits at `at`. In one load: put together from bytes, the compiler would mix those of several.
#[inline(always)]
fn bits_16(bytes: &[u8], at: usize) -> u64 {
    let bytes = &bytes[at..at + 2];
    // SAFETY: two bytes, of any alignment.
    u64::from(u16::from_le(unsafe { bytes.as_ptr().cast::<u16>().read_unaligned() }))
}

/// The 16 bits at `at` of each of four blocks that lie `stride` apart.
#[inline(always)]
fn four_times_16(bytes: &[u8], at: usize, stride: usize) -> u64 {
    (0..RUNS).fold(0, |bits, i| bits | bits_16(bytes, at + i * stride) << (16 * i))
}

/// The f16 at `at` of each of four blocks that lie `stride` apart.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn four_halves(bytes: &[u8], at: usize, stride: usize) -> __m128 {
    _mm_cvtph_ps(_mm_cvtsi64_si128(four_times_16(bytes, at, stride) as i64))
}

/// The f16 at `at`, four times.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn half(bytes: &[u8], at: usize) -> __m128 {
    _mm_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits_16(bytes, at) as i32)))
}

/// d times each of four bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn times(d: __m128, scales: u32) -> __m128 {
    _mm_mul_ps(d, _mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(scales as i32))))
}

/// As [`times`], of numbers with a sign.
#[inline]
#[target_feature(enable = "avx2")]
fn times_signed(d: __m128, scales: u32) -> __m128 {
    _mm_mul_ps(d, _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(scales as i32))))
}

#[inline]
#[target_feature(enable = "avx2")]
fn negated(x: __m128) -> __m128 {
    _mm_xor_ps(x, _mm_set1_ps(-0.0))
}

// Closures are made where no instruction set is asked for: what is compiled for one does not become part of what is not.
#[inline(always)]
fn row_bits(rows: [u32; RUNS]) -> [u64; RUNS] {
    rows.map(|row| 0x0101_0101_0101_0101 << row)
}

#[inline(always)]
fn shift_words(shifts: [u32; RUNS]) -> [u64; RUNS] {
    shifts.map(|shift| u64::from(shift) * 0x0001_0001_0001_0001)
}

/// A word in each quarter.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters([a, b, c, d]: [u64; RUNS]) -> __m512i {
    let [a, b, c, d] = [a as i64, b as i64, c as i64, d as i64];
    _mm512_setr_epi64(a, a, b, b, c, c, d, d)
}

/// The bits `mask` of each byte, `shift` above the lowest.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bits(bytes: __m512i, shift: u32, mask: i8) -> __m512i {
    _mm512_and_si512(_mm512_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32)), _mm512_set1_epi8(mask))
}

/// As [`bits`], `shifts` above the lowest in each quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bits_by_run(bytes: __m512i, shifts: [u32; RUNS], mask: i8) -> __m512i {
    let shifts = quarters(shift_words(shifts));
    _mm512_and_si512(_mm512_srlv_epi16(bytes, shifts), _mm512_set1_epi8(mask))
}

/// `codes`, with the bit of value `value` set where bit `rows[run]` of `bytes` is.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn with_bit(codes: __m512i, bytes: __m512i, rows: [u32; RUNS], value: i8) -> __m512i {
    let bit = quarters(row_bits(rows));
    let set = _mm512_test_epi8_mask(bytes, bit);
    _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(value))
}

/// Codes that are alike with a sign and without.
#[inline]
#[target_feature(enable = "avx512f")]
fn step(codes: [__m512i; 2], scales: __m128, mins: __m128) -> Step {
    Step { unsigned: codes, signed: codes, scales, mins }
}

macro_rules! blocks {
    ($($name:ident, zero $zero:expr, |$bytes:ident, $part:pat_param| $body:block)*) => {$(
        #[allow(non_camel_case_types)]
        pub(super) struct $name;
        impl Blocks for $name {
            const FORMAT: Format = Format::$name;
            const ZERO: [u8; 2] = $zero;
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn step($bytes: &[u8], $part: usize) -> Step {
                assert_eq!($bytes.len(), Self::BYTES);
                // SAFETY: accesses below lie in the bytes of a group, which are as many.
                unsafe { $body }
            }
        }
    )*};
}

/// The two halves of 32-blocks of nibbles at `at`, `stride` apart.
///
/// # Safety
/// As [`four`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn nibbles(bytes: &[u8], at: usize, stride: usize) -> [__m512i; 2] {
    // SAFETY: by the caller's promise.
    let bytes = unsafe { four(bytes, at, stride) };
    [bits(bytes, 0, 15), bits(bytes, 4, 15)]
}

/// As [`nibbles`], with the fifth bits of each block, which lie at `fifth`.
///
/// # Safety
/// As [`four`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn five_bits(bytes: &[u8], fifth: usize, at: usize, stride: usize) -> [__m512i; 2] {
    // SAFETY: by the caller's promise.
    let [first, last] = unsafe { nibbles(bytes, at, stride) };
    let [upper, lower] = [four_times_16(bytes, fifth + 2, stride), four_times_16(bytes, fifth, stride)];
    let sixteen = _mm512_set1_epi8(16);
    [_mm512_mask_add_epi8(first, lower, first, sixteen), _mm512_mask_add_epi8(last, upper, last, sixteen)]
}

/// The codes of two pairs of rows, where 32 bytes are the low nibbles of one and the high ones of the next.
///
/// # Safety
/// 64 bytes from `at` on lie in `bytes`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn rows_of_nibbles(bytes: &[u8], at: usize) -> [__m512i; 2] {
    debug_assert!(at + 64 <= bytes.len());
    // SAFETY: inside of the slice by the caller's promise.
    let rows = unsafe { _mm512_loadu_si512(bytes.as_ptr().add(at).cast()) };
    let first = _mm512_shuffle_i32x4::<0b10_10_00_00>(rows, rows);
    let last = _mm512_shuffle_i32x4::<0b11_11_01_01>(rows, rows);
    [bits_by_run(first, [0, 4, 0, 4], 15), bits_by_run(last, [0, 4, 0, 4], 15)]
}

blocks! {
    Q4_0, zero [8, 8], |bytes, _| {
        step(nibbles(bytes, 2, 18), four_halves(bytes, 0, 18), _mm_setzero_ps())
    }
    Q4_1, zero [0, 0], |bytes, _| {
        step(nibbles(bytes, 4, 20), four_halves(bytes, 0, 20), four_halves(bytes, 2, 20))
    }
    Q5_0, zero [16, 16], |bytes, _| {
        step(five_bits(bytes, 2, 6, 22), four_halves(bytes, 0, 22), _mm_setzero_ps())
    }
    Q5_1, zero [0, 0], |bytes, _| {
        step(five_bits(bytes, 4, 8, 24), four_halves(bytes, 0, 24), four_halves(bytes, 2, 24))
    }
    Q8_0, zero [128, 0], |bytes, _| {
        let signed = [four(bytes, 2, 34), four(bytes, 18, 34)];
        let sign = _mm512_set1_epi8(-128);
        let unsigned = [_mm512_xor_si512(signed[0], sign), _mm512_xor_si512(signed[1], sign)];
        Step { unsigned, signed, scales: four_halves(bytes, 0, 34), mins: _mm_setzero_ps() }
    }
    Q2_K, zero [0, 0], |bytes, part| {
        let shift = (part as u32 % 2) * 4;
        let codes = bits_by_run(both_halves(bytes, 16 + part / 2 * 32), [shift, shift, shift + 2, shift + 2], 3);
        let subs = bits_32(bytes, part * 4);
        let [subs, mins] = [subs & 0x0f0f_0f0f, subs >> 4 & 0x0f0f_0f0f];
        step([codes; 2], times(half(bytes, 80), subs), negated(times(half(bytes, 82), mins)))
    }
    Q3_K, zero [4, 4], |bytes, part| {
        let (shift, row) = ((part as u32 % 2) * 4, part as u32 * 2);
        let low = bits_by_run(both_halves(bytes, 32 + part / 2 * 32), [shift, shift, shift + 2, shift + 2], 3);
        let codes = with_bit(low, both_halves(bytes, 0), [row, row, row + 1, row + 1], 4);
        step([codes; 2], times_signed(half(bytes, 108), q3_k_scales(bytes, part)), _mm_setzero_ps())
    }
    Q4_K, zero [0, 0], |bytes, part| {
        let codes = rows_of_nibbles(bytes, 16 + part * 64);
        let [subs, mins] = six_bits(bytes, 4, part);
        step(codes, times(half(bytes, 0), subs), negated(times(half(bytes, 2), mins)))
    }
    Q5_K, zero [0, 0], |bytes, part| {
        let row = part as u32 * 4;
        let fifth = both_halves(bytes, 16);
        let fifth = [_mm512_shuffle_i32x4::<0>(fifth, fifth), _mm512_shuffle_i32x4::<0b01_01_01_01>(fifth, fifth)];
        let [first, last] = rows_of_nibbles(bytes, 48 + part * 64);
        let rows = [row, row + 1, row + 2, row + 3];
        let codes = [with_bit(first, fifth[0], rows, 16), with_bit(last, fifth[1], rows, 16)];
        let [subs, mins] = six_bits(bytes, 4, part);
        step(codes, times(half(bytes, 0), subs), negated(times(half(bytes, 2), mins)))
    }
    Q6_K, zero [32, 32], |bytes, part| {
        let (four, of_four) = (part / 2, part as u32 % 2 * 2);
        let low = bits(_mm512_loadu_si512(bytes[four * 64..][..64].as_ptr().cast()), of_four * 2, 15);
        let shift = of_four * 2;
        let high = bits_by_run(both_halves(bytes, 128 + four * 32), [shift, shift, shift + 2, shift + 2], 3);
        let codes = _mm512_or_si512(low, _mm512_slli_epi16::<4>(high));
        let subs = bits_32(bytes, 192 + part * 4);
        step([codes; 2], times_signed(half(bytes, 208), subs), _mm_setzero_ps())
    }
}
