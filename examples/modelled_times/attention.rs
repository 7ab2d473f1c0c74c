//! Attention: causal, with windows, of packed segments, of several head sizes, and of one query.

use crate::job::{Job, NONE_FOUND, NOWHERE, bf16, forget};
use kinglet::tensor::ops::{self, KvView, Mask, Segments};
use kinglet::tensor::{Device, Result};

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Backward,
    Both,
}

/// One head, whose queries, keys and values are one tensor; segments end at `offsets`.
fn attention(offsets: &[usize], head_dim: usize, mask: Mask, pass: Pass, device: &Device) -> Result<()> {
    let x = bf16([offsets[offsets.len() - 1], 1, head_dim], device)?;
    let (kv, segments) = (KvView { k: &x, v: &x }, Segments::packed(offsets)?);
    segments.to_device(device)?;
    forget(device);
    let (out, lse) = ops::attention(&x, kv, &segments, mask, 0.1)?;
    if pass == Pass::Backward {
        forget(device);
    }
    if pass != Pass::Forward {
        ops::attention_backward(&x, &x, kv, &out, &lse, &segments, mask, 0.1)?;
    }
    Ok(())
}

/// One query of each of four heads with all keys of their key head, as when a token is written.
fn decode(keys: usize, device: &Device) -> Result<()> {
    let (q, x) = (bf16([1, 4, 128], device)?, bf16([keys, 1, 128], device)?);
    let (kv, segments) = (KvView { k: &x, v: &x }, Segments::one(1, keys)?);
    segments.to_device(device)?;
    forget(device);
    ops::attention(&q, kv, &segments, Mask::Causal, 0.1).map(drop)
}

/// Multiplications of a product of 2048 = heads x head size, for half of 8192 x 8192; and for windows of 1024, and segments of 512.
const CAUSAL: f64 = 2048.0 * 8192.0 * 8192.0 / 2.0;
const WINDOW: f64 = 2048.0 * 1024.0 * (8192.0 - 512.0);
const PACKED: f64 = 2048.0 * 8192.0 * 512.0 / 2.0;
/// Bytes of as many elements of bf16.
const OPERAND: f64 = 2.0 * 2048.0 * 8192.0;

/// How often one head of 512 tokens fits into `heads` of 8192: half of the square, and the diagonal's whole tiles in both.
const fn squares(heads: f64) -> f64 {
    heads * 8192.0 * 8192.0 / (512.0 * 512.0)
}

pub(crate) const JOBS: &[Job] = &[
    Job {
        name: "attention forward, causal, d 128, bf16",
        real: "16 heads x 8192",
        factor: squares(16.0),
        depths: [512; 3],
        bytes: 4.0 * OPERAND,
        flops: 4.0 * CAUSAL,
        published: [
            "with the backward pass: see there",
            "FlashAttention-2 0.90 ms (306 TFLOP/s, FA PR #1893); 0.83 ms (333 TFLOP/s) in its chart flash3_fp16_fwd",
        ],
        run: |d, tokens| attention(&[0, tokens], 128, Mask::Causal, Pass::Forward, d),
    },
    Job {
        name: "attention backward, causal, d 128, bf16",
        real: "16 heads x 8192",
        factor: squares(16.0),
        depths: [512; 3],
        bytes: 8.0 * OPERAND,
        flops: 10.0 * CAUSAL,
        published: ["with the forward pass: see there", "FlashAttention-2 4.14 ms (166 TFLOP/s, FA PR #1893)"],
        run: |d, tokens| attention(&[0, tokens], 128, Mask::Causal, Pass::Backward, d),
    },
    Job {
        name: "attention both ways, causal, d 128, bf16",
        real: "16 heads x 8192",
        factor: squares(16.0),
        depths: [512; 3],
        bytes: 12.0 * OPERAND,
        flops: 14.0 * CAUSAL,
        published: [
            "FlashAttention-2 5.29 ms (182 TFLOP/s, its chart flash2_a100_fwd_bwd)",
            "FlashAttention-2 3.12 ms (308 TFLOP/s, its chart flash2_h100_fwd_bwd)",
        ],
        run: |d, tokens| attention(&[0, tokens], 128, Mask::Causal, Pass::Both, d),
    },
    Job {
        name: "attention forward, causal, d 64, bf16",
        real: "32 heads x 8192",
        factor: squares(32.0),
        depths: [512; 3],
        bytes: 4.0 * OPERAND,
        flops: 4.0 * CAUSAL,
        published: [
            "with the backward pass: see there",
            "FlashAttention-2 0.93 ms (295 TFLOP/s, its chart flash3_fp16_fwd)",
        ],
        run: |d, tokens| attention(&[0, tokens], 64, Mask::Causal, Pass::Forward, d),
    },
    Job {
        name: "attention backward, causal, d 64, bf16",
        real: "32 heads x 8192",
        factor: squares(32.0),
        depths: [512; 3],
        bytes: 8.0 * OPERAND,
        flops: 10.0 * CAUSAL,
        published: ["with the forward pass: see there"; 2],
        run: |d, tokens| attention(&[0, tokens], 64, Mask::Causal, Pass::Backward, d),
    },
    Job {
        name: "attention both ways, causal, d 64, bf16",
        real: "32 heads x 8192",
        factor: squares(32.0),
        depths: [512; 3],
        bytes: 12.0 * OPERAND,
        flops: 14.0 * CAUSAL,
        published: [
            "FlashAttention-2 5.83 ms (165 TFLOP/s, its chart flash2_a100_fwd_bwd)",
            "FlashAttention-2 3.52 ms (273 TFLOP/s, its chart flash2_h100_fwd_bwd)",
        ],
        run: |d, tokens| attention(&[0, tokens], 64, Mask::Causal, Pass::Both, d),
    },
    Job {
        name: "attention forward, causal, d 256, bf16",
        real: "8 heads x 8192",
        factor: squares(8.0),
        depths: [512; 3],
        bytes: 4.0 * OPERAND,
        flops: 4.0 * CAUSAL,
        published: [NONE_FOUND, "FlashAttention-2 0.93 ms (297 TFLOP/s, its chart flash3_fp16_fwd)"],
        run: |d, tokens| attention(&[0, tokens], 256, Mask::Causal, Pass::Forward, d),
    },
    Job {
        name: "attention backward, causal, d 256, bf16",
        real: "8 heads x 8192",
        factor: squares(8.0),
        depths: [512; 3],
        bytes: 8.0 * OPERAND,
        flops: 10.0 * CAUSAL,
        published: NOWHERE,
        run: |d, tokens| attention(&[0, tokens], 256, Mask::Causal, Pass::Backward, d),
    },
    Job {
        name: "attention forward, window of 1024, d 128, bf16",
        real: "16 heads x 8192",
        factor: 16.0,
        depths: [1280, 1536, 8192],
        bytes: 4.0 * OPERAND,
        flops: 4.0 * WINDOW,
        published: NOWHERE,
        run: |d, tokens| attention(&[0, tokens], 128, Mask::Window(1024), Pass::Forward, d),
    },
    Job {
        name: "attention backward, window of 1024, d 128, bf16",
        real: "16 heads x 8192",
        factor: 16.0,
        depths: [1280, 1536, 8192],
        bytes: 8.0 * OPERAND,
        flops: 10.0 * WINDOW,
        published: NOWHERE,
        run: |d, tokens| attention(&[0, tokens], 128, Mask::Window(1024), Pass::Backward, d),
    },
    Job {
        name: "attention forward, 16 packed segments, d 128, bf16",
        real: "16 heads x 8192",
        factor: 16.0 * 8.0,
        depths: [512; 3],
        bytes: 4.0 * OPERAND,
        flops: 4.0 * PACKED,
        published: NOWHERE,
        run: |d, tokens| attention(&[0, tokens, 2 * tokens], 128, Mask::Causal, Pass::Forward, d),
    },
    Job {
        name: "attention backward, 16 packed segments, d 128, bf16",
        real: "16 heads x 8192",
        factor: 16.0 * 8.0,
        depths: [512; 3],
        bytes: 8.0 * OPERAND,
        flops: 10.0 * PACKED,
        published: NOWHERE,
        run: |d, tokens| attention(&[0, tokens, 2 * tokens], 128, Mask::Causal, Pass::Backward, d),
    },
    Job {
        name: "attention of one query, d 128, bf16",
        real: "32 heads, 8 of keys, 8192 keys",
        factor: 8.0,
        depths: [1024, 2048, 8192],
        bytes: 2.0 * 2.0 * 8.0 * 8192.0 * 128.0,
        flops: 4.0 * 32.0 * 8192.0 * 128.0,
        published: [
            NONE_FOUND,
            "FlashAttention-3 0.018 ms, by bytes from 16 rows x 4000 keys in pages of 8 (1849 GB/s, FA issue #1572)",
        ],
        run: |d, keys| decode(keys, d),
    },
];
