//! [`super::product`] with AVX2: codes and fixed-point numbers meet as pairs of 16 bits, which never overflows.

use super::Format;
use super::fixed::{Fixed, Row};
use super::product::{LANES, Sums};
use super::steps::{RUNS, Step, unpack};
use crate::cpu::gemm::FEW_ROWS;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot(format: Format, x: &Fixed, row: &[u8], out: &mut [f32]) {
    let mut sums = [Sums::ZERO; FEW_ROWS];
    let mut step = Step::ZERO;
    for index in 0..format.steps(row.len()) {
        unpack(format, row, index, &mut step);
        for (i, sums) in sums[..out.len()].iter_mut().enumerate() {
            add_step(format, &step, x.row(i), index, sums);
        }
    }
    out.iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums.total());
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_step(format: Format, step: &Step, x: Row<'_>, index: usize, sums: &mut Sums) {
    let run = format.run();
    let values = &x.values[index * RUNS * run..][..RUNS * run];
    let (codes, values) = (step.codes.as_chunks::<16>().0, values.as_chunks::<16>().0);
    let mut scales = step.scales;
    for (scale, s) in scales.iter_mut().zip(&x.scales[index]) {
        *scale *= s;
    }
    for half in 0..RUNS / 2 {
        let (r, next) = (2 * half, 2 * half + 1);
        // Not by a closure: what is made for an instruction set does not become part of a function that is not.
        let pairs = match run {
            16 => [multiply(&codes[r], &values[r]), multiply(&codes[next], &values[next])],
            _ => [multiply_both(codes, values, r), multiply_both(codes, values, next)],
        };
        add_lanes(pairs, (scales[r], scales[next]), &mut sums.lanes.as_chunks_mut::<{ LANES / 2 }>().0[half]);
    }
    if format.has_min() {
        for r in 0..RUNS {
            sums.mins[r] = step.mins[r].mul_add(x.sums[index][r], sums.mins[r]);
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

/// Adds the four lanes of each of two runs, whose sums come in pairs.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_lanes([first, second]: [__m256i; 2], (scale, next): (f32, f32), lanes: &mut [f32; LANES / 2]) {
    // Halves of 128 bits are added up apart: lanes 0 and 1 of both runs, then lanes 2 and 3.
    let sums = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(first, second));
    let scales = _mm256_set_m128(_mm_set1_ps(next), _mm_set1_ps(scale));
    // SAFETY: unaligned accesses to exactly the array's length.
    unsafe {
        let before = _mm256_loadu_ps(lanes.as_ptr());
        _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scales, before));
    }
}
