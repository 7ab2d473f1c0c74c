//! NF4 and FP4: blocks of 4-bit codes with one scale a block, and the scales quantised once more.
//!
//! A tensor is read flat, row after row, and cut into blocks, so a block may straddle two rows. Its scale
//! (`absmax`) is the largest magnitude in it, and each element becomes the nearest of 16 levels of [-1, 1];
//! of two elements in a byte the first has the high nibble. Codes, scales and decoded values are bit-equal
//! to those of bitsandbytes 0.50 on a CPU. The method is QLoRA's (arXiv 2305.14314).

mod absmax;
mod decode;
mod encode;
#[cfg(target_arch = "x86_64")]
mod few_rows;
#[cfg(target_arch = "x86_64")]
mod few_rows_bf16;

pub use absmax::{ABSMAX_BLOCK, Absmax, DYNAMIC_MAP, mean, quantize_absmax};

use super::gemm::{Columns, FewRows};
use super::{Cpu, Simd, simd};
use crate::Element;
use half::bf16;

/// The block sizes that bitsandbytes writes: powers of two from 32 to 4096. The usual one is 64.
pub const BLOCK_SIZES: std::ops::RangeInclusive<usize> = 32..=4096;

/// What the 16 codes stand for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Quantiles of the normal distribution, in ascending order.
    Nf4,
    /// A sign, two exponent and one mantissa bit, scaled so that the largest is 1.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

#[rustfmt::skip]
const FP4: [f32; 16] = [
    0.0, 0.0625 / 12.0, 8.0 / 12.0, 1.0, 4.0 / 12.0, 6.0 / 12.0, 2.0 / 12.0, 3.0 / 12.0,
    0.0, -0.0625 / 12.0, -8.0 / 12.0, -1.0, -4.0 / 12.0, -6.0 / 12.0, -2.0 / 12.0, -3.0 / 12.0,
];

const NF4_ORDER: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

impl Format {
    /// The value of each code, for a block whose scale is 1.
    #[must_use]
    pub const fn levels(self) -> &'static [f32; 16] {
        match self {
            Format::Nf4 => &NF4,
            Format::Fp4 => &FP4,
        }
    }

    /// The codes in ascending order of their levels. FP4's first zero stands before its second.
    const fn order(self) -> &'static [u8; 16] {
        match self {
            Format::Nf4 => &NF4_ORDER,
            Format::Fp4 => &FP4_ORDER,
        }
    }

    /// The midpoints between neighbouring levels: a value above `i` of them has the code `order[i]`.
    const fn thresholds(self) -> &'static [f32; 15] {
        const NF4_THRESHOLDS: [f32; 15] = midpoints(&NF4, &NF4_ORDER);
        const FP4_THRESHOLDS: [f32; 15] = midpoints(&FP4, &FP4_ORDER);
        match self {
            Format::Nf4 => &NF4_THRESHOLDS,
            Format::Fp4 => &FP4_THRESHOLDS,
        }
    }
}

const fn midpoints(levels: &[f32; 16], order: &[u8; 16]) -> [f32; 15] {
    let mut out = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        out[i] = (levels[order[i] as usize] + levels[order[i + 1] as usize]) / 2.0;
        i += 1;
    }
    out
}

/// A quantised tensor, or part of one that starts at a block.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// What the codes stand for.
    pub format: Format,
    /// Elements a block; a power of two within [`BLOCK_SIZES`].
    pub blocksize: usize,
    /// Two codes a byte, the first in the high nibble.
    pub codes: &'a [u8],
    /// The scale of each block.
    pub absmax: Absmax<'a>,
}

impl<'a> Blocks<'a> {
    /// The product of few rows with columns of Wᵀ, if there is a faster way than to decode each of them first.
    #[must_use]
    pub fn few_rows(self, x: FewRows<'a>) -> Option<Box<dyn Columns + 'a>> {
        #[cfg(target_arch = "x86_64")]
        return few_rows::columns(self, x);
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = x;
            None
        }
    }
}

impl Blocks<'_> {
    /// Decodes the `out.len()` elements from flat index `start` on: level times scale, rounded once.
    ///
    /// # Panics
    /// When the range lies outside the tensor.
    pub fn decode(&self, simd: Simd, start: usize, out: &mut [f32]) {
        decode::decode(simd, self, start, out);
    }

    /// As [`Blocks::decode`], and rounded to bf16 after that.
    ///
    /// # Panics
    /// When the range lies outside the tensor.
    pub fn decode_bf16(&self, simd: Simd, start: usize, out: &mut [bf16]) {
        decode::decode_bf16(simd, self, start, out);
    }
}

/// Elements that one task quantises: whole blocks of every size, and their bytes fit in L1.
const TILE: usize = 4096;
const _: () = assert!(TILE.is_multiple_of(*BLOCK_SIZES.end()));

/// The reference keeps this from 1 / absmax, so that an all-zero block does not become NaN.
const TINY: f32 = 1e-38;

/// Quantises `x` in blocks of `blocksize` elements; the last may be shorter. `codes` takes two elements a
/// byte (an odd end is filled up with the code of zero), `absmax` one scale a block.
///
/// Returns whether all of `x` was finite. Where it was not, the output means nothing.
///
/// # Panics
/// When the lengths do not fit, or `blocksize` is not a power of two within [`BLOCK_SIZES`].
#[must_use]
pub fn quantize<T: Element>(
    cpu: &Cpu,
    format: Format,
    blocksize: usize,
    x: &[T],
    codes: &mut [u8],
    absmax: &mut [f32],
) -> bool {
    assert!(blocksize.is_power_of_two() && BLOCK_SIZES.contains(&blocksize), "blocksize {blocksize}");
    assert_eq!(codes.len(), x.len().div_ceil(2));
    assert_eq!(absmax.len(), x.len().div_ceil(blocksize));
    let tiles = x.chunks(TILE).zip(codes.chunks_mut(TILE / 2)).zip(absmax.chunks_mut(TILE / blocksize));
    let mut tiles: Vec<_> = tiles.map(|((x, codes), absmax)| (x, codes, absmax, false)).collect();
    cpu.chunks(&mut tiles, 1, |_, tile| {
        for (x, codes, absmax, finite) in tile {
            *finite = quantize_tile(cpu.simd(), format, blocksize, x, codes, absmax);
        }
    });
    tiles.iter().all(|(.., finite)| *finite)
}

fn quantize_tile<T: Element>(
    simd: Simd,
    format: Format,
    blocksize: usize,
    x: &[T],
    codes: &mut [u8],
    absmax: &mut [f32],
) -> bool {
    let mut values = [0.0; TILE];
    T::widen(simd, x, &mut values[..x.len()]);
    let blocks = values[..x.len()].chunks_mut(blocksize).zip(codes.chunks_mut(blocksize / 2));
    for ((values, codes), absmax) in blocks.zip(absmax.iter_mut()) {
        *absmax = scale_block(simd, values.len() == blocksize, values);
        encode::encode(simd, format, values, codes);
    }
    absmax.iter().all(|a| a.is_finite())
}

simd! {
    /// Scales one block to [-1, 1] and returns its absmax.
    fn scale_block(whole: bool, values: &mut [f32]) -> f32 {
        let absmax = max_magnitude(values);
        let divisor = absmax.max(TINY);
        // The reference multiplies whole blocks by the reciprocal; a last, shorter one it divides, and
        // records the divisor itself.
        let reciprocal = 1.0 / divisor;
        for v in values.iter_mut() {
            *v = if whole { *v * reciprocal } else { *v / divisor };
        }
        if whole || !absmax.is_finite() { absmax } else { divisor }
    }
}

/// The largest |x|; infinite or NaN if any element is: magnitudes order as their bits do, and the bits of
/// a NaN lie above all.
#[inline(always)]
fn max_magnitude(x: &[f32]) -> f32 {
    let bits = x.iter().map(|v| v.to_bits() & 0x7fff_ffff).max();
    f32::from_bits(bits.unwrap_or(0))
}
