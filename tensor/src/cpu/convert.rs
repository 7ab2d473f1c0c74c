//! Conversions of slices between f32 and the 16-bit float types, equal to the `half` crate's bit for bit, NaNs
//! included, but without branches, so that loops over them vectorise.
//!
//! A kernel that is written once over f32 rows serves all float types through [`Float`]: `as_f32` reads a row,
//! `write_f32` writes one, and for f32 itself neither copies anything. One that goes over its elements once converts them in
//! registers, by `wide` and `from_f32`.

#[cfg(target_arch = "x86_64")]
use super::Level;
use super::{Simd, simd};
use crate::{Element, Float};
use half::{bf16, f16};

/// bf16 is the upper half of an f32; a signalling NaN becomes quiet.
#[inline(always)]
pub(crate) fn bf16_to_f32(h: bf16) -> f32 {
    let bits = u32::from(h.to_bits()) << 16;
    let quiet = if bits & 0x7FFF_FFFF > 0x7F80_0000 { 0x0040_0000 } else { 0 };
    f32::from_bits(bits | quiet)
}

/// To nearest, ties to even: half a unit, less one when the kept part is even, carries into it.
#[inline(always)]
pub(crate) fn bf16_from_f32(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    let nan = bits >> 16 | 0x0040;
    bf16::from_bits(if bits & 0x7FFF_FFFF > 0x7F80_0000 { nan } else { rounded } as u16)
}

/// Normal numbers change the bias of their exponent; denormal ones are small integers times 2^-24.
#[inline(always)]
pub(crate) fn f16_to_f32(h: f16) -> f32 {
    const DENORMAL_UNIT: f32 = 1.0 / 16_777_216.0;
    let bits = u32::from(h.to_bits());
    let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7FFF);
    let normal = (magnitude << 13).wrapping_add((127 - 15) << 23);
    let denormal = (magnitude as i32 as f32 * DENORMAL_UNIT).to_bits();
    let quiet = if magnitude > 0x7C00 { 0x0040_0000 } else { 0 };
    let special = 0x7F80_0000 | magnitude << 13 | quiet;
    let finite = if magnitude < 0x0400 { denormal } else { normal };
    f32::from_bits(sign | if magnitude >= 0x7C00 { special } else { finite })
}

/// To nearest, ties to even. Below 2^-14, adding 0.5 (whose last place is 2^-24, the unit of f16's denormals) rounds.
#[inline(always)]
pub(crate) fn f16_from_f32(x: f32) -> f16 {
    let (sign, magnitude) = (x.to_bits() >> 16 & 0x8000, x.to_bits() & 0x7FFF_FFFF);
    let rounded = magnitude.wrapping_add(0x0FFF + (magnitude >> 13 & 1));
    let normal = (rounded >> 13).wrapping_sub((127 - 15) << 10);
    let denormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let nan = 0x7E00 | magnitude >> 13 & 0x03FF;
    let special = if magnitude > 0x7F80_0000 { nan } else { 0x7C00 };
    let finite = if magnitude < 0x3880_0000 { denormal } else { normal };
    // 65536 and up; what lies between f16's largest number and that rounds to infinity by its carry.
    f16::from_bits((sign | if magnitude >= 0x4780_0000 { special } else { finite }) as u16)
}

simd! {
    fn widen_bf16_by_loop(x: &[bf16], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = bf16_to_f32(*x));
    }
    fn narrow_bf16_by_loop(x: &[f32], y: &mut [bf16]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = bf16_from_f32(*x));
    }
    fn round_bf16(x: &mut [f32]) {
        for x in x {
            *x = bf16_to_f32(bf16_from_f32(*x));
        }
    }
    pub(crate) fn widen_f16(x: &[f16], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = f16_to_f32(*x));
    }
    pub(crate) fn narrow_f16(x: &[f32], y: &mut [f16]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = f16_from_f32(*x));
    }
    fn round_f16(x: &mut [f32]) {
        for x in x {
            *x = f16_to_f32(f16_from_f32(*x));
        }
    }
}

/// `y = x`. With AVX-512 in its own instructions: rows of a tile are 32 elements long, and what a compiler makes of the loop takes
/// 64 at once and the rest by quarters of a register.
pub(crate) fn widen_bf16(simd: Simd, x: &[bf16], y: &mut [f32]) {
    match simd.level() {
        // SAFETY: a `Simd` of this level is only made after these features were detected.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512 => unsafe { avx512::widen_bf16(x, y) },
        _ => widen_bf16_by_loop(simd, x, y),
    }
}

/// `y = x` rounded; as [`widen_bf16`].
pub(crate) fn narrow_bf16(simd: Simd, x: &[f32], y: &mut [bf16]) {
    match simd.level() {
        // SAFETY: as in `widen_bf16`.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512 => unsafe { avx512::narrow_bf16(x, y) },
        _ => narrow_bf16_by_loop(simd, x, y),
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    use half::bf16;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn widen_bf16(x: &[bf16], y: &mut [f32]) {
        let len = x.len().min(y.len());
        for at in (0..len).step_by(16) {
            let mask = first(len - at);
            // SAFETY: the mask keeps both to elements below `len`.
            unsafe {
                let x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x.as_ptr().add(at).cast()));
                let bits = _mm512_slli_epi32::<16>(x);
                let wide = _mm512_castsi512_ps(bits);
                let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(wide, wide);
                let bits = _mm512_mask_or_epi32(bits, is_nan, bits, _mm512_set1_epi32(0x0040_0000));
                _mm512_mask_storeu_epi32(y.as_mut_ptr().add(at).cast(), mask, bits);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn narrow_bf16(x: &[f32], y: &mut [bf16]) {
        let len = x.len().min(y.len());
        for at in (0..len).step_by(16) {
            let mask = first(len - at);
            // SAFETY: the mask keeps both to elements below `len`.
            unsafe {
                let rounded = round_bf16(_mm512_maskz_loadu_ps(mask, x.as_ptr().add(at)));
                _mm256_mask_storeu_epi16(y.as_mut_ptr().add(at).cast(), mask, rounded);
            }
        }
    }

    /// [`super::bf16_from_f32`] of 16 floats.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::cpu) fn round_bf16(x: __m512) -> __m256i {
        let bits = _mm512_castps_si512(x);
        let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, is_nan, quiet)))
    }

    /// The first `n` of 16.
    fn first(n: usize) -> u16 {
        if n >= 16 { u16::MAX } else { (1 << n) - 1 }
    }
}

/// One float type to itself.
pub(crate) fn copy(_: Simd, x: &[f32], y: &mut [f32]) {
    y.copy_from_slice(x);
}

/// Integers, which no kernel is in a hurry for.
pub(crate) fn widen_each<T: Element>(_: Simd, x: &[T], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = x.to_f32());
}

/// As [`widen_each`], the other way.
pub(crate) fn narrow_each<T: Element>(_: Simd, x: &[f32], y: &mut [T]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = T::from_f32(*x));
}

/// `scratch` with room for `len` floats; what it holds is arbitrary.
fn sized(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    &mut scratch[..len]
}

impl Float for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    fn round(_: Simd, _: &mut [f32]) {}
    fn as_f32<'a>(_: Simd, x: &'a [f32], _: &'a mut Vec<f32>) -> &'a [f32] {
        x
    }
    fn write_f32(_: Simd, y: &mut [f32], _: &mut Vec<f32>, write: impl FnOnce(&mut [f32])) {
        write(y);
    }
}

macro_rules! sixteen_bits {
    ($t:ty, $wide:expr, $widen:ident, $narrow:ident, $round:ident) => {
        impl Float for $t {
            #[inline(always)]
            fn wide(self) -> f32 {
                $wide(self)
            }
            fn round(simd: Simd, x: &mut [f32]) {
                $round(simd, x);
            }
            fn as_f32<'a>(simd: Simd, x: &'a [$t], scratch: &'a mut Vec<f32>) -> &'a [f32] {
                let wide = sized(scratch, x.len());
                $widen(simd, x, wide);
                wide
            }
            fn write_f32(simd: Simd, y: &mut [$t], scratch: &mut Vec<f32>, write: impl FnOnce(&mut [f32])) {
                let wide = sized(scratch, y.len());
                write(wide);
                $narrow(simd, wide, y);
            }
        }
    };
}
sixteen_bits!(bf16, |x: bf16| f32::from_bits(u32::from(x.to_bits()) << 16), widen_bf16, narrow_bf16, round_bf16);
sixteen_bits!(f16, f16_to_f32, widen_f16, narrow_f16, round_f16);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Level;

    fn levels() -> Vec<Simd> {
        Level::ALL.into_iter().filter_map(|l| Simd::new(l).ok()).collect()
    }

    /// Every 16-bit pattern widened, its neighbours in f32 (all ties and near ties), and floats from the whole range.
    fn floats() -> Vec<f32> {
        let near = |x: f32| [-1i32, 0, 1].map(|d| f32::from_bits(x.to_bits().wrapping_add_signed(d)));
        let around = (0..=u16::MAX).flat_map(|i| {
            let (b, h) = (u32::from(i) << 16, f16::from_bits(i).to_f32().to_bits());
            [b, b | 0x8000, h, h.wrapping_add(0x1000)].map(f32::from_bits)
        });
        around.flat_map(near).chain((0..=u32::MAX).step_by(65_521).map(f32::from_bits)).collect()
    }

    #[test]
    fn widening_and_narrowing_equal_the_half_crate_bit_for_bit() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let floats = floats();
        for simd in levels() {
            let mut wide = vec![0f32; all.len()];
            let h: Vec<bf16> = all.iter().map(|&i| bf16::from_bits(i)).collect();
            bf16::widen(simd, &h, &mut wide);
            assert!(h.iter().zip(&wide).all(|(h, w)| h.to_f32().to_bits() == w.to_bits()));
            let h: Vec<f16> = all.iter().map(|&i| f16::from_bits(i)).collect();
            f16::widen(simd, &h, &mut wide);
            assert!(h.iter().zip(&wide).all(|(h, w)| h.to_f32().to_bits() == w.to_bits()));

            let mut narrow = vec![bf16::ZERO; floats.len()];
            bf16::narrow(simd, &floats, &mut narrow);
            assert!(floats.iter().zip(&narrow).all(|(x, h)| bf16::from_f32(*x).to_bits() == h.to_bits()));
            let mut narrow = vec![f16::ZERO; floats.len()];
            f16::narrow(simd, &floats, &mut narrow);
            assert!(floats.iter().zip(&narrow).all(|(x, h)| f16::from_f32(*x).to_bits() == h.to_bits()));
        }
    }

    #[test]
    fn rounding_is_narrowing_and_widening() {
        let floats = floats();
        for simd in levels() {
            let mut rounded = floats.clone();
            bf16::round(simd, &mut rounded);
            assert!(floats.iter().zip(&rounded).all(|(x, r)| bf16::from_f32(*x).to_f32().to_bits() == r.to_bits()));
            let mut rounded = floats.clone();
            f16::round(simd, &mut rounded);
            assert!(floats.iter().zip(&rounded).all(|(x, r)| f16::from_f32(*x).to_f32().to_bits() == r.to_bits()));
        }
    }
}
