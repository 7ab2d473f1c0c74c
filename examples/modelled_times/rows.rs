//! Ops of whole rows: norms, softmaxes, losses, rotations, tables, the choice of a token.

use crate::job::{Job, NONE_FOUND, NOWHERE, bf16, f32s, forget, ids};
use kinglet::tensor::cpu::sample::Choice;
use kinglet::tensor::ops::{self, Reduce, Softmax};
use kinglet::tensor::philox::Key;
use kinglet::tensor::{DType, Device, Result, Tensor};

const EPS: f32 = 1e-5;
/// Elements of 4096 rows of 4096, and of 14336.
const SQUARE: f64 = 4096.0 * 4096.0;
const WIDE: f64 = 4096.0 * 14336.0;
/// How often 64 rows fit into 4096.
const ROWS: f64 = 4096.0 / 64.0;

/// 64 rows of x, and a weight.
fn norm(width: usize, device: &Device) -> Result<(Tensor, Tensor)> {
    let operands = (bf16([64, width], device)?, f32s([width], device)?);
    forget(device);
    Ok(operands)
}

/// 16 rows of logits, and targets.
fn classes(classes: usize, device: &Device) -> Result<(Tensor, Tensor)> {
    let operands = (bf16([16, classes], device)?, ids(&[16], classes, device)?);
    forget(device);
    Ok(operands)
}

/// x of 64 tokens, and its angles.
fn rotation(heads: usize, device: &Device) -> Result<[Tensor; 3]> {
    let positions = Tensor::from_vec((0..64).collect::<Vec<i32>>(), &[64], device)?;
    let (cos, sin) = ops::rope_table(&positions, &[0.5; 64], 1.0)?;
    let x = bf16([64, heads, 128], device)?;
    forget(device);
    Ok([x, cos, sin])
}

pub(crate) const JOBS: &[Job] = &[
    Job {
        name: "RMSNorm bf16",
        real: "4096 x 4096",
        factor: ROWS,
        depths: [1024, 2048, 4096],
        bytes: 4.0 * SQUARE,
        flops: 0.0,
        published: [
            "Liger 0.2.1 0.062 ms, by bytes from 2048 x 4096 (Liger-Kernel's benchmark data)",
            "QuACK 0.022 ms, by bytes (3.0 TB/s, its blog post)",
        ],
        run: |d, width| {
            let (x, weight) = norm(width, d)?;
            ops::rms_norm(&x, &weight, EPS).map(drop)
        },
    },
    Job {
        name: "RMSNorm backward, dx, bf16",
        real: "4096 x 4096",
        factor: ROWS,
        depths: [1024, 2048, 4096],
        bytes: 6.0 * SQUARE,
        flops: 0.0,
        published: [
            "with dW too: Liger 0.2.1 0.198 ms, by bytes from 2048 x 4096 (Liger-Kernel's benchmark data)",
            NONE_FOUND,
        ],
        run: |d, width| {
            let (x, weight) = norm(width, d)?;
            ops::rms_norm_backward(&x, &x, &weight, EPS).map(drop)
        },
    },
    Job {
        name: "RMSNorm backward, dW, bf16",
        real: "4096 x 4096",
        factor: ROWS,
        depths: [1024, 2048, 4096],
        bytes: 4.0 * SQUARE,
        flops: 0.0,
        published: NOWHERE,
        run: |d, width| {
            let (x, _) = norm(width, d)?;
            ops::rms_norm_backward_weight(&x, &x, EPS).map(drop)
        },
    },
    Job {
        name: "add and RMSNorm bf16",
        real: "4096 x 4096",
        factor: ROWS,
        depths: [1024, 2048, 4096],
        bytes: 8.0 * SQUARE,
        flops: 0.0,
        published: [
            NONE_FOUND,
            "Liger 0.7.0 0.050 ms, as many bytes: 2048 x 4096 of f32 (Liger-Kernel's benchmark data)",
        ],
        run: |d, width| {
            let (x, weight) = norm(width, d)?;
            ops::add_rms_norm(&x, &x, &weight, EPS).map(drop)
        },
    },
    Job {
        name: "LayerNorm bf16",
        real: "4096 x 4096",
        factor: ROWS,
        depths: [1024, 2048, 4096],
        bytes: 4.0 * SQUARE,
        flops: 0.0,
        published: [
            "by bytes: PyTorch 0.072 ms (936 GB/s), Triton 0.059 ms (1130 GB/s; allenai/OLMo #258)",
            "half of f32's: PyTorch 0.033 ms, Liger 0.6.0 0.026 ms (Liger-Kernel's benchmark data)",
        ],
        run: |d, width| {
            let (x, weight) = norm(width, d)?;
            ops::layer_norm(&x, &weight, &weight, EPS).map(drop)
        },
    },
    Job {
        name: "LayerNorm backward, dx, bf16",
        real: "4096 x 4096",
        factor: ROWS,
        depths: [1024, 2048, 4096],
        bytes: 6.0 * SQUARE,
        flops: 0.0,
        published: [
            "with dW and db too, by bytes: PyTorch 0.21 ms (480 GB/s; allenai/OLMo #258)",
            "with dW and db too, half of f32's: PyTorch 0.089 ms, Liger 0.6.0 0.083 ms (Liger-Kernel's benchmark data)",
        ],
        run: |d, width| {
            let (x, weight) = norm(width, d)?;
            ops::layer_norm_backward(&x, &x, &weight, EPS).map(drop)
        },
    },
    Job {
        name: "softmax bf16",
        real: "4096 x 4096",
        factor: ROWS,
        depths: [1024, 2048, 4096],
        bytes: 4.0 * SQUARE,
        flops: 0.0,
        published: [NONE_FOUND, "QuACK 0.022 ms, by bytes (3.0 TB/s, its blog post)"],
        run: |d, width| {
            let (x, _) = norm(width, d)?;
            ops::softmax(Softmax::Plain, &x).map(drop)
        },
    },
    Job {
        name: "softmax backward bf16",
        real: "4096 x 4096",
        factor: ROWS,
        depths: [1024, 2048, 4096],
        bytes: 6.0 * SQUARE,
        flops: 0.0,
        published: NOWHERE,
        run: |d, width| {
            let (x, _) = norm(width, d)?;
            ops::softmax_backward(Softmax::Plain, &x, &x).map(drop)
        },
    },
    Job {
        name: "cross entropy bf16",
        real: "1024 x 128256",
        factor: 1024.0 / 16.0,
        depths: [4096, 8192, 128_256],
        bytes: 2.0 * 1024.0 * 128_256.0,
        flops: 0.0,
        published: [
            "PyTorch 0.63 ms, by bytes from 16384 x 131072 of f32 (Liger-Kernel's benchmark data)",
            "QuACK 0.088 ms, by bytes (3.0 TB/s, its blog post)",
        ],
        run: |d, width| {
            let (logits, targets) = classes(width, d)?;
            ops::cross_entropy(&logits, &targets, 16.0).map(drop)
        },
    },
    Job {
        name: "cross entropy backward bf16",
        real: "1024 x 128256",
        factor: 1024.0 / 16.0,
        depths: [4096, 8192, 128_256],
        bytes: 4.0 * 1024.0 * 128_256.0,
        flops: 0.0,
        published: NOWHERE,
        run: |d, width| {
            let (logits, targets) = classes(width, d)?;
            let (loss, lse) = ops::cross_entropy(&logits, &targets, 16.0)?;
            forget(d);
            ops::cross_entropy_backward(&loss, &logits, &targets, &lse, 16.0).map(drop)
        },
    },
    Job {
        name: "SwiGLU bf16",
        real: "4096 x 14336",
        factor: ROWS,
        depths: [512, 1024, 14336],
        bytes: 6.0 * WIDE,
        flops: 0.0,
        published: NOWHERE,
        run: |d, width| {
            let (x, _) = norm(width, d)?;
            ops::swiglu(&x, &x).map(drop)
        },
    },
    Job {
        name: "SwiGLU backward bf16",
        real: "4096 x 14336",
        factor: ROWS,
        depths: [512, 1024, 14336],
        bytes: 10.0 * WIDE,
        flops: 0.0,
        published: NOWHERE,
        run: |d, width| {
            let (x, _) = norm(width, d)?;
            ops::swiglu_backward(&x, &x, &x).map(drop)
        },
    },
    Job {
        name: "sum of rows bf16",
        real: "4096 x 14336",
        factor: ROWS,
        depths: [512, 1024, 14336],
        bytes: 2.0 * WIDE,
        flops: 0.0,
        published: NOWHERE,
        run: |d, width| {
            let (x, _) = norm(width, d)?;
            ops::reduce(Reduce::Sum, &x, &[1], false).map(drop)
        },
    },
    Job {
        name: "sum of columns bf16 (the gradient of a bias)",
        real: "4096 x 14336",
        factor: 14336.0 / 512.0,
        depths: [512, 1024, 4096],
        bytes: 2.0 * WIDE,
        flops: 0.0,
        published: NOWHERE,
        run: |d, rows| {
            let x = bf16([rows, 512], d)?;
            forget(d);
            ops::sum_to(&x, &[512]).map(drop)
        },
    },
    Job {
        name: "RoPE bf16",
        real: "4096 tokens, 32 heads of 128",
        factor: ROWS,
        depths: [4, 8, 32],
        bytes: 2.0 * 2.0 * 4096.0 * 32.0 * 128.0,
        flops: 0.0,
        published: [
            "Liger 0.2.1 0.044 ms, by elements from 40 heads of 256 (Liger-Kernel's benchmark data)",
            NONE_FOUND,
        ],
        run: |d, heads| {
            let [x, cos, sin] = rotation(heads, d)?;
            ops::rope(&x, &cos, &sin).map(drop)
        },
    },
    Job {
        name: "RoPE backward bf16",
        real: "4096 tokens, 32 heads of 128",
        factor: ROWS,
        depths: [4, 8, 32],
        bytes: 2.0 * 2.0 * 4096.0 * 32.0 * 128.0,
        flops: 0.0,
        published: [
            "Liger 0.2.1 0.050 ms, by elements from 40 heads of 256 (Liger-Kernel's benchmark data)",
            NONE_FOUND,
        ],
        run: |d, heads| {
            let [dy, cos, sin] = rotation(heads, d)?;
            ops::rope_backward(&dy, &cos, &sin).map(drop)
        },
    },
    Job {
        name: "embedding bf16",
        real: "4096 ids, rows of 4096",
        factor: 4096.0 / 512.0,
        depths: [64, 128, 4096],
        bytes: 4.0 * SQUARE,
        flops: 0.0,
        published: [
            "by bytes from 16384 ids and f32: PyTorch 0.108 ms, Liger 0.2.1 0.040 ms (Liger-Kernel's benchmark data)",
            NONE_FOUND,
        ],
        run: |d, tokens| {
            let (table, ids) = (bf16([1024, 512], d)?, ids(&[tokens], 1024, d)?);
            forget(d);
            ops::embedding(&table, &ids, DType::BF16).map(drop)
        },
    },
    Job {
        name: "embedding backward, bf16 into f32",
        real: "4096 ids, rows of 4096",
        factor: 4096.0 / 512.0,
        depths: [64, 128, 4096],
        bytes: 10.0 * SQUARE,
        flops: 0.0,
        published: NOWHERE,
        run: |d, tokens| {
            let (dy, ids) = (bf16([tokens, 512], d)?, ids(&[tokens], 1024, d)?);
            let mut gradient = Tensor::zeros(&[1024, 512], DType::F32, d)?;
            forget(d);
            ops::embedding_backward(&dy, &ids, gradient.as_mut().expect("nobody else holds it"))
        },
    },
    Job {
        name: "gather bf16",
        real: "4096 of 14336, 4096 rows",
        factor: ROWS,
        depths: [256, 512, 4096],
        bytes: 8.0 * SQUARE,
        flops: 0.0,
        published: NOWHERE,
        run: |d, picked| {
            let (x, index) = (bf16([64, 1024], d)?, ids(&[64, picked], 1024, d)?);
            forget(d);
            ops::gather(&x, 1, &index).map(drop)
        },
    },
    Job {
        name: "sampling, top-k and top-p",
        real: "1 x 128256",
        factor: 1.0,
        depths: [8192, 16_384, 128_256],
        bytes: 4.0 * 128_256.0,
        flops: 0.0,
        published: NOWHERE,
        run: |d, vocabulary| {
            let logits = f32s([1, vocabulary], d)?;
            forget(d);
            let choice = Choice { temperature: 0.7, top_k: 50, top_p: 0.9, key: Key::derive(&[1]), step: 0 };
            ops::sample(&logits, &choice).map(drop)
        },
    },
];
