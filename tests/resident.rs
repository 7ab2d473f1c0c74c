//! What the process really holds while a quantised matrix is multiplied: the most memory that was ever resident, as
//! Linux counts it. `tests/memory.rs` counts what tensors and kernels ask for; this sees whatever went by them. One test,
//! alone in its process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use kinglet::quant::{Direction, FourBit, GgufMatrix, RowOrder, Scales, Weight, ggml, nf4};
use kinglet::{DType, Tensor};
use std::sync::Arc;
use support::device;

/// The most bytes of this process that were ever in memory.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn products_with_a_quantised_matrix_hold_a_tile_of_it() {
    let (size, tokens, device) = (8192, 40, device(2));
    let x = Tensor::full(0.5, &[tokens, size], DType::F32, &device).unwrap();
    let bytes = |len: usize| Tensor::full(36.0, &[len], DType::U8, &device).unwrap();
    let scales = Scales::Plain(Tensor::full(0.5, &[size * size / 64], DType::F32, &device).unwrap());
    let codes = bytes(size * size / 2);
    let nf4 = FourBit::new(nf4::Format::Nf4, 64, [size, size], DType::F32, codes, scales).unwrap();
    let blocks = bytes(size * size / 256 * 144);
    let q4_k = GgufMatrix::new(ggml::Format::Q4_K, [size, size], RowOrder::Plain, blocks).unwrap();
    let before = peak();
    for weight in [Weight::FourBit(Arc::new(nf4)), Weight::Gguf(q4_k)] {
        let y = weight.matmul(&x, Direction::Forward).unwrap();
        weight.matmul(&y, Direction::Backward).unwrap();
    }
    // Results are 2.5 MiB, tiles and packed rows less than one, code that is first run here a few: far less than the
    // matrix in f32, in bf16 or an eighth of it.
    let (held, dense) = (peak() - before, 4 * size * size);
    assert!(held < 12 << 20, "{held} bytes more, where the dense matrix has {dense}");
}
