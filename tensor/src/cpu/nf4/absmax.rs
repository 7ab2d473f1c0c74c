//! The scales of 4-bit blocks, plain or quantised once more to 8 bits ("double" or "nested" quantisation).

use super::super::Cpu;

/// Scales in one block of the second quantisation.
pub const ABSMAX_BLOCK: usize = 256;

/// The scale of each 4-bit block.
#[derive(Clone, Copy, Debug)]
pub enum Absmax<'a> {
    /// As they are.
    Plain(&'a [f32]),
    /// Quantised: scale i is `map[codes[i]] * absmax[i / 256] + offset`, rounded after each operation.
    Nested {
        /// One code a scale.
        codes: &'a [u8],
        /// The scale of each block of [`ABSMAX_BLOCK`] codes.
        absmax: &'a [f32],
        /// What the codes stand for: [`DYNAMIC_MAP`], or the map that came with the file.
        map: &'a [f32; 256],
        /// The mean of the scales.
        offset: f32,
    },
}

impl Absmax<'_> {
    /// The scale of block `i`.
    #[must_use]
    #[inline]
    pub fn get(&self, i: usize) -> f32 {
        match *self {
            Absmax::Plain(absmax) => absmax[i],
            Absmax::Nested { codes, absmax, map, offset } => map[codes[i] as usize] * absmax[i / ABSMAX_BLOCK] + offset,
        }
    }

    /// The scales of blocks `first`, `first + 1`, ..
    #[inline]
    pub(super) fn write(&self, first: usize, out: &mut [f32]) {
        match *self {
            Absmax::Plain(absmax) => out.copy_from_slice(&absmax[first..][..out.len()]),
            Absmax::Nested { codes, absmax, map, offset } => {
                let (mut codes, mut out) = (&codes[first..][..out.len()], out);
                let mut run = ABSMAX_BLOCK - first % ABSMAX_BLOCK;
                for &absmax in &absmax[first / ABSMAX_BLOCK..] {
                    let n = run.min(out.len());
                    let (now, later) = out.split_at_mut(n);
                    for (out, &code) in now.iter_mut().zip(codes) {
                        *out = map[code as usize] * absmax + offset;
                    }
                    (codes, out, run) = (&codes[n..], later, ABSMAX_BLOCK);
                    if out.is_empty() {
                        break;
                    }
                }
            }
        }
    }
}

/// The mean, summed in f64 from first to last; 0 of none. The offset of a double quantisation.
#[must_use]
pub fn mean(x: &[f32]) -> f32 {
    let sum: f64 = x.iter().map(|&v| f64::from(v)).sum();
    (sum / x.len().max(1) as f64) as f32
}

/// Quantises the scales `x`, less `offset`, to one code each and one scale for every 256 of them.
/// All of `x` must be finite.
///
/// # Panics
/// When the lengths do not fit.
pub fn quantize_absmax(cpu: &Cpu, x: &[f32], offset: f32, codes: &mut [u8], absmax: &mut [f32]) {
    assert_eq!(codes.len(), x.len());
    assert_eq!(absmax.len(), x.len().div_ceil(ABSMAX_BLOCK));
    let blocks = x.chunks(ABSMAX_BLOCK).zip(codes.chunks_mut(ABSMAX_BLOCK)).zip(absmax);
    let mut blocks: Vec<_> = blocks.collect();
    cpu.chunks(&mut blocks, 16, |_, blocks| {
        for ((x, codes), absmax) in blocks {
            **absmax = quantize_block(x, offset, codes);
        }
    });
}

fn quantize_block(x: &[f32], offset: f32, codes: &mut [u8]) -> f32 {
    let absmax = x.iter().fold(0.0, |max: f32, &v| max.max((v - offset).abs()));
    if absmax == 0.0 {
        codes.fill(0);
        return absmax;
    }
    let reciprocal = 1.0 / absmax;
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = nearest((v - offset) * reciprocal);
    }
    absmax
}

/// The code whose value is nearest, after `x` was rounded to one of 65536 even steps of [-1, 1]: the
/// reference looks its codes up in a table of that length.
fn nearest(x: f32) -> u8 {
    const STEPS: f32 = 65535.0;
    let step = ((x.clamp(-1.0, 1.0) + 1.0) * 0.5 * STEPS + 0.5).trunc();
    let x = -1.0 + 2.0 * step / STEPS;
    MIDPOINTS.partition_point(|&midpoint| midpoint < x) as u8
}

/// What the 8-bit codes stand for: one sign, a unary exponent and the rest fraction ("dynamic tree
/// quantisation", arXiv 1511.04561), in ascending order.
pub static DYNAMIC_MAP: [f32; 256] = dynamic_map();

const fn dynamic_map() -> [f32; 256] {
    let mut map = [0.0; 256];
    let mut i = 0;
    while i < 127 {
        map[128 + i] = DYNAMIC_POSITIVE[i];
        map[126 - i] = -DYNAMIC_POSITIVE[i];
        i += 1;
    }
    map[255] = 1.0;
    map
}

/// A value above `i` of these is nearest to `DYNAMIC_MAP[i]`.
static MIDPOINTS: [f32; 255] = midpoints(&dynamic_map());

const fn midpoints(map: &[f32; 256]) -> [f32; 255] {
    let mut out = [0.0; 255];
    let mut i = 0;
    while i < out.len() {
        out[i] = 0.5 * (map[i] + map[i + 1]);
        i += 1;
    }
    out
}

/// The positive values but 1: the centres of 1, 2, .. 64 equal parts of [0.1, 1], times 1e-6, 1e-5, .. 1.
/// They are listed because their last bits are those of `torch.linspace` in f32, which no formula gives.
#[rustfmt::skip]
const DYNAMIC_POSITIVE: [f32; 127] = [
    5.500_000_4e-7, 3.250_000_2e-6, 7.75e-6, 2.124_999_8e-5, 4.375e-5, 6.625e-5, 8.875e-5, 0.000_156_250_01,
    0.000_268_750_04, 0.000_381_250_02, 0.000_493_750_03, 0.000_606_250_1, 0.000_718_750_06, 0.000_831_25,
    0.000_943_750_1, 0.001_281_249_9, 0.001_843_75, 0.002_406_25, 0.002_968_75, 0.003_531_249_7, 0.004_093_75,
    0.004_656_249_7, 0.005_218_750_3, 0.005_781_25, 0.006_343_75, 0.006_906_25, 0.007_468_75, 0.008_031_25,
    0.008_593_75, 0.009_156_249, 0.009_718_75, 0.011_406_25, 0.014_218_75, 0.017_031_25, 0.019_843_752, 0.022_656_25,
    0.025_468_75, 0.028_281_251, 0.031_093_75, 0.033_906_25, 0.036_718_752, 0.039_531_25, 0.042_343_747,
    0.045_156_25, 0.047_968_75, 0.050_781_25, 0.053_593_75, 0.056_406_25, 0.059_218_753, 0.062_031_25, 0.064_843_75,
    0.067_656_256, 0.070_468_746, 0.073_281_25, 0.076_093_75, 0.078_906_25, 0.081_718_76, 0.084_531_25, 0.087_343_75,
    0.090_156_25, 0.092_968_754, 0.095_781_26, 0.098_593_75, 0.107_031_256, 0.121_093_75, 0.135_156_24, 0.149_218_75,
    0.163_281_25, 0.177_343_76, 0.191_406_25, 0.205_468_74, 0.219_531_25, 0.233_593_75, 0.247_656_24, 0.261_718_75,
    0.275_781_27, 0.289_843_74, 0.303_906_26, 0.317_968_73, 0.332_031_25, 0.346_093_74, 0.360_156_24, 0.374_218_76,
    0.388_281_23, 0.402_343_75, 0.416_406_24, 0.430_468_74, 0.444_531_26, 0.458_593_73, 0.472_656_25, 0.486_718_7,
    0.500_781_24, 0.514_843_7, 0.528_906_2, 0.542_968_75, 0.557_031_3, 0.571_093_8, 0.585_156_26, 0.599_218_7,
    0.613_281_25, 0.627_343_8, 0.641_406_3, 0.655_468_76, 0.669_531_2, 0.683_593_75, 0.697_656_3, 0.711_718_8,
    0.725_781_26, 0.739_843_7, 0.753_906_25, 0.767_968_8, 0.782_031_24, 0.796_093_76, 0.810_156_2, 0.824_218_75,
    0.838_281_3, 0.852_343_74, 0.866_406_26, 0.880_468_7, 0.894_531_25, 0.908_593_8, 0.922_656_24, 0.936_718_76,
    0.950_781_2, 0.964_843_75, 0.978_906_3, 0.992_968_74,
];
