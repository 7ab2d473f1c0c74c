//! What the oracle's cases, whose values are finite floats, do not reach: integers, special values, broadcast and mixed
//! operands, sums into what is there.

use kinglet::tensor::ops::{self, Compare, Reduce, Softmax};
use kinglet::{DType, Device, Result, Tensor};
use kinglet_oracle::{device, emulated};

/// Runs on both kinds of device and compares dtype, shape and bits; all NaNs are one.
fn same(what: &str, run: impl Fn(&Device) -> Result<Tensor>) {
    let bits = |device: &Device| {
        let y = run(device).unwrap_or_else(|e| panic!("{what} on {device:?}: {e}"));
        let values = match y.dtype() {
            DType::I32 => y.to_vec::<i32>().unwrap().into_iter().map(i32::cast_unsigned).collect(),
            _ => {
                y.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap().into_iter().map(canonical).collect::<Vec<_>>()
            }
        };
        (y.dtype(), y.shape().to_vec(), values)
    };
    assert_eq!(bits(&emulated(80, 3)), bits(&device(1)), "{what}");
}

fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7FFF_FFFF } else { x.to_bits() }
}

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const INTEGERS: [DType; 3] = [DType::I32, DType::I8, DType::U8];

/// Infinities, NaN, both zeros, denormals, and what a conversion rounds, overflows or saturates.
const SPECIAL: [f32; 17] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    0.0,
    -0.0,
    1e-40,
    -1e-45,
    6e-8,
    65504.0,
    65520.0,
    1e30,
    -1e30,
    2.5,
    -2.5,
    300.0,
    -200.7,
    1.000_061,
];

fn special(device: &Device) -> Result<Tensor> {
    Tensor::from_slice(&SPECIAL, &[SPECIAL.len()], device)
}

/// Values of a matrix [rows, columns], no two neighbours alike.
fn matrix(rows: usize, columns: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let values = (0..rows * columns).map(|i| (i * 7919 % 101) as f32 - if dtype == DType::U8 { 0.0 } else { 50.0 });
    Tensor::from_vec(values.collect::<Vec<f32>>(), &[rows, columns], device)?.to_dtype(dtype)
}

#[test]
fn integers_are_moved_and_compared() {
    for dtype in INTEGERS {
        let x = |device: &Device| matrix(5, 7, dtype, device);
        same(&format!("copy of {dtype}"), |d| x(d)?.transpose(0, 1)?.contiguous());
        same(&format!("cat of {dtype}"), |d| ops::cat(&[&x(d)?, &x(d)?.flip(1)?], 1));
        same(&format!("gather of {dtype}"), |d| {
            ops::index_select(&x(d)?, 1, &Tensor::from_slice(&[6i32, 0, 0, 3], &[4], d)?)
        });
        for to in FLOATS.into_iter().chain(INTEGERS) {
            same(&format!("{dtype} to {to}"), |d| x(d)?.to_dtype(to));
        }
        for op in [Compare::Eq, Compare::Ne, Compare::Lt, Compare::Le, Compare::Gt, Compare::Ge] {
            same(&format!("{op:?} of {dtype}"), |d| ops::compare(op, &x(d)?, &x(d)?.flip(0)?));
        }
    }
    // Neighbours that an f32 does not tell apart.
    same("large integers", |d| {
        let x = Tensor::from_slice(&[16_777_216i32, 16_777_217, i32::MAX, i32::MIN], &[4], d)?;
        ops::compare(Compare::Lt, &x, &x.flip(0)?)
    });
}

#[test]
fn special_values_are_as_on_the_cpu() {
    for to in FLOATS.into_iter().chain(INTEGERS) {
        same(&format!("to {to}"), |d| special(d)?.to_dtype(to));
    }
    for dtype in FLOATS {
        let x = |device: &Device| special(device)?.to_dtype(dtype);
        let pairs = |device: &Device| {
            let (x, n) = (x(device)?, SPECIAL.len());
            Ok((x.unsqueeze(1)?.broadcast_to(&[n, n])?, x.unsqueeze(0)?.broadcast_to(&[n, n])?))
        };
        for op in [Compare::Eq, Compare::Ne, Compare::Lt, Compare::Le, Compare::Gt, Compare::Ge] {
            same(&format!("{op:?} {dtype}"), |d| pairs(d).and_then(|(a, b)| ops::compare(op, &a, &b)));
        }
        for op in [ops::Binary::Maximum, ops::Binary::Minimum, ops::Binary::Div, ops::Binary::Mul, ops::Binary::Sub] {
            same(&format!("{op:?} {dtype}"), |d| pairs(d).and_then(|(a, b)| ops::binary(op, &a, &b)));
        }
        for op in [Reduce::Sum, Reduce::Mean, Reduce::Max, Reduce::Min] {
            same(&format!("{op:?} {dtype}"), |d| ops::reduce(op, &x(d)?, &[0], false));
            same(&format!("{op:?} of infinities {dtype}"), |d| ops::reduce(op, &x(d)?.narrow(0, 1, 1)?, &[0], false));
        }
        same(&format!("argmax {dtype}"), |d| ops::argmax(&x(d)?, 0));
        same(&format!("argmax without NaN {dtype}"), |d| ops::argmax(&x(d)?.narrow(0, 1, 16)?, 0));
        for op in [Softmax::Plain, Softmax::Log] {
            same(&format!("{op:?} {dtype}"), |d| ops::softmax(op, &x(d)?.narrow(0, 2, 15)?));
            same(&format!("{op:?} with infinity {dtype}"), |d| ops::softmax(op, &x(d)?.narrow(0, 1, 16)?));
            same(&format!("{op:?} of -infinity alone {dtype}"), |d| ops::softmax(op, &x(d)?.narrow(0, 2, 1)?));
        }
        same(&format!("max of extremes backward {dtype}"), |d| {
            let (x, one) = (x(d)?, Tensor::full(1.0, &[], dtype, d)?);
            ops::extreme_backward(&x, &ops::reduce(Reduce::Max, &x, &[0], false)?, &one, &[0])
        });
    }
}

#[test]
fn sums_and_means_of_nothing() {
    for dims in [&[0][..], &[1], &[0, 1]] {
        same(&format!("sum over {dims:?}"), |d| {
            ops::reduce(Reduce::Sum, &Tensor::zeros(&[3, 0], DType::F32, d)?, dims, true)
        });
    }
    same("mean", |d| ops::reduce(Reduce::Mean, &Tensor::zeros(&[3, 0], DType::F32, d)?, &[1], true));
}

#[test]
fn long_sums_take_several_passes() {
    // Rows of three chunks, along and across the memory, of a type that cannot hold their partial sums.
    for dtype in FLOATS {
        for op in [Reduce::Sum, Reduce::Mean, Reduce::Max] {
            same(&format!("{op:?} {dtype} of rows"), |d| ops::reduce(op, &matrix(3, 20_000, dtype, d)?, &[1], false));
            same(&format!("{op:?} {dtype} of columns"), |d| {
                ops::reduce(op, &matrix(20_000, 3, dtype, d)?, &[0], false)
            });
        }
    }
}

#[test]
fn every_pair_of_types_accumulates() {
    for from in FLOATS {
        for to in FLOATS {
            same(&format!("{from} into {to}"), |d| {
                let mut out = ops::affine(&matrix(5, 7, to, d)?, 0.37, 0.0)?;
                ops::accumulate(
                    &mut out.as_mut().expect("nobody else holds it"),
                    &matrix(7, 5, from, d)?.transpose(0, 1)?,
                )?;
                Ok(out)
            });
        }
    }
}

#[test]
fn products_are_added_to_what_is_there() {
    // Few rows and many, b as it lies and transposed, chains of more than 256 steps.
    for (rows, k) in [(3, 300), (20, 300), (20, 5), (3, 0)] {
        for transposed in [false, true] {
            same(&format!("{rows} rows of {k}, transposed: {transposed}"), |d| {
                let a = ops::affine(&matrix(rows, k, DType::F32, d)?, 0.013, 0.0)?;
                let b = match transposed {
                    false => ops::affine(&matrix(k, 9, DType::F32, d)?, 0.17, 0.0)?,
                    true => ops::affine(&matrix(9, k, DType::F32, d)?, 0.17, 0.0)?.transpose(0, 1)?,
                };
                let mut out = ops::affine(&matrix(rows, 9, DType::F32, d)?, 0.37, 0.0)?;
                ops::matmul_into(&a, &b, out.as_mut().expect("nobody else holds it"))?;
                Ok(out)
            });
        }
    }
}

#[test]
fn losses_of_infinite_logits_are_the_cpus() {
    let rows = [[f32::INFINITY, 0.0, 1.0], [f32::NEG_INFINITY, 0.0, 1.0], [f32::NEG_INFINITY; 3], [f32::NAN, 0.0, 1.0]];
    for logits in rows {
        for backward in [false, true] {
            same(&format!("{logits:?}, backward: {backward}"), |d| {
                let logits = Tensor::from_slice(&logits, &[1, 3], d)?;
                let targets = Tensor::from_slice(&[1i32], &[1], d)?;
                let (loss, lse) = ops::cross_entropy(&logits, &targets, 1.0)?;
                match backward {
                    false => Ok(loss),
                    true => ops::cross_entropy_backward(
                        &Tensor::full(1.0, loss.shape(), DType::F32, d)?,
                        &logits,
                        &targets,
                        &lse,
                        1.0,
                    ),
                }
            });
        }
    }
}

#[test]
fn a_norm_that_is_not_finite_stops_the_optimiser() {
    use kinglet::optim::kernels::{ADAMW, AdamwArgs};
    for (norm, loss) in [(1.5, 2.0), (f32::INFINITY, 2.0), (f32::NAN, 2.0), (1.5, f32::INFINITY), (1.5, f32::NAN)] {
        same(&format!("a norm of {norm}, a loss of {loss}"), |d| {
            let vector = |value: f32| Tensor::full(value, &[300], DType::F32, d);
            let (mut p, mut m, mut v, gradient) = (vector(0.5)?, vector(0.1)?, vector(0.2)?, vector(0.3)?);
            let (norm, loss) = (Tensor::full(norm, &[1], DType::F32, d)?, Tensor::full(loss, &[1], DType::F32, d)?);
            let numbers = Tensor::from_slice(&[0.1f32, 0.999, 0.001, 1.0, 0.01, 0.9, 1e-8], &[7], d)?;
            let nobody = "nobody else holds it";
            let args = AdamwArgs {
                numbers: &numbers,
                max_norm: 1.0,
                norm: &norm,
                loss: &loss,
                p: p.as_mut().expect(nobody),
                m: m.as_mut().expect(nobody),
                v: v.as_mut().expect(nobody),
                gradient: &gradient,
            };
            d.run(&ADAMW, args)?;
            ops::cat(&[&p, &m, &v], 0)
        });
    }
}
