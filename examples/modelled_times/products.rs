//! Products of matrices: dense, with quantised weights, with adapters, and with the loss behind them.

use crate::job::{Job, NONE_FOUND, NOWHERE, bf16, f32s, forget, normal};
use kinglet::autograd::{Grads, Tape};
use kinglet::quant::{Direction, FourBit, GgufMatrix, Lora, RowOrder, Weight, ggml, linear_lora, nf4};
use kinglet::tensor::ops::{self, Targets, Term, Wants};
use kinglet::tensor::philox::Key;
use kinglet::tensor::{DType, Device, Result, Tensor};
use std::sync::Arc;

fn product(dtype: DType, [m, n, k]: [usize; 3], device: &Device) -> Result<()> {
    let (a, b) = (normal(&[m, k], dtype, device)?, normal(&[n, k], dtype, device)?.transpose(0, 1)?);
    forget(device);
    ops::matmul(&a, &b).map(drop)
}

fn nf4_weight(shape: [usize; 2], device: &Device) -> Result<Weight> {
    let weight = FourBit::quantize(&bf16(shape, device)?, nf4::Format::Nf4, 64, true)?;
    Ok(Weight::FourBit(Arc::new(weight)))
}

/// Blocks of one value: what they hold changes no time.
fn blocks(format: ggml::Format, [rows, columns]: [usize; 2], device: &Device) -> Result<GgufMatrix> {
    let bytes = rows * columns / format.block_len() * format.block_bytes();
    let blocks = Tensor::full(36.0, &[bytes], DType::U8, device)?;
    GgufMatrix::new(format, [rows, columns], RowOrder::Plain, blocks)
}

fn q4_k(shape: [usize; 2], device: &Device) -> Result<Weight> {
    blocks(ggml::Format::Q4_K, shape, device).map(Weight::Gguf)
}

fn q8_0(shape: [usize; 2], device: &Device) -> Result<Weight> {
    blocks(ggml::Format::Q8_0, shape, device).map(Weight::Gguf)
}

fn forward(weight: &Weight, rows: usize, dtype: DType, device: &Device) -> Result<()> {
    let x = normal(&[rows, weight.dims()?.1], dtype, device)?;
    forget(device);
    weight.matmul(&x, Direction::Forward).map(drop)
}

/// Many rows: NF4 is decoded first, at the real size in one strip. Asked for a small one, the layer would decode as it multiplies.
fn decoded_first(shape: [usize; 2], rows: usize, direction: Direction, device: &Device) -> Result<()> {
    let weight = FourBit::quantize(&bf16(shape, device)?, nf4::Format::Nf4, 64, true)?;
    let from = if direction == Direction::Forward { shape[1] } else { shape[0] };
    let x = bf16([rows, from], device)?;
    forget(device);
    Weight::Dense(weight.dequantize(DType::BF16)?).matmul(&x, direction).map(drop)
}

/// A layer with an adapter of rank 16: forward, or what its backward pass takes.
fn with_adapter([outputs, inputs]: [usize; 2], dropout: Option<f32>, backward: bool, device: &Device) -> Result<()> {
    let weight = Arc::new(Weight::Dense(bf16([outputs, inputs], device)?));
    let (a, b) = (f32s([16, inputs], device)?, f32s([outputs, 16], device)?);
    let (x, dy) = (bf16([2816, inputs], device)?, bf16([2816, outputs], device)?);
    let tape = Tape::new();
    let (x, a, b) = (tape.leaf(x), tape.leaf(a), tape.leaf(b));
    let dropout = dropout.map(|p| (p, Key::derive(&[1])));
    forget(device);
    let y = linear_lora(&x, &weight, None, &[Lora { a, b, scale: 1.0, dropout }])?;
    if backward {
        forget(device);
        tape.backward_from(&[(&y, dy)], &mut Grads::none())?;
    }
    Ok(())
}

/// Weights of a layer of 14336 x 4096.
const LAYER: f64 = 14336.0 * 4096.0;

pub(crate) const JOBS: &[Job] = &[
    Job {
        name: "matmul bf16",
        real: "4096 x 4096 x 4096",
        factor: 4096.0 * 4096.0 / (1536.0 * 2816.0),
        depths: [128, 256, 4096],
        bytes: 3.0 * 2.0 * 4096.0 * 4096.0,
        flops: 2.0 * 4096.0 * 4096.0 * 4096.0,
        published: [
            "the best of all shapes: 271 TFLOP/s, 0.507 ms by operations (MAMF, stas00/ml-engineering)",
            "cuBLAS 0.192 ms (716 TFLOP/s, fast.cu)",
        ],
        run: |d, k| product(DType::BF16, [1536, 2816, k], d),
    },
    Job {
        name: "matmul bf16, 1 row",
        real: "1 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: 2.0 * LAYER,
        flops: 2.0 * LAYER,
        published: [NONE_FOUND, "PyTorch f16 0.051 ms, by operations from 8192 x 8192 (inclusionAI/humming #2)"],
        run: |d, k| product(DType::BF16, [1, 2112, k], d),
    },
    Job {
        name: "matmul f32",
        real: "2048 x 2048 x 2048",
        factor: 2048.0 * 2048.0 / (256.0 * 256.0),
        depths: [128, 256, 2048],
        bytes: 3.0 * 4.0 * 2048.0 * 2048.0,
        flops: 2.0 * 2048.0 * 2048.0 * 2048.0,
        published: [NONE_FOUND, "PyTorch 0.347 ms (49.6 TFLOP/s, zzc0721/torch-performance-test-data #79)"],
        run: |d, k| product(DType::F32, [256, 256, k], d),
    },
    Job {
        name: "linear with an adapter of rank 16, bf16",
        real: "4096 x 4096 x 4096",
        factor: 4096.0 * 4096.0 / (1536.0 * 2816.0),
        depths: [128, 256, 4096],
        bytes: 3.0 * 2.0 * 4096.0 * 4096.0,
        flops: 2.0 * 4096.0 * 4096.0 * (4096.0 + 32.0),
        published: NOWHERE,
        run: |d, k| with_adapter([1536, k], None, false, d),
    },
    Job {
        name: "its backward pass: dx, dA, dB",
        real: "4096 x 4096 x 4096",
        factor: 4096.0 * 4096.0 / (1536.0 * 2816.0),
        depths: [128, 256, 4096],
        bytes: 4.0 * 2.0 * 4096.0 * 4096.0,
        flops: 2.0 * 4096.0 * 4096.0 * (4096.0 + 64.0),
        published: NOWHERE,
        run: |d, outputs| with_adapter([outputs, 1536], None, true, d),
    },
    Job {
        name: "the same, with dropout",
        real: "4096 x 4096 x 4096",
        factor: 4096.0 * 4096.0 / (1536.0 * 2816.0),
        depths: [128, 256, 4096],
        // A masked copy of x for dA; the product for dx in f32, read again with what it is added to.
        bytes: (8.0 + 4.0 + 12.0) * 4096.0 * 4096.0,
        flops: 2.0 * 4096.0 * 4096.0 * (4096.0 + 64.0),
        published: NOWHERE,
        run: |d, outputs| with_adapter([outputs, 1536], Some(0.1), true, d),
    },
    Job {
        name: "output projection and loss, bf16, with dX",
        real: "4096 rows x 128256 x 4096",
        factor: 4096.0 * 128_256.0 / (128.0 * 33_792.0),
        depths: [128, 256, 4096],
        // The weight twice a chunk of 128 rows; what stays in L2 is not counted.
        bytes: 2.0 * 2.0 * 128_256.0 * 4096.0 * 4096.0 / 128.0,
        flops: 2.0 * 2.0 * 4096.0 * 128_256.0 * 4096.0,
        published: [
            "with dW too: PyTorch 56.0 ms, Liger 0.4.2 121 ms (Liger-Kernel's benchmark data)",
            "the forward pass alone: Liger (CuTe) 5.92 ms, PyTorch in chunks 22.1 ms, by V from 131072 (Liger-Kernel README)",
        ],
        run: |d, width| {
            let (x, weight) = (bf16([128, width], d)?, bf16([33_792, width], d)?);
            let targets = Targets::new(&[3; 128], d)?;
            forget(d);
            let term = Term { x: &x, weight: &weight, wants: Wants { x: true, weight: false } };
            ops::linear_cross_entropy(&[term], &targets, 128.0).map(drop)
        },
    },
    Job {
        name: "NF4 quantise, nested scales",
        real: "14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: (0.516 + 2.0) * LAYER,
        flops: 0.0,
        published: NOWHERE,
        run: |d, k| {
            let dense = bf16([2112, k], d)?;
            forget(d);
            FourBit::quantize(&dense, nf4::Format::Nf4, 64, true).map(drop)
        },
    },
    Job {
        name: "NF4 dequantise to bf16, nested scales",
        real: "14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: (0.516 + 2.0) * LAYER,
        flops: 0.0,
        published: NOWHERE,
        run: |d, k| {
            let weight = FourBit::quantize(&bf16([2112, k], d)?, nf4::Format::Nf4, 64, true)?;
            forget(d);
            weight.dequantize(DType::BF16).map(drop)
        },
    },
    Job {
        name: "NF4 linear, 1 row",
        real: "1 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: 0.516 * LAYER,
        flops: 2.0 * LAYER,
        published: [
            NONE_FOUND,
            "INT4, not NF4: Marlin 0.024 ms, by operations from 8192 x 8192 (inclusionAI/humming #2)",
        ],
        run: |d, k| forward(&nf4_weight([2112, k], d)?, 1, DType::BF16, d),
    },
    Job {
        name: "NF4 linear, 8 rows",
        real: "8 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: 0.516 * LAYER,
        flops: 8.0 * 2.0 * LAYER,
        published: NOWHERE,
        run: |d, k| forward(&nf4_weight([2112, k], d)?, 8, DType::BF16, d),
    },
    Job {
        name: "NF4 linear, 64 rows",
        real: "64 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: 0.516 * LAYER,
        flops: 64.0 * 2.0 * LAYER,
        published: NOWHERE,
        run: |d, k| forward(&nf4_weight([2112, k], d)?, 64, DType::BF16, d),
    },
    Job {
        name: "NF4 linear, 4096 rows",
        real: "4096 x 14336 x 4096",
        factor: 14336.0 / 768.0,
        depths: [128, 256, 4096],
        // W is decoded once, and read.
        bytes: (0.516 + 2.0 + 2.0) * LAYER + 2.0 * 4096.0 * (4096.0 + 14336.0),
        flops: 4096.0 * 2.0 * LAYER,
        published: NOWHERE,
        run: |d, k| decoded_first([768, k], 4096, Direction::Forward, d),
    },
    Job {
        name: "NF4 linear backward, 4096 rows",
        real: "4096 x 14336 x 4096",
        factor: 4096.0 / 768.0,
        depths: [128, 256, 14336],
        bytes: (0.516 + 2.0 + 2.0) * LAYER + 2.0 * 4096.0 * (4096.0 + 14336.0),
        flops: 4096.0 * 2.0 * LAYER,
        published: NOWHERE,
        run: |d, outputs| decoded_first([outputs, 768], 4096, Direction::Backward, d),
    },
    Job {
        name: "NF4 linear beside f32, 64 rows",
        real: "64 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: 0.516 * LAYER,
        flops: 64.0 * 2.0 * LAYER,
        published: NOWHERE,
        run: |d, k| forward(&nf4_weight([2112, k], d)?, 64, DType::F32, d),
    },
    Job {
        name: "Q4_K dequantise to bf16",
        real: "14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: (0.5625 + 2.0) * LAYER,
        flops: 0.0,
        published: NOWHERE,
        run: |d, k| {
            let weight = blocks(ggml::Format::Q4_K, [2112, k], d)?;
            forget(d);
            weight.dequantize(DType::BF16).map(drop)
        },
    },
    Job {
        name: "Q8_0 dequantise to bf16",
        real: "14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: (1.0625 + 2.0) * LAYER,
        flops: 0.0,
        published: NOWHERE,
        run: |d, k| {
            let weight = blocks(ggml::Format::Q8_0, [2112, k], d)?;
            forget(d);
            weight.dequantize(DType::BF16).map(drop)
        },
    },
    Job {
        name: "Q4_K linear, 1 row, in integers",
        real: "1 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: 0.5625 * LAYER,
        flops: 2.0 * LAYER,
        published: NOWHERE,
        run: |d, k| forward(&q4_k([2112, k], d)?, 1, DType::BF16, d),
    },
    Job {
        name: "Q4_K linear, 8 rows, in integers",
        real: "8 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: 0.5625 * LAYER,
        flops: 8.0 * 2.0 * LAYER,
        published: NOWHERE,
        run: |d, k| forward(&q4_k([2112, k], d)?, 8, DType::BF16, d),
    },
    Job {
        name: "Q4_K linear, 64 rows",
        real: "64 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: 0.5625 * LAYER,
        flops: 64.0 * 2.0 * LAYER,
        published: NOWHERE,
        run: |d, k| forward(&q4_k([2112, k], d)?, 64, DType::BF16, d),
    },
    Job {
        name: "Q4_K linear beside f32, 64 rows",
        real: "64 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: 0.5625 * LAYER,
        flops: 64.0 * 2.0 * LAYER,
        published: NOWHERE,
        run: |d, k| forward(&q4_k([2112, k], d)?, 64, DType::F32, d),
    },
    Job {
        name: "Q8_0 linear, 1 row, in integers",
        real: "1 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: 1.0625 * LAYER,
        flops: 2.0 * LAYER,
        published: NOWHERE,
        run: |d, k| forward(&q8_0([2112, k], d)?, 1, DType::BF16, d),
    },
    Job {
        name: "Q8_0 linear, 64 rows",
        real: "64 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: 1.0625 * LAYER,
        flops: 64.0 * 2.0 * LAYER,
        published: NOWHERE,
        run: |d, k| forward(&q8_0([2112, k], d)?, 64, DType::BF16, d),
    },
];
