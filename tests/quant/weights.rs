//! Quantised matrices as operands of products, against the dense matrices that they stand for.

use std::ops::Range;
use std::sync::Arc;

use super::fixture::{Fixture, assert_bits, devices};
use kinglet_autograd::{Tape, Var};
use kinglet_quant::ggml;
use kinglet_quant::nf4::Format;
use kinglet_quant::{
    Direction, FourBit, GgufMatrix, Lora, RowOrder, Weight, embed, linear, linear_lora, linear_trained,
};
use kinglet_tensor::cpu::Level;
use kinglet_tensor::cpu::gemm::{FEW_ROWS, Panels};
use kinglet_tensor::{CpuOptions, DType, Device, Tensor};

const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Backward];

/// [rows, columns] of numbers about zero that no two formats round alike.
fn dense(rows: usize, columns: usize, device: &Device) -> Tensor {
    let value = |i: usize| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * (1.0 + (i / 640) as f32 / 8.0);
    Tensor::from_vec((0..rows * columns).map(value).collect(), &[rows, columns], device).unwrap()
}

fn plain<T: kinglet_tensor::Element>(rows: usize, columns: usize, device: &Device) -> Vec<T> {
    dense(rows, columns, device).to_dtype(T::DTYPE).unwrap().to_vec().unwrap()
}

/// Blocks of every byte pattern, with small scales; or plain numbers.
fn gguf(format: ggml::Format, [rows, columns]: [usize; 2], order: RowOrder, device: &Device) -> GgufMatrix {
    let fixture = match format {
        ggml::Format::F32 => plain::<f32>(rows, columns, device).iter().flat_map(|x| x.to_le_bytes()).collect(),
        ggml::Format::F16 => plain::<half::f16>(rows, columns, device).iter().flat_map(|x| x.to_le_bytes()).collect(),
        ggml::Format::BF16 => plain::<half::bf16>(rows, columns, device).iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => Fixture::open("ggml.safetensors").get(&format!("{format}.blocks")).bytes,
    };
    let bytes = rows * columns / format.block_len() * format.block_bytes();
    let blocks: Vec<u8> = fixture.into_iter().cycle().skip(8 * format.block_bytes()).take(bytes).collect();
    GgufMatrix::new(format, [rows, columns], order, Tensor::from_vec(blocks, &[bytes], device).unwrap()).unwrap()
}

/// Weights of every kind and awkward shapes, each with its dense values.
fn weights(device: &Device) -> Vec<(String, Weight, Tensor)> {
    let mut weights = Vec::new();
    let shapes = [[1, 1], [7, 33], [9, 80], [40, 64], [3, 700], [70, 130]];
    for (shape, double) in shapes.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        for (format, blocksize) in [(Format::Nf4, 64), (Format::Fp4, 64), (Format::Nf4, 32), (Format::Nf4, 256)] {
            let w = FourBit::quantize(&dense(shape[0], shape[1], device), format, blocksize, double).unwrap();
            let values = w.dequantize(DType::F32).unwrap();
            weights.push((format!("{format:?}/{blocksize} {shape:?} {double}"), Weight::FourBit(Arc::new(w)), values));
        }
    }
    for format in ggml::Format::ALL.into_iter().chain(ggml::Format::PLAIN) {
        for order in [RowOrder::Plain, RowOrder::Interleaved { head_dim: 6 }] {
            let w = gguf(format, [18, 512], order, device);
            let values = w.dequantize(DType::F32).unwrap();
            weights.push((format!("{format} {order:?}"), Weight::Gguf(w), values));
        }
    }
    weights
}

/// B[k, n] by the definition: Wᵀ forward, W backward.
fn element(w: &[f32], columns: usize, direction: Direction, k: usize, n: usize) -> f32 {
    match direction {
        Direction::Forward => w[n * columns + k],
        Direction::Backward => w[k * columns + n],
    }
}

/// Parts of `0..len`: all of it, and pieces that start and end anywhere.
fn ranges(len: usize) -> Vec<Range<usize>> {
    vec![0..len, 0..len.min(5), len / 3..len, len / 2..len / 2 + len.div_ceil(4).min(len - len / 2), len..len]
}

fn check_pack(what: &str, panels: &dyn Panels, b: impl Fn(usize, usize) -> f32) {
    for nr in [8, 16, 32] {
        for k in ranges(panels.k()) {
            for n in ranges(panels.n()) {
                let mut out = vec![f32::NAN; n.len().div_ceil(nr) * k.len() * nr];
                panels.pack(k.clone(), n.clone(), nr, &mut out);
                let want: Vec<f32> = (n.clone().step_by(nr))
                    .flat_map(|strip| k.clone().flat_map(move |kk| (strip..strip + nr).map(move |col| (kk, col))))
                    .map(|(kk, col)| if col < n.end { b(kk, col) } else { 0.0 })
                    .collect();
                assert_bits(&out, &want, &format!("{what} {k:?} {n:?} nr {nr}"));
            }
        }
    }
}

#[test]
fn both_orientations_pack_to_the_dense_values() {
    for device in devices() {
        let simd = device.as_cpu().unwrap().simd();
        for (name, weight, values) in weights(&device) {
            let (values, columns) = (values.to_vec::<f32>().unwrap(), weight.dims().unwrap().1);
            for direction in DIRECTIONS {
                let panels = weight.panels(simd, direction).unwrap();
                let b = |k, n| element(&values, columns, direction, k, n);
                let what = format!("{name} {direction:?} {device:?}");
                check_pack(&what, &*panels, b);
                for n in [0, panels.n() / 2, panels.n() - 1] {
                    for k in ranges(panels.k()) {
                        let mut out = vec![f32::NAN; k.len()];
                        panels.column(n, k.clone(), &mut out);
                        let want: Vec<f32> = k.clone().map(|k| b(k, n)).collect();
                        assert_bits(&out, &want, &format!("{what} column {n} {k:?}"));
                    }
                }
            }
        }
        device.check_guards().unwrap();
    }
}

#[test]
fn products_are_those_with_the_dense_matrix() {
    for device in devices() {
        for (name, weight, values) in weights(&device) {
            // f16 alone does not become bf16 beside bf16 activations.
            let is_f16 = matches!(&weight, Weight::Gguf(w) if w.format() == ggml::Format::F16);
            let dense_weight = Weight::Dense(if is_f16 { values.to_dtype(DType::F16).unwrap() } else { values });
            for direction in DIRECTIONS {
                for rows in [1, 5, 40] {
                    let inputs = match direction {
                        Direction::Forward => weight.dims().unwrap().1,
                        Direction::Backward => weight.dims().unwrap().0,
                    };
                    let x = dense(rows, inputs, &device);
                    // Few rows of bf16 are multiplied with blocks in integers, of which the oracle has the truth.
                    let blocks = matches!(&weight, Weight::Gguf(w) if w.format().block_len() > 1);
                    // And beside NF4 by dot products of pairs, where there are such, which are scaled after they are added up.
                    let level = device.as_cpu().unwrap().simd().level();
                    let pairs = matches!(&weight, Weight::FourBit(_)) && level >= Level::Avx512Bf16;
                    let few_rows = rows <= FEW_ROWS && direction == Direction::Forward;
                    let dtypes =
                        if (blocks || pairs) && few_rows { &[DType::F32][..] } else { &[DType::F32, DType::BF16] };
                    for x in dtypes.iter().map(|&dtype| x.to_dtype(dtype).unwrap()) {
                        let got = weight.matmul(&x, direction).unwrap().to_dtype(DType::F32).unwrap();
                        let want = dense_weight.matmul(&x, direction).unwrap().to_dtype(DType::F32).unwrap();
                        let what = format!("{name} {direction:?} {rows} rows of {}", x.dtype());
                        assert_bits(&got.to_vec().unwrap(), &want.to_vec().unwrap(), &what);
                    }
                }
            }
        }
    }
}

#[test]
fn rows_of_interleaved_heads_are_seen_in_their_order() {
    let device = Device::cpu(CpuOptions::default()).unwrap();
    for format in [ggml::Format::Q4_1, ggml::Format::F32, ggml::Format::F16, ggml::Format::BF16] {
        let shape = [24, 32];
        let stored = gguf(format, shape, RowOrder::Plain, &device).dequantize(DType::F32).unwrap();
        let seen = gguf(format, shape, RowOrder::Interleaved { head_dim: 8 }, &device).dequantize(DType::F32).unwrap();
        // llama.cpp's conversion: [heads, 2, head_dim / 2, in] -> [heads, head_dim / 2, 2, in]
        let back = stored.reshape(&[3, 4, 2, 32]).unwrap().transpose(1, 2).unwrap().reshape(&shape).unwrap();
        assert_bits(&seen.to_vec().unwrap(), &back.to_vec().unwrap(), &format.to_string());
    }
}

#[test]
fn dequantised_values_round_to_the_asked_dtype() {
    for device in devices() {
        for (name, weight, values) in weights(&device) {
            let half = match &weight {
                Weight::FourBit(w) => w.dequantize(DType::BF16),
                Weight::Gguf(w) => w.dequantize(DType::BF16),
                _ => unreachable!(),
            };
            let want = values.to_dtype(DType::BF16).unwrap().to_vec::<half::bf16>().unwrap();
            assert_eq!(half.unwrap().to_vec::<half::bf16>().unwrap(), want, "{name}");
        }
    }
}

#[test]
fn quantising_bf16_makes_no_dense_copy() {
    let device = Device::cpu(CpuOptions::default()).unwrap();
    let weight = dense(512, 512, &device).to_dtype(DType::BF16).unwrap();
    device.release_cache();
    device.reset_peak();
    let before = device.memory().live;
    let quantised = FourBit::quantize(&weight, Format::Nf4, 64, true).unwrap();
    let plain_scales = 4 * 512 * 512 / 64;
    let peak = device.memory().peak - before;
    assert!(peak <= quantised.bytes() + plain_scales + 256, "{peak} bytes for {}", quantised.bytes());
    assert_eq!(quantised.bytes(), 512 * 512 / 2 + 4096 + 4 * 16);

    let meta = Device::meta();
    let planned = FourBit::quantize(&weight.to(&meta).unwrap(), Format::Nf4, 64, true).unwrap();
    assert_eq!(planned.bytes(), quantised.bytes());
}

fn adapter<'t>(a: &Var<'t>, b: &Var<'t>) -> Lora<'t> {
    Lora { a: a.clone(), b: b.clone(), scale: 1.0, dropout: None }
}

#[test]
fn operands_that_are_no_matrices_are_errors() {
    let device = Device::cpu(CpuOptions::default()).unwrap();
    let tape = Tape::new();
    let var = |shape: &[usize]| tape.leaf(Tensor::zeros(shape, DType::F32, &device).unwrap());
    let x = var(&[3, 4]);
    for shape in [&[][..], &[4], &[4, 4, 4]] {
        let odd = var(shape);
        let weight = Arc::new(Weight::Dense(odd.value().clone()));
        assert!(weight.dims().unwrap_err().is_shape());
        for direction in DIRECTIONS {
            assert!(weight.matmul(x.value(), direction).unwrap_err().is_shape());
            let simd = device.as_cpu().unwrap().simd();
            assert!(weight.panels(simd, direction).err().unwrap().is_shape());
        }
        assert!(linear(&x, &weight, None).unwrap_err().is_shape());
        assert!(linear_trained(&x, &odd, None).unwrap_err().is_shape());
        let ids = Tensor::from_vec(vec![0i32], &[1], &device).unwrap();
        assert!(embed(&weight, &ids, DType::F32).unwrap_err().is_shape());

        let (a, b) = (var(&[2, 4]), var(&[5, 2]));
        let layer = Arc::new(Weight::Dense(var(&[5, 4]).value().clone()));
        let adapted = |x, weight, second| linear_lora(x, weight, None, &[adapter(&a, &b), second]);
        assert!(adapted(&x, &layer, adapter(&a, &b)).is_ok());
        assert!(adapted(&x, &weight, adapter(&a, &b)).unwrap_err().is_shape());
        assert!(adapted(&odd, &layer, adapter(&a, &b)).unwrap_err().is_shape());
        assert!(adapted(&x, &layer, adapter(&odd, &b)).unwrap_err().is_shape());
        assert!(adapted(&x, &layer, adapter(&a, &odd)).unwrap_err().is_shape());
        assert!(adapted(&x, &layer, adapter(&var(&[3, 4]), &b)).unwrap_err().is_shape(), "ranks differ");
    }
}

#[test]
fn what_cannot_be_a_weight_is_an_error() {
    let device = Device::cpu(CpuOptions::default()).unwrap();
    let nan = Tensor::from_vec(vec![1.0, f32::NAN], &[1, 2], &device).unwrap();
    assert!(FourBit::quantize(&nan, Format::Nf4, 64, true).err().unwrap().is_non_finite());
    let ok = dense(2, 64, &device);
    for blocksize in [0, 1, 16, 48, 63, 8192] {
        assert!(FourBit::quantize(&ok, Format::Nf4, blocksize, false).err().unwrap().is_invalid());
    }
    let row = Tensor::from_vec(vec![1f32], &[1], &device).unwrap();
    assert!(FourBit::quantize(&row, Format::Nf4, 64, false).err().unwrap().is_shape());
    let bytes = |n: usize| Tensor::from_vec(vec![0u8; n], &[n], &device).unwrap();
    let gguf = |shape, order, bytes| GgufMatrix::new(ggml::Format::Q4_0, shape, order, bytes).err();
    assert!(gguf([2, 32], RowOrder::Plain, bytes(36)).is_none());
    assert!(gguf([2, 32], RowOrder::Plain, bytes(35)).unwrap().is_shape());
    assert!(gguf([2, 33], RowOrder::Plain, bytes(36)).unwrap().is_shape());
    assert!(gguf([usize::MAX / 2, 64], RowOrder::Plain, bytes(36)).unwrap().is_shape());
    for head_dim in [0, 1, 3, 4] {
        assert!(gguf([2, 32], RowOrder::Interleaved { head_dim }, bytes(36)).unwrap().is_shape());
    }
    assert!(gguf([1, 32], RowOrder::Plain, ok.clone()).unwrap().is_dtype());
}
