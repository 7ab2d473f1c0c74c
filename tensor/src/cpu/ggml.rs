//! Decoding of ggml's quantised blocks, as GGUF files hold them: 32 elements with one scale, or 256 with
//! a scale for every 16 or 32 of them (the "K" formats). Bit-equal to `gguf.quants.dequantize` of the
//! Python package `gguf`: every product and sum is rounded, none is fused.

// The formats are called as everybody calls them.
#![allow(non_camel_case_types)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod blocks512;
mod fixed;
mod product;
mod steps;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use product::columns;

use half::{bf16, f16};

use super::simd;

/// A block format. The digit is the bits of one element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// Scale; 4-bit elements about zero.
    Q4_0,
    /// Scale and minimum; 4-bit elements.
    Q4_1,
    /// Scale; 5-bit elements about zero.
    Q5_0,
    /// Scale and minimum; 5-bit elements.
    Q5_1,
    /// Scale; signed bytes.
    Q8_0,
    /// 4-bit scale and minimum for every 16 elements.
    Q2_K,
    /// 6-bit scale for every 16 elements.
    Q3_K,
    /// 6-bit scale and minimum for every 32 elements.
    Q4_K,
    /// 6-bit scale and minimum for every 32 elements.
    Q5_K,
    /// 8-bit scale for every 16 elements.
    Q6_K,
    /// Plain numbers, a block of one element each: for rows that lie in another order than they are counted in.
    F32,
    /// As [`Format::F32`].
    F16,
    /// As [`Format::F32`].
    BF16,
}

impl Format {
    /// The formats of plain numbers.
    pub const PLAIN: [Format; 3] = [Format::F32, Format::F16, Format::BF16];

    /// All quantised formats.
    pub const ALL: [Format; 10] = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2_K,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
    ];

    /// Elements in a block.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q8_0 => 32,
            Format::Q2_K | Format::Q3_K | Format::Q4_K | Format::Q5_K | Format::Q6_K => MAX_BLOCK,
            Format::F32 | Format::F16 | Format::BF16 => 1,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q2_K => 84,
            Format::Q3_K => 110,
            Format::Q4_K => 144,
            Format::Q5_K => 176,
            Format::Q6_K => 210,
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Elements in the longest block.
pub const MAX_BLOCK: usize = 256;

/// Calls `$decode` on each block. A macro, for a function passed as a value is not inlined into the body of a
/// SIMD level, and so not compiled for it.
macro_rules! each {
    ($blocks:ident, $out:ident, $decode:ident) => {{
        let ((blocks, bytes_rest), (out, out_rest)) = ($blocks.as_chunks(), $out.as_chunks_mut());
        assert!(bytes_rest.is_empty() && out_rest.is_empty() && blocks.len() == out.len(), "whole blocks");
        for (block, out) in blocks.iter().zip(out) {
            $decode(block, out);
        }
    }};
}

simd! {
    /// Decodes whole blocks: `out` takes `block_len` elements for every `block_bytes` bytes.
    ///
    /// # Panics
    /// When `blocks` or `out` is not a whole number of blocks, or one has more of them than the other.
    pub fn decode(format: Format, blocks: &[u8], out: &mut [f32]) {
        match format {
            Format::Q4_0 => each!(blocks, out, q4_0),
            Format::Q4_1 => each!(blocks, out, q4_1),
            Format::Q5_0 => each!(blocks, out, q5_0),
            Format::Q5_1 => each!(blocks, out, q5_1),
            Format::Q8_0 => each!(blocks, out, q8_0),
            Format::Q2_K => each!(blocks, out, q2_k),
            Format::Q3_K => each!(blocks, out, q3_k),
            Format::Q4_K => each!(blocks, out, q4_k),
            Format::Q5_K => each!(blocks, out, q5_k),
            Format::Q6_K => each!(blocks, out, q6_k),
            Format::F32 => each!(blocks, out, plain_f32),
            Format::F16 => each!(blocks, out, plain_f16),
            Format::BF16 => each!(blocks, out, plain_bf16),
        }
    }
}

#[inline(always)]
fn plain_f32(block: &[u8; 4], out: &mut [f32; 1]) {
    *out = [f32::from_le_bytes(*block)];
}

#[inline(always)]
fn plain_f16(block: &[u8; 2], out: &mut [f32; 1]) {
    *out = [f16::from_le_bytes(*block).to_f32()];
}

#[inline(always)]
fn plain_bf16(block: &[u8; 2], out: &mut [f32; 1]) {
    *out = [bf16::from_le_bytes(*block).to_f32()];
}

/// The f16 at byte `at`. Without a branch and without a call, which looks for an instruction each time: the exponent is rebased
/// by a product with 2^112, which also normalises subnormal numbers.
#[inline(always)]
fn scale(block: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(239 << 23);
    let special = if magnitude >= 65_536.0 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

/// The codes of a 32-block of nibbles: first all low ones, then all high ones. `fifth_bits` are those of
/// all elements, zero where there are none.
#[inline(always)]
fn codes_32(nibbles: &[u8], fifth_bits: u32) -> [u8; 32] {
    let mut codes = [0; 32];
    for (half, codes) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        for (i, code) in codes.iter_mut().enumerate() {
            let fifth = fifth_bits >> (half * 16 + i) & 1;
            *code = nibbles[i] >> (half * 4) & 15 | (fifth << 4) as u8;
        }
    }
    codes
}

/// The four bytes at `at`.
#[inline(always)]
fn bits_32(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    *out = codes_32(&block[2..18], 0).map(|code| d * (f32::from(code) - 8.0));
}

#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, min) = (scale(block, 0), scale(block, 2));
    *out = codes_32(&block[4..20], 0).map(|code| d * f32::from(code) + min);
}

#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    *out = codes_32(&block[6..22], bits_32(block, 2)).map(|code| d * (f32::from(code) - 16.0));
}

#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, min) = (scale(block, 0), scale(block, 2));
    *out = codes_32(&block[8..24], bits_32(block, 4)).map(|code| d * f32::from(code) + min);
}

#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (v, &code) in out.iter_mut().zip(&block[2..]) {
        *v = f32::from(code as i8) * d;
    }
}

/// scales 16, codes 64, scale of scales 2, scale of minimums 2. A row is 32 elements of one bit pair; each
/// half of 32 bytes of codes holds four rows.
#[inline(always)]
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, codes) = block.split_at(16);
    let (d, dmin) = (scale(block, 80), scale(block, 82));
    for (row, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let codes = &codes[row / 4 * 32..][..32];
        for (i, v) in out.iter_mut().enumerate() {
            let sub = scales[row * 2 + i / 16];
            let code = codes[i] >> (row % 4 * 2) & 3;
            *v = d * f32::from(sub & 15) * f32::from(code) - dmin * f32::from(sub >> 4);
        }
    }
}

/// third bits 32, low bits 64, scales 12, scale of scales 2. Rows as in [`q2_k`]; the third bit of row r is
/// bit r, and it is set where the element is not lowered by 4.
#[inline(always)]
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (third_bits, codes) = block.split_at(32);
    let (low, high) = block[96..108].split_at(8);
    let d = scale(block, 108);
    for (row, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let codes = &codes[row / 4 * 32..][..32];
        for (i, v) in out.iter_mut().enumerate() {
            let s = row * 2 + i / 16;
            let sub = low[s % 8] >> (s / 8 * 4) & 15 | (high[s % 4] >> (s / 4 * 2) & 3) << 4;
            let code = (codes[i] >> (row % 4 * 2) & 3) + (third_bits[i] >> row & 1) * 4;
            *v = d * (f32::from(sub) - 32.0) * (f32::from(code) - 4.0);
        }
    }
}

/// The 6-bit scale and minimum of row `row`, out of 12 bytes that hold eight of each.
#[inline(always)]
fn scale_and_min(scales: &[u8], row: usize) -> (f32, f32) {
    let (sub, min) = if row < 4 {
        (scales[row] & 63, scales[row + 4] & 63)
    } else {
        let upper = |byte: u8| byte >> 2 & 0x30;
        (scales[row + 4] & 15 | upper(scales[row - 4]), scales[row + 4] >> 4 | upper(scales[row]))
    };
    (f32::from(sub), f32::from(min))
}

/// scale of scales 2, scale of minimums 2, scales and minimums 12, codes 128. Each 32 bytes of codes hold two
/// rows, the low nibbles and the high ones.
#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    for (row, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sub, min) = scale_and_min(&block[4..16], row);
        let (d, min) = (d * sub, dmin * min);
        let codes = &block[16 + row / 2 * 32..][..32];
        for (v, code) in out.iter_mut().zip(codes) {
            *v = d * f32::from(code >> (row % 2 * 4) & 15) - min;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the codes; that of row r is bit r.
#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let fifth_bits = &block[16..48];
    for (row, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sub, min) = scale_and_min(&block[4..16], row);
        let (d, min) = (d * sub, dmin * min);
        let codes = &block[48 + row / 2 * 32..][..32];
        for ((v, code), bits) in out.iter_mut().zip(codes).zip(fifth_bits) {
            let code = code >> (row % 2 * 4) & 15 | (bits >> row & 1) << 4;
            *v = d * f32::from(code) - min;
        }
    }
}

/// low nibbles 128, upper bit pairs 64, signed scales 16, scale of scales 2. Of each four rows, 64 bytes hold
/// the nibbles (two rows low, two rows high) and 32 bytes the bit pairs.
#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = scale(block, 208);
    for (row, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (four, row_of_four) = (row / 4, row % 4);
        let low = &block[four * 64 + row_of_four % 2 * 32..][..32];
        let high = &block[128 + four * 32..][..32];
        for (i, v) in out.iter_mut().enumerate() {
            let sub = f32::from(block[192 + row * 2 + i / 16] as i8);
            let code = low[i] >> (row_of_four / 2 * 4) & 15 | (high[i] >> (row_of_four * 2) & 3) << 4;
            *v = d * sub * (f32::from(code) - 32.0);
        }
    }
}
