//! 4-bit blocks and their double quantisation against bitsandbytes.

use super::fixture::{Array, Fixture, assert_bits, cpus, levels};
use kinglet_tensor::cpu::Cpu;
use kinglet_tensor::cpu::nf4::{Absmax, Blocks, DYNAMIC_MAP, Format, mean, quantize, quantize_absmax};
use safetensors::Dtype;

/// The cases of the fixture: name, format, block size, input.
fn cases(file: &Fixture) -> Vec<(String, Format, usize, Array)> {
    let mut cases = Vec::new();
    for name in file.names() {
        if let Some(case) = name.strip_suffix(".codes").filter(|case| case.contains('/')) {
            let [format, blocksize, input] = case.split('/').collect::<Vec<_>>().try_into().unwrap();
            let format = if format == "nf4" { Format::Nf4 } else { Format::Fp4 };
            cases.push((case.to_owned(), format, blocksize.parse().unwrap(), file.get(&format!("x/{input}"))));
        }
    }
    assert!(cases.len() >= 21, "{} cases", cases.len());
    cases
}

fn quantize_array(cpu: &Cpu, format: Format, blocksize: usize, x: &Array) -> (Vec<u8>, Vec<f32>) {
    let len: usize = x.shape.iter().product();
    let (mut codes, mut absmax) = (vec![0; len.div_ceil(2)], vec![0.0; len.div_ceil(blocksize)]);
    let finite = match x.dtype {
        Dtype::F32 => quantize(cpu, format, blocksize, &x.f32(), &mut codes, &mut absmax),
        Dtype::BF16 => quantize(cpu, format, blocksize, &x.bf16(), &mut codes, &mut absmax),
        Dtype::F16 => quantize(cpu, format, blocksize, &x.f16(), &mut codes, &mut absmax),
        other => panic!("{other:?}"),
    };
    assert!(finite);
    (codes, absmax)
}

#[test]
fn the_maps_are_those_of_bitsandbytes() {
    let file = Fixture::open("blockwise.safetensors");
    assert_bits(&DYNAMIC_MAP, &file.get("dynamic_map").f32(), "dynamic map");
    assert_bits(Format::Nf4.levels(), &file.get("levels/nf4").f32(), "NF4");
    assert_bits(Format::Fp4.levels(), &file.get("levels/fp4").f32(), "FP4");
}

#[test]
fn codes_and_scales_are_those_of_bitsandbytes() {
    let file = Fixture::open("blockwise.safetensors");
    for cpu in cpus() {
        for (case, format, blocksize, x) in cases(&file) {
            let (codes, absmax) = quantize_array(&cpu, format, blocksize, &x);
            assert_eq!(codes, file.get(&format!("{case}.codes")).bytes, "{case} {cpu:?}");
            assert_bits(&absmax, &file.get(&format!("{case}.absmax")).f32(), &case);
        }
    }
}

#[test]
fn nested_codes_and_scales_are_those_of_bitsandbytes() {
    let file = Fixture::open("blockwise.safetensors");
    let mut nested = 0;
    for (case, ..) in cases(&file) {
        let Some(offset) = file.try_get(&format!("{case}.offset")) else { continue };
        nested += 1;
        let (offset, scales) = (offset.f32()[0], file.get(&format!("{case}.absmax")).f32());
        let ulps = mean(&scales).to_bits().abs_diff(offset.to_bits());
        assert!(ulps <= 2, "{case}: the offset is {ulps} ulps away");
        for cpu in cpus() {
            let (mut codes, mut absmax) = (vec![0; scales.len()], vec![0.0; scales.len().div_ceil(256)]);
            quantize_absmax(&cpu, &scales, offset, &mut codes, &mut absmax);
            assert_eq!(codes, file.get(&format!("{case}.nested_codes")).bytes, "{case} {cpu:?}");
            assert_bits(&absmax, &file.get(&format!("{case}.nested_absmax")).f32(), &case);
            let decoded = Absmax::Nested { codes: &codes, absmax: &absmax, map: &DYNAMIC_MAP, offset };
            let decoded: Vec<_> = (0..scales.len()).map(|i| decoded.get(i)).collect();
            assert_bits(&decoded, &file.get(&format!("{case}.nested_scales")).f32(), &case);
        }
    }
    assert!(nested >= 11, "{nested} nested cases");
}

#[test]
fn scales_that_tell_roundings_apart_have_the_codes_of_bitsandbytes() {
    let file = Fixture::open("blockwise.safetensors");
    let scales = file.get("scales").f32();
    for cpu in cpus() {
        let (mut codes, mut absmax) = (vec![0; scales.len()], vec![0.0; scales.len() / 256]);
        quantize_absmax(&cpu, &scales, 0.0, &mut codes, &mut absmax);
        assert_eq!(codes, file.get("scales.codes").bytes, "{cpu:?}");
        assert_bits(&absmax, &file.get("scales.absmax").f32(), "absmax");
    }
}

#[test]
fn decoded_values_are_those_of_bitsandbytes() {
    let file = Fixture::open("blockwise.safetensors");
    for (case, format, blocksize, x) in cases(&file) {
        let codes = file.get(&format!("{case}.codes")).bytes;
        for (scales, values) in [("absmax", "dequantized"), ("nested_scales", "nested_dequantized")] {
            let Some(values) = file.try_get(&format!("{case}.{values}")) else { continue };
            let scales = file.get(&format!("{case}.{scales}")).f32();
            let blocks = Blocks { format, blocksize, codes: &codes, absmax: Absmax::Plain(&scales) };
            for simd in levels() {
                let mut out = vec![f32::NAN; x.shape.iter().product()];
                blocks.decode(simd, 0, &mut out);
                assert_bits(&out, &values.f32(), &format!("{case} {simd:?}"));
            }
        }
    }
}

/// A tensor of 37 blocks with nested scales, each block with another scale.
fn with_blocks(format: Format, blocksize: usize, check: impl Fn(&Blocks)) {
    let codes: Vec<u8> = (0..37 * blocksize / 2).map(|i| (i * 151 + i / 7) as u8).collect();
    let scales: Vec<u8> = (0..37).map(|i| i * 5).collect();
    let absmax = Absmax::Nested { codes: &scales, absmax: &[0.7], map: &DYNAMIC_MAP, offset: 0.3 };
    check(&Blocks { format, blocksize, codes: &codes, absmax });
}

#[test]
fn any_range_decodes_to_the_same_bits_at_every_level() {
    for (format, blocksize) in [(Format::Nf4, 64), (Format::Fp4, 32), (Format::Nf4, 128)] {
        with_blocks(format, blocksize, |blocks| {
            let element = |i: usize| {
                let code = blocks.codes[i / 2] >> (if i.is_multiple_of(2) { 4 } else { 0 }) & 15;
                format.levels()[code as usize] * blocks.absmax.get(i / blocksize)
            };
            for simd in levels() {
                for start in (0..2 * blocksize).chain([1000, 1001]) {
                    for len in (0..70).chain([127, 128, 129, 150]) {
                        let mut guarded = vec![7.0; len + 1];
                        blocks.decode(simd, start, &mut guarded[..len]);
                        let mut want: Vec<_> = (start..start + len).map(element).collect();
                        want.push(7.0);
                        assert_bits(&guarded, &want, &format!("{format:?} {simd:?} {start}+{len}"));
                    }
                }
            }
        });
    }
}

#[test]
fn what_is_not_finite_is_reported() {
    for cpu in cpus() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 63, 64, 4095, 4096, 9000, 9001] {
                let mut x = vec![0.5; 9002];
                let (mut codes, mut absmax) = (vec![0; 4501], vec![0.0; 141]);
                assert!(quantize(&cpu, Format::Nf4, 64, &x, &mut codes, &mut absmax));
                x[at] = bad;
                assert!(!quantize(&cpu, Format::Nf4, 64, &x, &mut codes, &mut absmax), "{bad} at {at}");
            }
        }
    }
}
