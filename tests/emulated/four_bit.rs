//! Quantised matrices on the virtual GPU: codes, scales and decoded values have the CPU's bits. That those are the bits of
//! bitsandbytes is tested in `tests/quant`.

use kinglet::quant::nf4::Format;
use kinglet::quant::{FourBit, Scales};
use kinglet::tensor::ops;
use kinglet::tensor::philox::Key;
use kinglet::{DType, Device, Tensor};
use kinglet_oracle::{device, emulated};

/// What these tests are there for, of `cuda/kernels`.
pub(crate) const MODULES: [&str; 1] = ["nf4"];

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Normal numbers with a row of zeros and an outlier among them.
fn weight(shape: [usize; 2], dtype: DType, device: &Device) -> Tensor {
    let x = ops::normal(&shape, 0.02, Key::derive(&[shape[0] as u64]), device).unwrap();
    let mut values = x.to_vec::<f32>().unwrap();
    let (len, row) = (values.len(), shape[1]);
    values[len / 2..].iter_mut().take(row).for_each(|v| *v = 0.0);
    values[len / 3] = 7.5;
    Tensor::from_vec(values, &shape, device).unwrap().to_dtype(dtype).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    let values = x.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// Everything that a quantised matrix is made of, and what it stands for.
fn parts(matrix: &FourBit) -> Vec<Vec<u32>> {
    let mut parts = vec![bits(matrix.codes())];
    match matrix.scales() {
        Scales::Plain(absmax) => parts.push(bits(absmax)),
        Scales::Nested { codes, absmax, offset, .. } => {
            parts.extend([bits(codes), bits(absmax), vec![offset.to_bits()]])
        }
    }
    parts.extend(DTYPES.map(|dtype| bits(&matrix.dequantize(dtype).unwrap())));
    parts
}

#[test]
fn quantised_matrices_are_those_of_the_cpu() {
    let (cpu, gpu) = (device(1), emulated(80, 1));
    // One element; less than a block; odd, with a short last block; more than 256 blocks, so several of the second kind.
    for (shape, blocksize) in [([1, 1], 64), ([3, 7], 32), ([37, 53], 64), ([9, 1025], 32), ([2, 4100], 4096)] {
        for dtype in DTYPES {
            let weight = weight(shape, dtype, &cpu);
            for (format, double) in
                [(Format::Nf4, true), (Format::Nf4, false), (Format::Fp4, true), (Format::Fp4, false)]
            {
                let quantise = |x: &Tensor| FourBit::quantize(x, format, blocksize, double).unwrap();
                let (want, got) = (quantise(&weight), quantise(&weight.to(&gpu).unwrap()));
                let what = format!("{shape:?} {dtype} {format:?} in blocks of {blocksize}, double: {double}");
                assert!(parts(&want) == parts(&got), "{what}");
                let carried = want.to(&gpu).unwrap();
                assert!(parts(&want) == parts(&carried), "carried over: {what}");
                assert!(parts(&want) == parts(&carried.to(&cpu).unwrap()), "and back: {what}");
            }
        }
    }
}

#[test]
fn an_empty_matrix_is_quantised() {
    for double in [true, false] {
        let x = Tensor::zeros(&[0, 64], DType::F32, &emulated(80, 1)).unwrap();
        let matrix = FourBit::quantize(&x, Format::Nf4, 64, double).unwrap();
        assert_eq!(matrix.dequantize(DType::F32).unwrap().shape(), [0, 64]);
    }
}

#[test]
fn what_is_not_finite_is_reported_in_the_same_words() {
    let (cpu, gpu) = (device(1), emulated(80, 1));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // In a whole block and in the short last one.
        for at in [5, 37 * 53 - 1] {
            let mut values = weight([37, 53], DType::F32, &cpu).to_vec::<f32>().unwrap();
            values[at] = bad;
            let error = |device: &Device| {
                let x = Tensor::from_slice(&values, &[37, 53], device).unwrap();
                FourBit::quantize(&x, Format::Nf4, 64, true).map(|_| ()).unwrap_err()
            };
            assert!(error(&gpu).is_non_finite());
            assert_eq!(error(&gpu).to_string(), error(&cpu).to_string());
        }
    }
}
