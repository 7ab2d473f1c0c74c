//! Products of few rows with matrices in blocks on the virtual GPU have the CPU's bits, for every form of blocks and every dtype.

use kinglet::quant::ggml::Format;
use kinglet::quant::{Direction, FourBit, GgufMatrix, RowOrder, Weight, nf4};
use kinglet::tensor::cpu::gemm::Accumulate;
use kinglet::tensor::cpu::{Level, Simd};
use kinglet::tensor::ops;
use kinglet::tensor::philox::Key;
use kinglet::{CpuOptions, DType, Device, Tensor};
use kinglet_oracle::{device, emulated, simd};
use std::sync::Arc;

fn normal(shape: &[usize], seed: u64, device: &Device) -> Tensor {
    ops::normal(shape, 1.0, Key::derive(&[seed]), device).unwrap()
}

/// Blocks of many byte patterns, whose scales stay below 1/8.
fn gguf(format: Format, shape: [usize; 2], order: RowOrder, device: &Device) -> Weight {
    let len = shape[0] * shape[1] / format.block_len() * format.block_bytes();
    let bytes = (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0xaf).collect();
    let blocks = Tensor::from_vec(bytes, &[len], device).unwrap();
    Weight::Gguf(GgufMatrix::new(format, shape, order, blocks).unwrap())
}

fn four_bit(format: nf4::Format, blocksize: usize, double: bool, shape: [usize; 2], device: &Device) -> Weight {
    Weight::FourBit(Arc::new(FourBit::quantize(&normal(&shape, 3, device), format, blocksize, double).unwrap()))
}

fn to(weight: &Weight, device: &Device) -> Weight {
    match weight {
        Weight::FourBit(w) => Weight::FourBit(Arc::new(w.to(device).unwrap())),
        Weight::Gguf(w) => Weight::Gguf(w.to(device).unwrap()),
        _ => unreachable!("blocks"),
    }
}

/// The CPU at a level that widens bf16, as these kernels do: with dot products of bf16 pairs it scales blocks of four bits after the
/// sums, not before, and has other last bits.
fn widening_cpu() -> Device {
    let simd = if simd().level() > Level::Avx512 { Simd::new(Level::Avx512).unwrap() } else { simd() };
    Device::cpu(CpuOptions { threads: Some(1), simd: Some(simd), guard: true, ..CpuOptions::default() }).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    let values = x.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
    values.into_iter().map(|v| if v.is_nan() { 0x7FFF_FFFF } else { v.to_bits() }).collect()
}

/// x Wᵀ, or 0.7 x Wᵀ added to something, on both kinds of device.
fn check(cpu: &Device, what: &str, weight: &Weight, rows: usize, dtype: DType, add: bool) {
    let gpu = emulated(if rows.is_multiple_of(2) { 90 } else { 80 }, rows as u64);
    let (n, k) = weight.dims().unwrap();
    let run = |weight: &Weight, device: &Device| {
        let x = normal(&[rows, k], 1, cpu).to_dtype(dtype).unwrap().to(device).unwrap();
        let (accumulate, alpha) = if add { (Accumulate::Add, 0.7) } else { (Accumulate::Store, 1.0) };
        let out = if add { DType::F32 } else { dtype };
        let mut y = normal(&[rows, n], 2, cpu).to_dtype(out).unwrap().to(device).unwrap();
        let launches = || device.as_cuda().map_or(0, |cuda| cuda.counts().launches);
        let before = launches();
        weight.matmul_into(&x, Direction::Forward, y.as_mut().unwrap(), accumulate, alpha).unwrap();
        (launches() - before, bits(&y))
    };
    let ((_, want), (launches, got)) = (run(weight, cpu), run(&to(weight, &gpu), &gpu));
    assert!(want == got, "{rows} rows of {dtype}, {what}, add: {add}");
    // The product, and perhaps a widening or rounding of x: no decoded matrix.
    let in_integers = matches!(weight, Weight::Gguf(w) if w.format().block_len() > 1);
    let prepared = dtype == DType::F16 || (dtype == DType::BF16 && (rows > 1 || in_integers));
    assert_eq!(launches, 1 + u64::from(prepared), "{what}");
}

#[test]
fn few_rows_have_the_bits_of_the_cpu() {
    let cpu = widening_cpu();
    let mut weights = Vec::new();
    for format in Format::ALL {
        let len = format.block_len();
        // A piece of 256 elements and a bit, an odd number of pieces, more than the ring holds; fewer and more rows than a block.
        for shape in [[1, len], [5, 256 + len], [18, 1536 + len]] {
            weights.push((format!("{format} {shape:?}"), gguf(format, shape, RowOrder::Plain, &cpu)));
        }
        let order = RowOrder::Interleaved { head_dim: 6 };
        weights.push((format!("{format} interleaved"), gguf(format, [18, 512], order, &cpu)));
    }
    for (format, blocksize, double, shape) in [
        (nf4::Format::Nf4, 64, true, [1, 64]),
        (nf4::Format::Nf4, 64, true, [37, 1088]),
        (nf4::Format::Nf4, 64, false, [18, 320]),
        (nf4::Format::Nf4, 32, true, [17, 288]),
        (nf4::Format::Nf4, 32, false, [5, 1056]),
        (nf4::Format::Fp4, 64, true, [9, 512]),
        (nf4::Format::Fp4, 128, false, [16, 640]),
        (nf4::Format::Nf4, 512, true, [3, 1536]),
        (nf4::Format::Nf4, 4096, false, [2, 4096]),
    ] {
        let name = format!("{format:?} {shape:?} in blocks of {blocksize}, double: {double}");
        weights.push((name, four_bit(format, blocksize, double, shape, &cpu)));
    }
    for (i, (what, weight)) in weights.iter().enumerate() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            check(&cpu, what, weight, 1, dtype, i % 2 == 0);
            check(&cpu, what, weight, 2 + i % 7, dtype, i % 2 == 1);
        }
    }
    let (what, weight) = &weights[weights.len() - 8];
    for rows in 1..=8 {
        check(&cpu, what, weight, rows, DType::BF16, false);
    }
}

/// x in 16 bits of all magnitudes, beside ggml's blocks: subnormal runs, runs of zeros, the largest numbers, and what is no number.
#[test]
fn integers_of_all_magnitudes_have_the_bits_of_the_cpu() {
    let cpu = device(1);
    for (i, format) in Format::ALL.into_iter().enumerate() {
        let weight = gguf(format, [5, 512], RowOrder::Plain, &cpu);
        let gpu = emulated(80, i as u64);
        let on_gpu = to(&weight, &gpu);
        for dtype in [DType::BF16, DType::F16] {
            let scales = [1.0, 0.0, 1e-38, 3e38, 6e-8, 65000.0, 1e-30];
            let value =
                |at: usize| ((at * 37 % 101) as f32 - 50.0) / 50.0 * scales[(at / 32 + at / 512) % scales.len()];
            for (row, bad) in [None, Some(f32::INFINITY), Some(f32::NAN)].into_iter().enumerate() {
                let mut x: Vec<f32> = (0..3 * 512).map(value).collect();
                if let Some(bad) = bad {
                    x[row * 512 + 300] = bad;
                }
                let x = Tensor::from_vec(x, &[3, 512], &cpu).unwrap().to_dtype(dtype).unwrap();
                for x in [x.clone(), x.narrow(0, row, 1).unwrap()] {
                    let want = bits(&weight.matmul(&x, Direction::Forward).unwrap());
                    let got = bits(&on_gpu.matmul(&x.to(&gpu).unwrap(), Direction::Forward).unwrap());
                    assert!(want == got, "{format} {dtype} {bad:?}");
                }
            }
        }
    }
}

/// One row of plain numbers whose rows lie in another order.
#[test]
fn plain_numbers_have_the_bits_of_the_cpu() {
    let cpu = device(1);
    for format in Format::PLAIN {
        for shape in [[6, 8], [18, 600]] {
            let weight = gguf(format, shape, RowOrder::Interleaved { head_dim: 6 }, &cpu);
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                check(&cpu, &format!("{format} {shape:?}"), &weight, 1, dtype, false);
            }
        }
    }
}

/// Rows of x that lie apart, or at an odd place.
#[test]
fn x_may_lie_anyhow() {
    let (cpu, gpu) = (device(1), emulated(80, 1));
    let weight = gguf(Format::Q4_K, [7, 256], RowOrder::Plain, &cpu);
    for rows in [1, 3] {
        let run = |weight: &Weight, device: &Device| {
            let wide = normal(&[rows, 300], 1, &cpu).to_dtype(DType::F16).unwrap().to(device).unwrap();
            bits(&weight.matmul(&wide.narrow(1, 3, 256).unwrap(), Direction::Forward).unwrap())
        };
        assert!(run(&weight, &cpu) == run(&to(&weight, &gpu), &gpu));
    }
}

/// Passes through shared memory beyond the least that a warp pays for 64 elements of each of its four rows. These lie eight banks
/// apart, and eight threads read eight neighbours each. But blocks of these sizes do not all begin at a multiple of 16 bytes, or a
/// block's end lies within the eight, so that the bytes of two rows meet in a bank.
fn conflicts_of_a_step(format: Format) -> u64 {
    match format {
        // Two of four halves of nibbles, in blocks of 22 bytes.
        Format::Q5_0 => 2,
        // The nibbles, 8 bytes at a time, for each half of the warp, in blocks of 24 bytes.
        Format::Q5_1 => 2,
        // The scale and two of four halves of codes, in blocks of 34 bytes.
        Format::Q8_0 => 3,
        // Both words of codes, in blocks of 84 bytes.
        Format::Q2_K => 2,
        // Four halves of nibbles, in blocks of 210 bytes.
        Format::Q6_K => 4,
        _ => 0,
    }
}

/// One row reads the bytes of W once and x once a warp of four rows of W.
#[test]
fn blocks_are_read_once() {
    let (cpu, gpu) = (device(1), emulated(80, 1));
    let cuda = gpu.as_cuda().unwrap();
    for format in Format::ALL {
        let weight = gguf(format, [512, 512], RowOrder::Plain, &cpu);
        let Weight::Gguf(blocks) = &weight else { unreachable!("made of blocks") };
        let x = normal(&[1, 512], 1, &gpu);
        let on_device = to(&weight, &gpu);
        gpu.synchronize().unwrap();
        let _ = cuda.take_counters();
        on_device.matmul(&x, Direction::Forward).unwrap();
        gpu.synchronize().unwrap();
        let counters = cuda.take_counters().unwrap();
        let once = (blocks.bytes() + 4 * 512 * 512) as u64;
        // Of two pieces a row, what lies within 16 bytes at their ends may be read with both.
        let again = if blocks.bytes() / 1024 % 16 == 0 { 0 } else { 1024 * 16 };
        let read = counters.global_read_bytes;
        assert!((once..=once + again).contains(&read), "{format}: {read} bytes, not {once} to {again} more");
        let steps = 512 / 4 * (512 / 64);
        assert_eq!(counters.bank_conflicts, conflicts_of_a_step(format) * steps, "{format}: bank conflicts");
    }
}
