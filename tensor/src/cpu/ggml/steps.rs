//! Blocks as integers: four runs of codes that have one scale each, and what they are scaled with.

use super::{Format, bits_32, scale};

/// Runs in a step.
pub(super) const RUNS: usize = 4;

/// Four neighbouring runs: element i of run r stands for `scales[r] * codes[r * run + i] + mins[r]`.
pub(super) struct Step {
    pub(super) codes: [i8; RUNS * 32],
    pub(super) scales: [f32; RUNS],
    pub(super) mins: [f32; RUNS],
}

impl Step {
    pub(super) const ZERO: Step = Step { codes: [0; RUNS * 32], scales: [0.0; RUNS], mins: [0.0; RUNS] };
}

impl Format {
    /// Elements with one scale: 16 or 32 (0 of plain numbers, which have none).
    pub(super) const fn run(self) -> usize {
        match self {
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q8_0 | Format::Q4_K | Format::Q5_K => {
                32
            }
            Format::Q2_K | Format::Q3_K | Format::Q6_K => 16,
            Format::F32 | Format::F16 | Format::BF16 => 0,
        }
    }

    /// Whether elements have a minimum beside their scale.
    pub(super) const fn has_min(self) -> bool {
        matches!(self, Format::Q4_1 | Format::Q5_1 | Format::Q2_K | Format::Q4_K | Format::Q5_K)
    }

    /// Steps in a row of `bytes` bytes; the last of blocks of 32 may be of fewer runs.
    pub(super) const fn steps(self, bytes: usize) -> usize {
        (bytes / self.block_bytes() * self.block_len()).div_ceil(RUNS * self.run())
    }
}

/// Step `index` of a row of whole blocks. Runs past its end have scales of zero.
#[inline(always)]
pub(super) fn unpack(format: Format, row: &[u8], index: usize, step: &mut Step) {
    match format {
        Format::Q4_0 => {
            each_block(row, index, step, |block: &[u8; 18]| (nibbles(&block[2..], [0; 32], 8), scale(block, 0), 0.0))
        }
        Format::Q4_1 => each_block(row, index, step, |block: &[u8; 20]| {
            (nibbles(&block[4..], [0; 32], 0), scale(block, 0), scale(block, 2))
        }),
        Format::Q5_0 => each_block(row, index, step, |block: &[u8; 22]| {
            (nibbles(&block[6..], fifth_bits(bits_32(block, 2)), 16), scale(block, 0), 0.0)
        }),
        Format::Q5_1 => each_block(row, index, step, |block: &[u8; 24]| {
            (nibbles(&block[8..], fifth_bits(bits_32(block, 4)), 0), scale(block, 0), scale(block, 2))
        }),
        Format::Q8_0 => each_block(row, index, step, |block: &[u8; 34]| {
            (std::array::from_fn(|i| block[2 + i] as i8), scale(block, 0), 0.0)
        }),
        Format::Q2_K => q2_k(part(row, index, 4), index % 4, step),
        Format::Q3_K => q3_k(part(row, index, 4), index % 4, step),
        Format::Q4_K => q4_k(part(row, index, 2), index % 2, step),
        Format::Q5_K => q5_k(part(row, index, 2), index % 2, step),
        Format::Q6_K => q6_k(part(row, index, 4), index % 4, step),
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("plain numbers are no blocks"),
    }
}

/// Codes of 16 bytes of nibbles, first all low ones, with `upper` bits, less `zero`.
#[inline(always)]
fn nibbles(bytes: &[u8], upper: [u8; 32], zero: i8) -> [i8; 32] {
    let (mut codes, bytes): (_, &[u8; 16]) = ([0; 32], bytes.try_into().expect("16 bytes"));
    for i in 0..16 {
        codes[i] = (bytes[i] & 15 | upper[i]) as i8 - zero;
        codes[16 + i] = (bytes[i] >> 4 | upper[16 + i]) as i8 - zero;
    }
    codes
}

/// 16 for each bit that is set, the lowest first.
#[inline(always)]
fn fifth_bits(bits: u32) -> [u8; 32] {
    let mut fifth = [0; 32];
    for (bits, fifth) in bits.to_le_bytes().into_iter().zip(fifth.as_chunks_mut::<8>().0) {
        // Byte i of eight copies keeps bit i, and passes on whether it is set to its highest bit.
        let each = (u64::from(bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        let set = (each + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & 0x0101_0101_0101_0101;
        *fifth = (set << 4).to_le_bytes();
    }
    fifth
}

/// A row of 32 codes less `zero`, each as `code` makes it of one byte of `low` and one of `high`.
#[inline(always)]
fn set_row(codes: &mut [i8], low: &[u8], high: &[u8], code: impl Fn(u8, u8) -> u8, zero: i8) {
    let codes: &mut [i8; 32] = codes.try_into().expect("a row");
    let (low, high): (&[u8; 32], &[u8; 32]) = (low.try_into().expect("a row"), high.try_into().expect("a row"));
    for i in 0..32 {
        codes[i] = code(low[i], high[i]) as i8 - zero;
    }
}

/// A step of up to four blocks of 32, each as codes, scale and minimum.
#[inline(always)]
fn each_block<const BYTES: usize>(
    row: &[u8],
    index: usize,
    step: &mut Step,
    unpack: impl Fn(&[u8; BYTES]) -> ([i8; 32], f32, f32),
) {
    let blocks = &row.as_chunks::<BYTES>().0[index * RUNS..];
    for (run, codes) in step.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let unpacked = blocks.get(run).map_or(([0; 32], 0.0, 0.0), &unpack);
        (*codes, step.scales[run], step.mins[run]) = unpacked;
    }
}

/// The block of 256 that step `index` is in, where a block has `steps` of them.
#[inline(always)]
pub(super) fn part<const BYTES: usize>(row: &[u8], index: usize, steps: usize) -> &[u8; BYTES] {
    &row.as_chunks::<BYTES>().0[index / steps]
}

/// `scales` times d; `mins` times the scale of minimums, subtracted.
#[inline(always)]
fn set_scales(step: &mut Step, d: f32, scales: [i8; RUNS], dmin: f32, mins: [u8; RUNS]) {
    step.scales = scales.map(|s| d * f32::from(s));
    step.mins = mins.map(|m| -(dmin * f32::from(m)));
}

#[inline(always)]
fn q2_k(block: &[u8; 84], index: usize, step: &mut Step) {
    let subs: [u8; 4] = bits_32(block, index * 4).to_le_bytes();
    for (i, codes) in step.codes[..64].chunks_exact_mut(32).enumerate() {
        let row = index * 2 + i;
        let low = &block[16 + row / 4 * 32..][..32];
        set_row(codes, low, low, |low, _| low >> (row % 4 * 2) & 3, 0);
    }
    set_scales(step, scale(block, 80), subs.map(|s| (s & 15) as i8), scale(block, 82), subs.map(|s| s >> 4));
}

/// The scales of the runs of step `index` of a block of Q3_K, signed bytes.
#[inline(always)]
pub(super) fn q3_k_scales(block: &[u8], index: usize) -> u32 {
    let low = bits_32(block, 96 + index % 2 * 4) >> (index / 2 * 4) & 0x0f0f_0f0f;
    let high = bits_32(block, 104) >> (index * 2) & 0x0303_0303;
    // Less 32 in each byte: codes below 64 take a carry no further than the bit above them.
    let above = (low | high << 4) + 0x6060_6060;
    above ^ 0x8080_8080
}

#[inline(always)]
fn q3_k(block: &[u8; 110], index: usize, step: &mut Step) {
    for (i, codes) in step.codes[..64].chunks_exact_mut(32).enumerate() {
        let row = index * 2 + i;
        let (low, third) = (&block[32 + row / 4 * 32..][..32], &block[..32]);
        set_row(codes, low, third, |low, third| low >> (row % 4 * 2) & 3 | (third >> row & 1) << 2, 4);
    }
    set_scales(step, scale(block, 108), q3_k_scales(block, index).to_le_bytes().map(|s| s as i8), 0.0, [0; RUNS]);
}

/// The scales and minimums of four rows of Q4_K and Q5_K, bytes: the first four or the last, out of 12 bytes at `at`.
#[inline(always)]
pub(super) fn six_bits(block: &[u8], at: usize, index: usize) -> [u32; 2] {
    let [a, b, c] = [0, 4, 8].map(|i| bits_32(block, at + i));
    if index == 0 {
        [a & 0x3f3f_3f3f, b & 0x3f3f_3f3f]
    } else {
        [c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030, c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030]
    }
}

#[inline(always)]
fn q4_k(block: &[u8; 144], index: usize, step: &mut Step) {
    for (i, codes) in step.codes.chunks_exact_mut(32).enumerate() {
        let row = index * 4 + i;
        let low = &block[16 + row / 2 * 32..][..32];
        set_row(codes, low, low, |low, _| low >> (row % 2 * 4) & 15, 0);
    }
    let [subs, mins] = six_bits(block, 4, index).map(u32::to_le_bytes);
    set_scales(step, scale(block, 0), subs.map(|s| s as i8), scale(block, 2), mins);
}

#[inline(always)]
fn q5_k(block: &[u8; 176], index: usize, step: &mut Step) {
    for (i, codes) in step.codes.chunks_exact_mut(32).enumerate() {
        let row = index * 4 + i;
        let (low, fifth) = (&block[48 + row / 2 * 32..][..32], &block[16..48]);
        set_row(codes, low, fifth, |low, fifth| low >> (row % 2 * 4) & 15 | (fifth >> row & 1) << 4, 0);
    }
    let [subs, mins] = six_bits(block, 4, index).map(u32::to_le_bytes);
    set_scales(step, scale(block, 0), subs.map(|s| s as i8), scale(block, 2), mins);
}

#[inline(always)]
fn q6_k(block: &[u8; 210], index: usize, step: &mut Step) {
    for (i, codes) in step.codes[..64].chunks_exact_mut(32).enumerate() {
        let (four, of_four) = ((index * 2 + i) / 4, (index * 2 + i) % 4);
        let low = &block[four * 64 + of_four % 2 * 32..][..32];
        let high = &block[128 + four * 32..][..32];
        let code = |low, high| low >> (of_four / 2 * 4) & 15 | (high >> (of_four * 2) & 3) << 4;
        set_row(codes, low, high, code, 32);
    }
    let subs = bits_32(block, 192 + index * 4).to_le_bytes().map(|s| s as i8);
    set_scales(step, scale(block, 208), subs, 0.0, [0; RUNS]);
}
