//! Transposing 32-bit words: floats, or pairs of bf16.

#[cfg(target_arch = "x86_64")]
use crate::cpu::Level;
use crate::cpu::Simd;

/// Lanes of words, each contiguous: word (lane, i) lies `4 i` bytes behind the start of the lane, at any alignment.
#[derive(Clone, Copy)]
pub(super) struct Words {
    /// The first lane's first byte.
    pub(super) start: *const u8,
    /// Bytes from a lane to the next.
    pub(super) stride: usize,
    pub(super) lanes: usize,
    /// Words of a lane.
    pub(super) len: usize,
}

impl Words {
    /// Writes `out[i * width + lane]`, with zeros in lanes from `lanes` to `width`.
    ///
    /// # Safety
    /// Each lane is valid for `len` words; `out` may be written for `len` rows of `width` words.
    pub(super) unsafe fn transpose(self, simd: Simd, width: usize, out: *mut u32) {
        let done = match simd.level() {
            // SAFETY: the level proves AVX-512; lanes and `out` are the caller's promise.
            #[cfg(target_arch = "x86_64")]
            level if level >= Level::Avx512 => return unsafe { avx512::transpose(self, width, out) },
            // SAFETY: as above, with AVX2.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::transpose(self, width, out) },
            _ => 0,
        };
        for i in done..self.len {
            for lane in 0..width {
                // SAFETY: word i < len of a lane that is there, and row i of `out` (the caller's).
                unsafe {
                    let word = if lane < self.lanes { self.word(lane, i).read_unaligned() } else { 0 };
                    out.add(i * width + lane).write_unaligned(word);
                }
            }
        }
    }

    /// Word `i` of a lane; past the last lane that of the last, which a caller masks out.
    #[inline(always)]
    fn word(self, lane: usize, i: usize) -> *const u32 {
        self.start.wrapping_add(lane.min(self.lanes - 1) * self.stride).cast::<u32>().wrapping_add(i)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::Words;
    use std::arch::x86_64::*;

    /// Blocks of 16 lanes and 16 words.
    ///
    /// # Safety
    /// AVX-512F, and what [`Words::transpose`] asks for.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose(x: Words, width: usize, out: *mut u32) {
        for first in (0..width).step_by(16) {
            let (filled, written) = (mask(x.lanes.saturating_sub(first)), mask(width - first));
            for i in (0..x.len).step_by(16) {
                let read = mask(x.len - i);
                let mut rows = [_mm512_setzero_si512(); 16];
                for (lane, row) in rows.iter_mut().enumerate() {
                    if filled >> lane & 1 == 1 {
                        // SAFETY: this lane is there and valid for `len` words (the caller's); no word past them is read.
                        *row = unsafe { _mm512_maskz_loadu_epi32(read, x.word(first + lane, i).cast()) };
                    }
                }
                for (step, row) in square(rows).into_iter().enumerate().take(x.len - i) {
                    // SAFETY: row i + step < len of `out`, of which only words below `width` are written (the caller's).
                    unsafe { _mm512_mask_storeu_epi32(out.add((i + step) * width + first).cast(), written, row) }
                }
            }
        }
    }

    /// The first `n` of 16.
    fn mask(n: usize) -> u16 {
        if n >= 16 { u16::MAX } else { (1 << n) - 1 }
    }

    /// The transpose of 16 x 16 words: pairs of rows are interleaved by words, by double words, then by quarters of registers
    /// twice.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn square(rows: [__m512i; 16]) -> [__m512i; 16] {
        let mut a = [_mm512_setzero_si512(); 16];
        for i in (0..16).step_by(2) {
            a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
            a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        // b[4 g + w]: in each quarter q, word 4 q + w of rows 4 g .. 4 g + 4.
        let mut b = [_mm512_setzero_si512(); 16];
        for g in 0..4 {
            for half in 0..2 {
                let (upper, lower) = (a[4 * g + half], a[4 * g + 2 + half]);
                b[4 * g + 2 * half] = _mm512_unpacklo_epi64(upper, lower);
                b[4 * g + 2 * half + 1] = _mm512_unpackhi_epi64(upper, lower);
            }
        }
        let mut out = [_mm512_setzero_si512(); 16];
        for w in 0..4 {
            // Quarters (0, 2) of rows 0 to 7 and 8 to 15, then (1, 3).
            let even = |x, y| _mm512_shuffle_i32x4::<0b10_00_10_00>(x, y);
            let odd = |x, y| _mm512_shuffle_i32x4::<0b11_01_11_01>(x, y);
            let (top, bottom) = (even(b[w], b[4 + w]), even(b[8 + w], b[12 + w]));
            out[w] = even(top, bottom);
            out[8 + w] = odd(top, bottom);
            let (top, bottom) = (odd(b[w], b[4 + w]), odd(b[8 + w], b[12 + w]));
            out[4 + w] = even(top, bottom);
            out[12 + w] = odd(top, bottom);
        }
        out
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::Words;
    use std::arch::x86_64::*;

    /// Blocks of 8 lanes and 8 words; returns how many words of each lane were taken.
    ///
    /// # Safety
    /// AVX2, and what [`Words::transpose`] asks for.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn transpose(x: Words, width: usize, out: *mut u32) -> usize {
        let whole = if x.lanes == 0 { 0 } else { x.len / 8 * 8 };
        for lane in (0..width).step_by(8) {
            let (filled, written) = (first_lanes(x.lanes.saturating_sub(lane)), first_lanes(width - lane));
            for i in (0..whole).step_by(8) {
                // SAFETY: each row holds 8 words from i on; `out` holds rows i .. i + 8, of which only lanes below `width`
                // are written.
                unsafe {
                    let rows: [*const f32; 8] = std::array::from_fn(|row| x.word(lane + row, i).cast());
                    for (step, row) in square(rows).into_iter().enumerate() {
                        let row = _mm256_and_ps(row, _mm256_castsi256_ps(filled));
                        _mm256_maskstore_ps(out.add((i + step) * width + lane).cast(), written, row);
                    }
                }
            }
        }
        whole
    }

    /// All ones in the first `n` lanes of 8.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn first_lanes(n: usize) -> __m256i {
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
    }

    /// 8 words of each of 8 rows into 8 columns. Halves of the rows i and i + 4 are loaded into one register, which leaves
    /// 16 shuffles.
    ///
    /// # Safety
    /// AVX2; each row is valid for 8 words.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn square(rows: [*const f32; 8]) -> [__m256; 8] {
        let mut out = [_mm256_setzero_ps(); 8];
        for at in [0, 4] {
            let mut pairs = [_mm256_setzero_ps(); 4];
            for (i, pair) in pairs.iter_mut().enumerate() {
                // SAFETY: each row is valid for 8 words (the caller's), at is 0 or 4.
                *pair = unsafe { _mm256_loadu2_m128(rows[i + 4].add(at), rows[i].add(at)) };
            }
            let [r0, r1, r2, r3] = pairs;
            let (lo01, hi01) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
            let (lo23, hi23) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
            out[at] = _mm256_shuffle_ps::<0b01_00_01_00>(lo01, lo23);
            out[at + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(lo01, lo23);
            out[at + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(hi01, hi23);
            out[at + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(hi01, hi23);
        }
        out
    }
}
