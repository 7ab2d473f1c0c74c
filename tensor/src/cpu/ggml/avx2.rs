//! [`super::product`] with AVX2: codes and fixed-point numbers meet as pairs of 16 bits, which never overflows.

use super::fixed::{Fixed, Row};
use super::product::{LANES, Sums};
use super::steps::{RUNS, Step, part, q3_k_scales, six_bits, unpack};
use super::{Format, bits_32};
use crate::cpu::gemm::FEW_ROWS;
use std::arch::x86_64::*;

/// A step of four blocks of 32; one of fewer as everywhere.
macro_rules! small {
    ($bytes:literal, $row:ident, $index:ident, $step:ident, |$block:ident| $codes:expr, $format:ident) => {{
        let Some(blocks) = $row.as_chunks::<$bytes>().0[$index * RUNS..].first_chunk::<RUNS>() else {
            return unpack($format, $row, $index, $step);
        };
        for (run, $block) in blocks.iter().enumerate() {
            put($step, run, $codes);
        }
        $step.scales = numbers(blocks, 0);
        $step.mins = if $format.has_min() { numbers(blocks, 2) } else { [0.0; RUNS] };
    }};
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot(format: Format, x: &Fixed, row: &[u8], out: &mut [f32]) {
    let mut sums = [Sums::ZERO; FEW_ROWS];
    let mut step = Step::ZERO;
    for index in 0..format.steps(row.len()) {
        unpack_step(format, row, index, &mut step);
        for (i, sums) in sums[..out.len()].iter_mut().enumerate() {
            add_step(format, &step, x.row(i), index, sums);
        }
    }
    out.iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums.total());
}

/// [`unpack`] in registers.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn unpack_step(format: Format, row: &[u8], index: usize, step: &mut Step) {
    match format {
        Format::Q4_0 => small!(18, row, index, step, |b| less(nibbles(b, 2), 8), format),
        Format::Q4_1 => small!(20, row, index, step, |b| nibbles(b, 4), format),
        Format::Q5_0 => small!(22, row, index, step, |b| less(with_bits(nibbles(b, 6), bits_32(b, 2)), 16), format),
        Format::Q5_1 => small!(24, row, index, step, |b| with_bits(nibbles(b, 8), bits_32(b, 4)), format),
        Format::Q8_0 => small!(34, row, index, step, |b| load(b, 2), format),
        Format::Q2_K => {
            let (block, index): (&[u8; 84], _) = (part(row, index, 4), index % 4);
            let low = load(block, 16 + index / 2 * 32);
            put(step, 0, field(low, index % 2 * 4, 3));
            put(step, 1, field(low, index % 2 * 4 + 2, 3));
            let subs = bits_32(block, index * 4);
            set_scales(step, number(block, 80), subs & 0x0f0f_0f0f, number(block, 82), subs >> 4 & 0x0f0f_0f0f);
        }
        Format::Q3_K => {
            let (block, index): (&[u8; 110], _) = (part(row, index, 4), index % 4);
            let (low, third) = (load(block, 32 + index / 2 * 32), load(block, 0));
            for i in 0..2 {
                let two = field(low, index % 2 * 4 + 2 * i, 3);
                let third = _mm256_slli_epi16::<2>(field(third, index * 2 + i, 1));
                put(step, i, less(_mm256_or_si256(two, third), 4));
            }
            set_scales(step, number(block, 108), q3_k_scales(block, index), 0.0, 0);
        }
        Format::Q4_K => {
            let (block, index): (&[u8; 144], _) = (part(row, index, 2), index % 2);
            for i in 0..2 {
                let low = load(block, 16 + (index * 2 + i) * 32);
                put(step, 2 * i, field(low, 0, 15));
                put(step, 2 * i + 1, field(low, 4, 15));
            }
            let [subs, mins] = six_bits(block, 4, index);
            set_scales(step, number(block, 0), subs, number(block, 2), mins);
        }
        Format::Q5_K => {
            let (block, index): (&[u8; 176], _) = (part(row, index, 2), index % 2);
            let fifth = load(block, 16);
            for i in 0..4 {
                let low = field(load(block, 48 + (index * 2 + i / 2) * 32), i % 2 * 4, 15);
                let fifth = _mm256_slli_epi16::<4>(field(fifth, index * 4 + i, 1));
                put(step, i, _mm256_or_si256(low, fifth));
            }
            let [subs, mins] = six_bits(block, 4, index);
            set_scales(step, number(block, 0), subs, number(block, 2), mins);
        }
        Format::Q6_K => {
            let (block, index): (&[u8; 210], _) = (part(row, index, 4), index % 4);
            // Steps of 64: low nibbles of both rows, or high ones; two bits more of each.
            let (four, upper) = (index / 2, index % 2);
            let high = load(block, 128 + four * 32);
            for i in 0..2 {
                let low = field(load(block, four * 64 + i * 32), upper * 4, 15);
                let high = _mm256_slli_epi16::<4>(field(high, upper * 4 + 2 * i, 3));
                put(step, i, less(_mm256_or_si256(low, high), 32));
            }
            set_scales(step, number(block, 208), bits_32(block, 192 + index * 4), 0.0, 0);
        }
        Format::F32 | Format::F16 | Format::BF16 => unpack(format, row, index, step),
    }
}

/// `scales`, four bytes with a sign, times d; `mins`, four bytes, times the scale of minimums, subtracted.
#[inline]
#[target_feature(enable = "avx2")]
fn set_scales(step: &mut Step, d: f32, scales: u32, dmin: f32, mins: u32) {
    let bytes = |four: u32| _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four as i32)));
    let mins = _mm_mul_ps(_mm_set1_ps(dmin), bytes(mins));
    // SAFETY: four floats each.
    unsafe {
        _mm_storeu_ps(step.scales.as_mut_ptr(), _mm_mul_ps(_mm_set1_ps(d), bytes(scales)));
        _mm_storeu_ps(step.mins.as_mut_ptr(), _mm_xor_ps(mins, _mm_set1_ps(-0.0)));
    }
}

/// The f16 at byte `at`, alone in its register: subnormal bits beside it would cost as much as ten blocks.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn number(block: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([block[at], block[at + 1]]);
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
}

/// The f16 at byte `at` of each of four blocks.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn numbers<const BYTES: usize>(blocks: &[[u8; BYTES]; RUNS], at: usize) -> [f32; RUNS] {
    let bits = |run: usize| u64::from(u16::from_le_bytes([blocks[run][at], blocks[run][at + 1]])) << (16 * run);
    let numbers = _mm_cvtph_ps(_mm_cvtsi64_si128((bits(0) | bits(1) | bits(2) | bits(3)) as i64));
    let mut out = [0.0; RUNS];
    // SAFETY: four floats.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), numbers) };
    out
}

/// 32 bytes of a block, from byte `at` on.
#[inline]
#[target_feature(enable = "avx2")]
fn load(block: &[u8], at: usize) -> __m256i {
    // SAFETY: the slice is 32 bytes.
    unsafe { _mm256_loadu_si256(block[at..at + 32].as_ptr().cast()) }
}

/// Codes 32 `i` to 32 `i` + 32 of a step.
#[inline]
#[target_feature(enable = "avx2")]
fn put(step: &mut Step, i: usize, codes: __m256i) {
    // SAFETY: the slice is 32 bytes.
    unsafe { _mm256_storeu_si256(step.codes[32 * i..32 * i + 32].as_mut_ptr().cast(), codes) }
}

/// Bits `from` on of each byte, as many as `mask` has.
#[inline]
#[target_feature(enable = "avx2")]
fn field(bytes: __m256i, from: usize, mask: i8) -> __m256i {
    let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(from as i32));
    _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
}

/// The low nibbles of 16 bytes from byte `at` on, then the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(block: &[u8], at: usize) -> __m256i {
    // SAFETY: the slice is 16 bytes.
    let bytes = unsafe { _mm_loadu_si128(block[at..at + 16].as_ptr().cast()) };
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// Codes with 16 more for each bit that is set, the lowest first.
#[inline]
#[target_feature(enable = "avx2")]
fn with_bits(codes: __m256i, bits: u32) -> __m256i {
    // Byte i gets a copy of byte i / 8 of the bits, and keeps bit i mod 8.
    let copies = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
    let each = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), copies);
    let one = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(each, one), one);
    _mm256_or_si256(codes, _mm256_and_si256(set, _mm256_set1_epi8(16)))
}

/// Codes less `zero`.
#[inline]
#[target_feature(enable = "avx2")]
fn less(codes: __m256i, zero: i8) -> __m256i {
    _mm256_sub_epi8(codes, _mm256_set1_epi8(zero))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_step(format: Format, step: &Step, x: Row<'_>, index: usize, sums: &mut Sums) {
    let run = format.run();
    let values = &x.values[index * RUNS * run..][..RUNS * run];
    let (codes, values) = (step.codes.as_chunks::<16>().0, values.as_chunks::<16>().0);
    // SAFETY: four floats each.
    let scales = unsafe { _mm_mul_ps(_mm_loadu_ps(step.scales.as_ptr()), _mm_loadu_ps(x.scales[index].as_ptr())) };
    for half in 0..RUNS / 2 {
        let (r, next) = (2 * half, 2 * half + 1);
        // Not by a closure: what is made for an instruction set does not become part of a function that is not.
        let pairs = match run {
            16 => [multiply(&codes[r], &values[r]), multiply(&codes[next], &values[next])],
            _ => [multiply_both(codes, values, r), multiply_both(codes, values, next)],
        };
        add_lanes(pairs, both(scales, r), &mut sums.lanes.as_chunks_mut::<{ LANES / 2 }>().0[half]);
    }
    if format.has_min() {
        // SAFETY: as above.
        unsafe {
            let (mins, x) = (_mm_loadu_ps(step.mins.as_ptr()), _mm_loadu_ps(x.sums[index].as_ptr()));
            _mm_storeu_ps(sums.mins.as_mut_ptr(), _mm_fmadd_ps(mins, x, _mm_loadu_ps(sums.mins.as_ptr())));
        }
    }
}

/// Sums of neighbours' products.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply(codes: &[i8; 16], values: &[i16; 16]) -> __m256i {
    // SAFETY: unaligned loads of exactly the arrays' lengths.
    let (codes, values) =
        unsafe { (_mm_loadu_si128(codes.as_ptr().cast()), _mm256_loadu_si256(values.as_ptr().cast())) };
    _mm256_madd_epi16(_mm256_cvtepi8_epi16(codes), values)
}

/// As [`multiply`], of both halves of run `r` of 32.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply_both(codes: &[[i8; 16]], values: &[[i16; 16]], r: usize) -> __m256i {
    let first = multiply(&codes[2 * r], &values[2 * r]);
    _mm256_add_epi32(first, multiply(&codes[2 * r + 1], &values[2 * r + 1]))
}

/// The scale of run `r` in four lanes, and that of the next in four more.
#[inline]
#[target_feature(enable = "avx2")]
fn both(scales: __m128, r: usize) -> __m256 {
    let runs = _mm256_add_epi32(_mm256_set1_epi32(r as i32), _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0));
    _mm256_permutevar8x32_ps(_mm256_castps128_ps256(scales), runs)
}

/// Adds the four lanes of each of two runs, whose sums come in pairs.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_lanes([first, second]: [__m256i; 2], scales: __m256, lanes: &mut [f32; LANES / 2]) {
    // Halves of 128 bits are added up apart: lanes 0 and 1 of both runs, then lanes 2 and 3.
    let sums = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(first, second));
    // SAFETY: unaligned accesses to exactly the array's length.
    unsafe {
        let before = _mm256_loadu_ps(lanes.as_ptr());
        _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scales, before));
    }
}
