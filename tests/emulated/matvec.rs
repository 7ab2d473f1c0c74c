//! Products of few rows with matrices in blocks on the virtual GPU have the CPU's bits, for every form of blocks and every dtype.

use kinglet::quant::ggml::Format;
use kinglet::quant::{Direction, FourBit, GgufMatrix, RowOrder, Weight, nf4};
use kinglet::tensor::cpu::gemm::Accumulate;
use kinglet::tensor::ops;
use kinglet::tensor::philox::Key;
use kinglet::{DType, Device, Tensor};
use kinglet_oracle::{device, emulated};
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

fn bits(x: &Tensor) -> Vec<u32> {
    let values = x.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
    values.into_iter().map(|v| if v.is_nan() { 0x7FFF_FFFF } else { v.to_bits() }).collect()
}

/// x Wᵀ, or 0.7 x Wᵀ added to something, on both kinds of device.
fn check(cpu: &Device, what: &str, weight: &Weight, rows: usize, dtype: DType, add: bool) {
    let gpu = emulated(80, rows as u64);
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
    // The product, and perhaps a widening of x: no decoded matrix.
    let widened = dtype == DType::F16 || (dtype == DType::BF16 && rows > 1);
    assert_eq!(launches, 1 + u64::from(widened), "{what}");
}

#[test]
fn few_rows_have_the_bits_of_the_cpu() {
    let cpu = device(1);
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

#[test]
#[ignore = "prints"]
fn counters() {
    let cpu = device(1);
    let gpu = emulated(80, 1);
    let cuda = gpu.as_cuda().unwrap();
    let shape = [64, 4096];
    let mut weights: Vec<(String, Weight)> =
        Format::ALL.iter().chain(&Format::PLAIN).map(|&f| (f.to_string(), gguf(f, shape, RowOrder::Plain, &cpu))).collect();
    weights.push(("NF4".into(), four_bit(nf4::Format::Nf4, 64, false, shape, &cpu)));
    weights.push(("NF4 nested".into(), four_bit(nf4::Format::Nf4, 64, true, shape, &cpu)));
    for rows in [1, 8] {
        for (name, weight) in &weights {
            let weight = to(weight, &gpu);
            let bytes = match &weight {
                Weight::FourBit(w) => w.bytes(),
                Weight::Gguf(w) => w.bytes(),
                _ => 0,
            };
            let x = normal(&[rows, 4096], 1, &gpu);
            let _ = cuda.take_counters();
            let y = weight.matmul(&x, Direction::Forward).unwrap();
            gpu.synchronize().unwrap();
            let c = cuda.take_counters().unwrap();
            let flops = (2 * rows * 512 * 512) as f64;
            println!(
                "{name:12} rows {rows}: conflicts {:6} of {:6} shared requests; global requests {:6} sectors/request {:5.2} read/weight {:5.2} lane instr/elem {:5.2} warp instr {} idle {:.3} div {} local {}",
                c.bank_conflicts, c.shared_requests, c.global_requests,
                c.global_sectors as f64 / c.global_requests as f64,
                c.global_read_bytes as f64 / bytes as f64,
                c.lane_instructions as f64 / (512.0 * 512.0), c.warp_instructions,
                c.idle_lanes as f64 / (32 * c.warp_instructions) as f64, c.divergent_branches, c.local_bytes
            );
            let _ = (y, flops);
        }
    }
}
