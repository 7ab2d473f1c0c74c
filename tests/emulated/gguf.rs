//! Matrices in ggml's blocks on the virtual GPU: decoded values have the CPU's bits, whichever rows are asked for and in
//! whichever order the file has them. That the CPU's are the bits of llama.cpp is tested in `tests/quant`.

use kinglet::quant::ggml::Format;
use kinglet::quant::nf4;
use kinglet::quant::{FourBit, GgufMatrix, RowOrder, Weight, embed};
use kinglet::tensor::ops;
use kinglet::tensor::philox::Key;
use kinglet::{DType, Device, Tensor};
use kinglet_oracle::{device, emulated};
use std::sync::Arc;

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Every byte pattern, scales that are infinite or no numbers among them.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn matrix(format: Format, shape: [usize; 2], order: RowOrder, device: &Device) -> GgufMatrix {
    let len = shape[0] * shape[1] / format.block_len() * format.block_bytes();
    let blocks = Tensor::from_vec(bytes(len), &[len], device).unwrap();
    GgufMatrix::new(format, shape, order, blocks).unwrap()
}

/// The bits of a float tensor, where all NaNs are one.
fn bits(x: &Tensor) -> Vec<u32> {
    let values = x.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
    values.into_iter().map(|v| if v.is_nan() { 0x7FFF_FFFF } else { v.to_bits() }).collect()
}

fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().chain(Format::PLAIN)
}

/// Shapes that a format can have: one block; several blocks of threads; for plain numbers also odd ones.
fn shapes(format: Format) -> Vec<[usize; 2]> {
    match format.block_len() {
        1 => vec![[2, 1], [6, 7], [4, 12], [14, 333]],
        len => vec![[2, len], [6, 3 * len], [18, 512]],
    }
}

#[test]
fn decoded_rows_are_those_of_the_cpu() {
    let (cpu, gpu) = (device(1), emulated(80, 1));
    for format in formats() {
        for shape in shapes(format) {
            for order in
                [RowOrder::Plain, RowOrder::Interleaved { head_dim: shape[0] }, RowOrder::Interleaved { head_dim: 2 }]
            {
                let want = matrix(format, shape, order, &cpu);
                let got = want.to(&gpu).unwrap();
                for dtype in DTYPES {
                    for rows in [0..shape[0], 1..shape[0] - 1, shape[0] - 1..shape[0]] {
                        let decoded = |m: &GgufMatrix| bits(&m.dequantize_rows(rows.clone(), dtype).unwrap());
                        assert!(decoded(&want) == decoded(&got), "{format} {shape:?} {order:?} {dtype} rows {rows:?}");
                    }
                }
            }
        }
    }
}

/// Bytes in the middle of others, as a slice of a larger tensor.
#[test]
fn blocks_may_begin_anywhere() {
    let (cpu, gpu) = (device(1), emulated(80, 1));
    for format in formats() {
        let shape = [4, 512];
        let want = matrix(format, shape, RowOrder::Plain, &cpu);
        let around = Tensor::from_vec([vec![7; 3], bytes(want.bytes())].concat(), &[3 + want.bytes()], &gpu).unwrap();
        let blocks = around.narrow(0, 3, want.bytes()).unwrap();
        let got = GgufMatrix::new(format, shape, RowOrder::Plain, blocks).unwrap();
        assert!(bits(&want.dequantize(DType::F32).unwrap()) == bits(&got.dequantize(DType::F32).unwrap()), "{format}");
    }
}

#[test]
fn rows_chosen_by_ids_are_those_of_the_cpu() {
    let (cpu, gpu) = (device(1), emulated(80, 1));
    let mut tables: Vec<(String, [Weight; 2])> = Vec::new();
    for format in formats() {
        let shape = *shapes(format).last().unwrap();
        for order in [RowOrder::Plain, RowOrder::Interleaved { head_dim: shape[0] }] {
            let want = matrix(format, shape, order, &cpu);
            let got = want.to(&gpu).unwrap();
            tables.push((format!("{format} {order:?}"), [Weight::Gguf(want), Weight::Gguf(got)]));
        }
    }
    // Rows that begin in the middle of a block and of a byte.
    for (format, double, width) in
        [(nf4::Format::Nf4, true, 333), (nf4::Format::Nf4, false, 64), (nf4::Format::Fp4, true, 1)]
    {
        let dense = ops::normal(&[14, width], 1.0, Key::derive(&[5]), &cpu).unwrap();
        let want = FourBit::quantize(&dense, format, 64, double).unwrap();
        let got = want.to(&gpu).unwrap();
        let both = [want, got].map(|w| Weight::FourBit(Arc::new(w)));
        tables.push((format!("{format:?} {width} double: {double}"), both));
    }
    for (what, [want, got]) in &tables {
        for dtype in DTYPES {
            let chosen = |weight: &Weight, device: &Device| {
                let ids = Tensor::from_slice(&[3i32, 0, 13, 13, 1], &[5], device).unwrap();
                bits(&embed(weight, &ids, dtype).unwrap())
            };
            assert!(chosen(want, &cpu) == chosen(got, &gpu), "{what} {dtype}");
            let none = Tensor::from_slice::<i32>(&[], &[0], &gpu).unwrap();
            assert_eq!(embed(got, &none, dtype).unwrap().shape()[0], 0);
        }
    }
}
