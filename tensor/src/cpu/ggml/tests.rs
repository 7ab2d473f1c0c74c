use super::*;
use crate::cpu::gemm::FewRows;
use crate::cpu::{Cpu, Level, Simd};

/// Numbers in [-1, 1).
fn values(n: usize, seed: u32) -> Vec<f32> {
    let hash = |i: usize| (i as u32 ^ seed).wrapping_mul(2_654_435_761).rotate_left(11).wrapping_mul(40_503);
    (0..n).map(|i| hash(i) as f32 / 2f32.powi(31) - 1.0).collect()
}

/// `rows` rows of blocks of any bits, but for scales, which are numbers.
fn blocks(format: Format, rows: usize, k: usize, seed: u32) -> Vec<u8> {
    let bytes = rows * k / format.block_len() * format.block_bytes();
    let mut blocks: Vec<u8> = values(bytes, seed).iter().map(|v| (v * 128.0) as i8 as u8).collect();
    let scales: &[usize] = match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        _ => &[208],
    };
    for block in blocks.chunks_exact_mut(format.block_bytes()) {
        scales.iter().for_each(|&at| block[at + 1] = block[at + 1] & 0x83 | 0x28);
    }
    blocks
}

/// The levels of this machine; the best comes last.
fn levels() -> Vec<Simd> {
    [Level::Portable, Level::Avx2, Level::Avx512].into_iter().filter_map(|l| Simd::new(l).ok()).collect()
}

/// [n, m]
fn product(simd: Simd, format: Format, blocks: &[u8], x: &[f32], k: usize) -> Vec<f32> {
    let (cpu, m) = (Cpu::single(simd), x.len() / k);
    let row_bytes = k / format.block_len() * format.block_bytes();
    let mut out = vec![f32::NAN; blocks.len() / row_bytes * m];
    let x = FewRows { cpu: &cpu, rows: x, m, k, is_half: true, round_bf16: false };
    columns(format, x, blocks, |j| j).expect("blocks").dot(0, &mut out);
    out
}

fn to_bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Every format at every level is the product of the decoded weights, but for the rounding of x, and has the same bits.
#[test]
fn is_the_product_of_decoded_weights_at_every_level() {
    for format in Format::ALL {
        let widths: &[usize] = if format.block_len() == 32 { &[32, 96, 128, 160, 576] } else { &[256, 512, 1280] };
        for (&k, m) in widths.iter().cycle().zip(1..=8) {
            let (n, x) = (5, values(m * k, 3).iter().map(|v| bf16::from_f32(*v).to_f32()).collect::<Vec<_>>());
            let blocks = blocks(format, n, k, 7 + m as u32);
            let mut weights = vec![0.0; n * k];
            decode(Simd::detect(), format, &blocks, &mut weights);
            let all: Vec<_> = levels().into_iter().map(|simd| product(simd, format, &blocks, &x, k)).collect();
            for (j, w) in weights.chunks_exact(k).enumerate() {
                for (i, x) in x.chunks_exact(k).enumerate() {
                    let products = || w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let (want, got) = (products().sum::<f64>(), f64::from(all[0][j * m + i]));
                    // x is off by 2^-15 of the largest of 32, and minimums cost what they are larger than weights.
                    let size: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
                    assert!((got - want).abs() <= 2f64.powi(-15) * size, "{format} {k}: {got} for {want}");
                }
            }
            for other in &all {
                assert_eq!(to_bits(other), to_bits(&all[0]), "{format} {k} x {m}");
            }
        }
    }
}

/// Rows of x do not change one another's bits, and a row that holds no number gives none.
#[test]
fn rows_keep_to_themselves() {
    for (format, k) in [(Format::Q4_1, 96), (Format::Q8_0, 160), (Format::Q6_K, 512)] {
        let blocks = blocks(format, 3, k, 1);
        for simd in levels() {
            for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let mut x = values(8 * k, 2);
                x[5 * k + 40] = bad;
                let together = product(simd, format, &blocks, &x, k);
                for (i, x) in x.chunks_exact(k).enumerate() {
                    let alone = product(simd, format, &blocks, x, k);
                    for (j, alone) in alone.iter().enumerate() {
                        let same = together[j * 8 + i];
                        assert!(if i == 5 {
                            same.is_nan() && alone.is_nan()
                        } else {
                            same.to_bits() == alone.to_bits()
                        });
                    }
                }
            }
        }
    }
}

/// What lies behind a row, even scales that are no numbers, is no part of it.
#[test]
fn rows_of_weights_keep_to_themselves() {
    for format in Format::ALL.into_iter().filter(|f| f.block_len() == 32) {
        for k in [32, 64, 224] {
            let x = values(3 * k, 4);
            let alone = blocks(format, 1, k, 5);
            let followed = [&alone[..], &vec![0xff; alone.len()]].concat();
            for simd in levels() {
                let got = product(simd, format, &followed, &x, k);
                assert_eq!(to_bits(&got[..3]), to_bits(&product(simd, format, &alone, &x, k)), "{format} {k}");
            }
        }
    }
}

/// Codes, scales and x of the largest magnitudes, where sums of bytes or of pairs could overflow.
#[test]
fn extremes_do_not_overflow() {
    for format in Format::ALL {
        let k = 512;
        for (byte, sign) in [(0xff, 1.0), (0xff, -1.0), (0x80, 1.0), (0x80, -1.0), (0x00, 1.0), (0x7f, -1.0)] {
            let mut blocks = vec![byte; k / format.block_len() * format.block_bytes()];
            for (at, block) in blocks.chunks_exact_mut(format.block_bytes()).enumerate() {
                let scale = f16::from_f32(if at % 2 == 0 { 0.5 } else { -0.25 }).to_le_bytes();
                let places: &[usize] = match format {
                    Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => &[0],
                    Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
                    Format::Q2_K => &[80, 82],
                    Format::Q3_K => &[108],
                    _ => &[208],
                };
                places.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&scale));
            }
            let mut weights = vec![0.0; k];
            decode(Simd::detect(), format, &blocks, &mut weights);
            let x = vec![sign * f16::MAX.to_f32(); k];
            let want: f64 = weights.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            for simd in levels() {
                let got = f64::from(product(simd, format, &blocks, &x, k)[0]);
                let size: f64 = weights.iter().map(|w| f64::from(w.abs())).sum::<f64>() * 65504.0;
                assert!((got - want).abs() <= 1e-5 * size, "{format} {byte:x} {simd:?}: {got} for {want}");
            }
        }
    }
}
