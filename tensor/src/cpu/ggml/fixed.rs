//! Rows of 16-bit floats as fixed-point numbers, for products in integers.
//!
//! Each run of 32 elements has a power of two s, such that the largest magnitude is from 2^14 s to 2^15 s, and an element
//! becomes the integer X = round(x / s) of 16 bits. bf16 has 8 significant bits and f16 has 11, so the largest is exact, and
//! X never reaches 2^15; elements of bf16 down to 2^-7 of the run's largest are exact, of f16 down to 2^-4. Others are off by at most
//! s / 2 <= 2^-15 of the largest. (Below 2^-112, s stays at 2^-126.) A run that holds a NaN or an infinity has a NaN for s, and so has whatever is made of it.

use crate::cpu::scratch::Buffer;
use crate::cpu::{Cpu, simd};

/// Elements with one power of two.
pub(super) const RUN: usize = 32;

/// Rows of fixed-point numbers, each filled up to whole steps with zeros.
pub(super) struct Fixed {
    /// How many.
    pub(super) m: usize,
    /// Elements of a row, with those that fill it up.
    pub(super) width: usize,
    /// Elements of a block of weights that have one scale: 16 or 32.
    pub(super) run: usize,
    values: Buffer,
    scales: Buffer,
    sums: Buffer,
}

impl Fixed {
    /// `rows` of `k` elements each, a multiple of 32, cut into runs of `run` and filled up to multiples of `step`, which is four runs.
    pub(super) fn new(cpu: &Cpu, rows: &[f32], k: usize, run: usize) -> Self {
        let (m, width) = (rows.len() / k, k.next_multiple_of(4 * run));
        let runs = m * width / run;
        let (values, scales, sums) = (cpu.scratch(m * width / 2), cpu.scratch(runs), cpu.scratch(runs));
        let mut fixed = Fixed { m, width, run, values, scales, sums };
        for (i, row) in rows.chunks_exact(k).enumerate() {
            let values = &mut bytemuck::cast_slice_mut(&mut fixed.values)[i * width..][..width];
            let (scales, sums) = (&mut fixed.scales[i * width / run..], &mut fixed.sums[i * width / run..]);
            round_row(cpu.simd(), row, run, values, &mut scales[..width / run], &mut sums[..width / run]);
        }
        fixed
    }

    /// Row `i`.
    pub(super) fn row(&self, i: usize) -> Row<'_> {
        let runs = self.width / self.run;
        Row {
            values: &bytemuck::cast_slice(&self.values)[i * self.width..][..self.width],
            scales: self.scales[i * runs..][..runs].as_chunks().0,
            sums: self.sums[i * runs..][..runs].as_chunks().0,
        }
    }
}

/// One row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    /// X of each element.
    pub(super) values: &'a [i16],
    /// s of each run, four runs a step.
    pub(super) scales: &'a [[f32; 4]],
    /// s ΣX of each run.
    pub(super) sums: &'a [[f32; 4]],
}

/// 1.5 · 2^23: a float below 2^22 added to it is rounded to an integer, ties to even, in the low bits of the sum.
const TO_INTEGER: f32 = 12_582_912.0;

simd! {
    fn round_row(x: &[f32], run: usize, values: &mut [i16], scales: &mut [f32], sums: &mut [f32]) {
        let parts = RUN / run;
        for (i, x) in x.as_chunks::<RUN>().0.iter().enumerate() {
            let values: &mut [i16; RUN] = (&mut values[i * RUN..][..RUN]).try_into().expect("a run");
            let scale = round_run(x, values);
            for part in 0..parts {
                let sum: i32 = values[part * run..][..run].iter().map(|&v| i32::from(v)).sum();
                scales[i * parts + part] = scale;
                sums[i * parts + part] = scale * sum as f32;
            }
        }
        values[x.len()..].fill(0);
        scales[x.len() / run..].fill(0.0);
        sums[x.len() / run..].fill(0.0);
    }
}

/// Writes X of a run and returns s.
#[inline(always)]
fn round_run(x: &[f32; RUN], values: &mut [i16; RUN]) -> f32 {
    let largest = x.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    if largest >= f32::INFINITY.to_bits() {
        values.fill(0);
        return f32::NAN;
    }
    // The exponent of the largest, less 14; not so small that 1 / s overflows.
    let exponent = (largest >> 23).saturating_sub(14).max(1);
    let (scale, inverse) = (f32::from_bits(exponent << 23), f32::from_bits((254 - exponent) << 23));
    for (value, x) in values.iter_mut().zip(x) {
        *value = (x * inverse + TO_INTEGER).to_bits().wrapping_sub(TO_INTEGER.to_bits()) as i16;
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Simd;
    use half::{bf16, f16};

    fn rounded(x: &[f32]) -> (Vec<i16>, Vec<f32>) {
        let cpu = Cpu::single(Simd::detect());
        let fixed = Fixed::new(&cpu, x, x.len(), 32);
        (fixed.row(0).values.to_vec(), fixed.row(0).scales.as_flattened().to_vec())
    }

    #[test]
    fn every_16_bit_float_is_within_half_a_step_of_its_run() {
        for bits in (0..u16::MAX).step_by(5) {
            for largest in [f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32()] {
                let x: Vec<f32> = (0..32).map(|i| largest * [1.0, -1.0, 0.37, 2f32.powi(-9)][i % 4]).collect();
                let (values, scales) = rounded(&x);
                if !largest.is_finite() {
                    assert!(scales[0].is_nan() && values.iter().all(|&v| v == 0), "{largest}");
                    continue;
                }
                let s = f64::from(scales[0]);
                assert!(
                    f64::from(largest.abs()) < 32768.0 * s
                        && (s <= 2f64.powi(-126) || f64::from(largest.abs()) >= 16384.0 * s)
                );
                for (x, value) in x.iter().zip(values) {
                    assert!((f64::from(*x) - s * f64::from(value)).abs() <= s / 2.0, "{x} of {largest} is {value}");
                }
            }
        }
    }

    #[test]
    fn a_row_is_filled_up_with_zeros() {
        let cpu = Cpu::single(Simd::detect());
        let x: Vec<f32> = (0..96).map(|i| i as f32).collect();
        let fixed = Fixed::new(&cpu, &x, 48 * 2, 16);
        let row = fixed.row(0);
        assert_eq!((row.values.len(), row.scales.len(), row.sums.len()), (128, 2, 2));
        assert_eq!((row.scales[1][1], row.scales[1][2], row.values[96]), (2f32.powi(-8), 0.0, 0));
        assert_eq!(row.sums.as_flattened().iter().sum::<f32>(), 95.0 * 48.0);
    }
}
