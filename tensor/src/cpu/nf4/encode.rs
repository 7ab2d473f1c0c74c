//! The codes of values scaled to [-1, 1]: how many thresholds lie below, and the code of that rank.

use super::Format;
#[cfg(target_arch = "x86_64")]
use crate::cpu::Level;
use crate::cpu::{Simd, simd};

/// Writes the codes of `values`, two a byte.
pub(super) fn encode(simd: Simd, format: Format, values: &[f32], codes: &mut [u8]) {
    match simd.level() {
        // SAFETY: a `Simd` of this level is only made after these features were detected.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512 => unsafe { avx512::encode(format, values, codes) },
        _ => by_counting(simd, format, values, codes),
    }
}

simd! {
    fn by_counting(format: Format, values: &[f32], codes: &mut [u8]) {
        count(format, values, codes);
    }
}

/// Compares with every threshold.
#[inline(always)]
fn count(format: Format, values: &[f32], codes: &mut [u8]) {
    const STEP: usize = 256;
    let (thresholds, order) = (format.thresholds(), format.order());
    for (values, codes) in values.chunks(STEP).zip(codes.chunks_mut(STEP / 2)) {
        // What lies past an odd end is the rank of zero.
        let mut ranks = [thresholds.iter().filter(|&&t| 0.0 > t).count() as u32; STEP];
        for (rank, &value) in ranks.iter_mut().zip(values) {
            *rank = thresholds.iter().map(|&t| u32::from(value > t)).sum();
        }
        for (code, pair) in codes.iter_mut().zip(ranks.as_chunks::<2>().0) {
            *code = order[pair[0] as usize] << 4 | order[pair[1] as usize];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Format, count};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn encode(format: Format, values: &[f32], codes: &mut [u8]) {
        let mut thresholds = [f32::INFINITY; 16];
        thresholds[..15].copy_from_slice(format.thresholds());
        // SAFETY: loads of exactly the arrays' lengths.
        let (thresholds, order) = unsafe {
            let order = _mm_loadu_si128(format.order().as_ptr().cast());
            (_mm512_loadu_ps(thresholds.as_ptr()), _mm512_cvtepu8_epi32(order))
        };
        let (values, values_rest) = values.as_chunks::<16>();
        let (codes, codes_rest) = codes.split_at_mut(values.len() * 8);
        for (values, codes) in values.iter().zip(codes.as_chunks_mut::<8>().0) {
            // SAFETY: a load of exactly the array's length.
            let rank = rank(unsafe { _mm512_loadu_ps(values.as_ptr()) }, thresholds);
            let code = _mm512_permutexvar_epi32(rank, order);
            // The first of a pair is the lower half of a quadword and gets the high nibble.
            let pair = _mm512_or_si512(_mm512_slli_epi64::<4>(code), _mm512_srli_epi64::<32>(code));
            *codes = _mm_cvtsi128_si64(_mm512_cvtepi64_epi8(pair)).to_le_bytes();
        }
        count(format, values_rest, codes_rest);
    }

    /// How many of the ascending thresholds each value is above, by halving; none, where it is a NaN.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn rank(values: __m512, thresholds: __m512) -> __m512i {
        let mut rank = _mm512_setzero_si512();
        for step in [8, 4, 2, 1] {
            let next = _mm512_add_epi32(rank, _mm512_set1_epi32(step - 1));
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(values, _mm512_permutexvar_ps(next, thresholds));
            rank = _mm512_mask_add_epi32(rank, above, rank, _mm512_set1_epi32(step));
        }
        rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Level;

    /// A value's code is that of its rank among the thresholds, of which one that it equals is not below it; a NaN is above none.
    #[test]
    fn codes_are_ranks_at_every_level() {
        for format in [Format::Nf4, Format::Fp4] {
            let (thresholds, order) = (format.thresholds(), format.order());
            let around = |t: f32| [t, t + t.abs() * 1e-6 + 1e-9, t - t.abs() * 1e-6 - 1e-9];
            let mut values: Vec<f32> = thresholds.iter().copied().flat_map(around).collect();
            values.extend([0.0, 1.0, -1.0, 0.3, f32::NAN]);
            let code = |value: f32| order[thresholds.iter().filter(|&&t| t < value).count()];
            let want: Vec<u8> =
                values.as_chunks::<2>().0.iter().map(|pair| code(pair[0]) << 4 | code(pair[1])).collect();
            assert_eq!(2 * want.len(), values.len());
            for simd in Level::ALL.into_iter().filter_map(|level| Simd::new(level).ok()) {
                let mut codes = vec![0; want.len()];
                encode(simd, format, &values, &mut codes);
                assert_eq!(codes, want, "{simd:?} {format:?}");
            }
        }
    }
}
