//! What is special in float arithmetic: NaN, infinities, subnormals under `.ftz`, `.sat`, `.relu`, signs of zero, minimum and
//! maximum, classes.

mod arith_support;

use arith_support::exact::{BF16, F16, F32, F64, Format};
use arith_support::{MODES, PLAIN, Random, d, f, rounding, run, run_wide};
use kinglet_emulator::arith::supports;
use kinglet_emulator::program::{Alu, AluOp, Modifiers, Rounding, TestP, Type};

const INFINITY: u64 = 0x7f80_0000;
const NAN: u64 = 0x7fff_ffff;
const MINUS: u64 = 0x8000_0000;
const FTZ: Modifiers = Modifiers { ftz: true, ..PLAIN };
const SAT: Modifiers = Modifiers { sat: true, ..PLAIN };

/// A NaN with another payload and sign.
const PAYLOAD: u64 = 0xff81_2345;

#[test]
fn f32_has_one_nan() {
    let one = f(1.0);
    for mode in MODES.map(rounding) {
        for op in [AluOp::Add, AluOp::Sub, AluOp::Mul, AluOp::Div] {
            assert_eq!(run(op, Type::F32, mode, &[PAYLOAD, one]), NAN, "{op:?}");
            assert_eq!(run(op, Type::F32, mode, &[one, PAYLOAD]), NAN, "{op:?}");
        }
        for i in 0..3 {
            let mut operands = [one; 3];
            operands[i] = PAYLOAD;
            assert_eq!(run(AluOp::Fma, Type::F32, mode, &operands), NAN);
        }
        assert_eq!(run(AluOp::Add, Type::F32, mode, &[INFINITY, INFINITY | MINUS]), NAN);
        assert_eq!(run(AluOp::Sub, Type::F32, mode, &[INFINITY, INFINITY]), NAN);
        assert_eq!(run(AluOp::Mul, Type::F32, mode, &[INFINITY, 0]), NAN);
        assert_eq!(run(AluOp::Fma, Type::F32, mode, &[INFINITY, one, INFINITY | MINUS]), NAN);
        assert_eq!(run(AluOp::Fma, Type::F32, mode, &[INFINITY, 0, one]), NAN);
        assert_eq!(run(AluOp::Div, Type::F32, mode, &[0, MINUS]), NAN);
        assert_eq!(run(AluOp::Div, Type::F32, mode, &[INFINITY, INFINITY]), NAN);
        assert_eq!(run(AluOp::Sqrt, Type::F32, mode, &[f(-1.0)]), NAN);
        assert_eq!(run(AluOp::Rcp, Type::F32, mode, &[PAYLOAD]), NAN);
    }
    for op in [AluOp::Abs, AluOp::Neg] {
        assert_eq!(run(op, Type::F32, PLAIN, &[PAYLOAD]), NAN);
        assert_eq!(run(op, Type::F16, PLAIN, &[0xfe01]), 0x7fff);
        assert_eq!(run(op, Type::Bf16, PLAIN, &[0xffc1]), 0x7fff);
    }
    assert_eq!(run(AluOp::Add, Type::F16x2, PLAIN, &[0x7e01_3c00, 0x3c00_3c00]), 0x7fff_4000);
    assert_eq!(run(AluOp::Mul, Type::Bf16, PLAIN, &[0x7f80, 0]), 0x7fff);
}

#[test]
fn f32_infinities_and_zeros() {
    for mode in MODES.map(rounding) {
        assert_eq!(run(AluOp::Add, Type::F32, mode, &[INFINITY, f(-1.0)]), INFINITY);
        assert_eq!(run(AluOp::Mul, Type::F32, mode, &[INFINITY, f(-1.0)]), INFINITY | MINUS);
        assert_eq!(run(AluOp::Fma, Type::F32, mode, &[f(1.0), f(2.0), INFINITY | MINUS]), INFINITY | MINUS);
        assert_eq!(run(AluOp::Div, Type::F32, mode, &[f(-1.0), 0]), INFINITY | MINUS);
        assert_eq!(run(AluOp::Div, Type::F32, mode, &[f(1.0), INFINITY | MINUS]), MINUS);
        assert_eq!(run(AluOp::Rcp, Type::F32, mode, &[MINUS]), INFINITY | MINUS);
        assert_eq!(run(AluOp::Sqrt, Type::F32, mode, &[INFINITY]), INFINITY);
        assert_eq!(run(AluOp::Sqrt, Type::F32, mode, &[MINUS]), MINUS);
        assert_eq!(run(AluOp::Mul, Type::F32, mode, &[0, f(-3.0)]), MINUS);
    }
    // Beyond the largest number.
    let largest = f(f32::MAX);
    let overflow = MODES.map(|mode| run(AluOp::Add, Type::F32, rounding(mode), &[largest, largest]));
    assert_eq!(overflow, [INFINITY, largest, largest, INFINITY]);
    let overflow = MODES.map(|mode| run(AluOp::Mul, Type::F32, rounding(mode), &[largest, f(-2.0)]));
    assert_eq!(overflow, [INFINITY | MINUS, largest | MINUS, INFINITY | MINUS, largest | MINUS]);
}

#[test]
fn f64_nan_payloads() {
    let (quiet, signalling, one) = (0x7ff8_0000_0000_1111, 0xfff0_0000_0000_2222, d(1.0));
    let invalid = 0xfff8_0000_0000_0000;
    for mode in MODES.map(rounding) {
        for op in [AluOp::Add, AluOp::Sub, AluOp::Mul, AluOp::Div] {
            let run = |a, b| run(op, Type::F64, mode, &[a, b]);
            assert_eq!(run(one, quiet), quiet, "{op:?}");
            assert_eq!(run(signalling, one), 0xfff8_0000_0000_2222, "{op:?}");
            assert_eq!(run(quiet, signalling), quiet, "{op:?}");
        }
        assert_eq!(run(AluOp::Fma, Type::F64, mode, &[one, one, quiet]), quiet);
        assert_eq!(run(AluOp::Sqrt, Type::F64, mode, &[d(-1.0)]), invalid);
        assert_eq!(run(AluOp::Div, Type::F64, mode, &[0, 0]), invalid);
        assert_eq!(run(AluOp::Sub, Type::F64, mode, &[d(f64::INFINITY), d(f64::INFINITY)]), invalid);
        assert_eq!(run(AluOp::Mul, Type::F64, mode, &[d(f64::INFINITY), 0]), invalid);
        assert_eq!(run(AluOp::Div, Type::F64, mode, &[one, 0]), d(f64::INFINITY));
        assert_eq!(run(AluOp::Sqrt, Type::F64, mode, &[d(-0.0)]), d(-0.0));
    }
    assert_eq!(run(AluOp::Neg, Type::F64, PLAIN, &[quiet]), quiet | 1 << 63);
    assert_eq!(run(AluOp::Abs, Type::F64, PLAIN, &[signalling]), signalling & !(1 << 63));
}

/// `.ftz` flushes operands, and results that are too small after rounding with exponents that go on.
#[test]
fn ftz_flushes_operands_and_results() {
    let mut random = Random(51);
    for (ty, format, modes) in [(Type::F32, F32, &MODES[..]), (Type::F16, F16, &MODES[..1])] {
        let wide = Format { exponent: 11, largest: F64.largest >> (F64.fraction - format.fraction), ..format };
        let least = format.value(1 << format.fraction);
        let flush = |x: u64| if x & !format.sign() < 1 << format.fraction { x & format.sign() } else { x };
        let mut tiny = 0;
        for _ in 0..20_000 {
            // The product is near the least normal number.
            let a = random.float(format) & !format.sign();
            let (exponent, smallest) = (a >> format.fraction, 1 + random.below(2));
            let fraction = random.next() & ((1 << format.fraction) - 1);
            let fraction = if random.below(2) == 0 { !a & ((1 << format.fraction) - 1) } else { fraction };
            let bias = (1 << (format.exponent - 1)) - 1;
            let b = (smallest + bias).saturating_sub(exponent) << format.fraction | fraction;
            if !format.is_finite(a) || !format.is_finite(b) {
                continue;
            }
            let (x, y) = (format.value(flush(a)), format.value(flush(b)));
            let product = x.mul(&y);
            for &mode in modes {
                let ftz = Modifiers { ftz: true, ..rounding(mode) };
                let is_tiny = product.is_zero() || wide.value(wide.round(&product, mode)).cmp_magnitude(&least).is_lt();
                let expected = if is_tiny { 0 } else { format.round(&product, mode) };
                tiny += usize::from(is_tiny);
                assert_eq!(run(AluOp::Mul, ty, ftz, &[a, b]), expected, "{ty:?} {mode:?} {a:x} {b:x}");
                assert_eq!(run(AluOp::Fma, ty, ftz, &[a, b, 1]), expected, "{ty:?} {mode:?} {a:x} {b:x}");
            }
        }
        assert!(tiny > 2000, "{tiny}");
    }
    // What ptxas computes: (1 - 2^-24) 2^-126 is flushed, (1 - 2^-26) 2^-126 is not.
    let mul = |m, a, b| run(AluOp::Mul, Type::F32, m, &[a, b]);
    assert_eq!(mul(FTZ, 0x0080_0000, 0x3f7f_ffff), 0);
    assert_eq!(mul(PLAIN, 0x0080_0000, 0x3f7f_ffff), 0x0080_0000);
    assert_eq!(mul(FTZ, 0x2000_0400, 0x1fff_f800), 0x0080_0000);
    assert_eq!(run(AluOp::Add, Type::F32, FTZ, &[0x0080_0001, 0x8080_0000]), 0);
    assert_eq!(run(AluOp::Sub, Type::F32, FTZ, &[0x0080_0000, 0x0080_0001]), MINUS);
    assert_eq!(run(AluOp::Fma, Type::F16, FTZ, &[0x3c00, 0x0401, 0x8400]), 0);
    assert_eq!(run(AluOp::Neg, Type::F32, FTZ, &[1]), MINUS);
    assert_eq!(run(AluOp::Abs, Type::F32, FTZ, &[MINUS | 1]), 0);
    assert_eq!(run(AluOp::Max, Type::F32, FTZ, &[1, MINUS | 1]), 0);
    assert_eq!(run(AluOp::Div, Type::F32, FTZ, &[f(1.0), 1]), INFINITY);
    assert_eq!(run(AluOp::Mul, Type::F32, PLAIN, &[f(2.0), 1]), 2);
}

#[test]
fn sat_clamps_and_makes_nan_zero() {
    let add = |a: f32| run(AluOp::Add, Type::F32, SAT, &[f(a), f(0.0)]);
    for (x, expected) in [(-1.0, 0.0), (-0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1.5, 1.0), (f32::INFINITY, 1.0)] {
        assert_eq!(add(x), f(expected), "{x}");
    }
    assert_eq!(add(f32::NAN), 0);
    assert_eq!(add(f32::NEG_INFINITY), 0);
    assert_eq!(add(f32::from_bits(1)), 1);
    assert_eq!(run(AluOp::Add, Type::F32, Modifiers { ftz: true, ..SAT }, &[1, 0]), 0);
    assert_eq!(run(AluOp::Mul, Type::F32, SAT, &[f(-0.0), f(1.0)]), 0);
    assert_eq!(run(AluOp::Fma, Type::F32, SAT, &[f(3.0), f(0.25), f(-0.5)]), f(0.25));
    assert_eq!(run(AluOp::Fma, Type::F16x2, SAT, &[0x7e00_4000, 0x3c00_3c00, 0]), 0x3c00);
    assert_eq!(run(AluOp::Mul, Type::F16, SAT, &[0x8000, 0x3c00]), 0);
}

#[test]
fn relu_keeps_nan() {
    let relu = Modifiers { relu: true, ..PLAIN };
    for (ty, one, two, nan) in [(Type::F16, 0x3c00, 0x4000, 0x7e55), (Type::Bf16, 0x3f80, 0x4000, 0x7fd5)] {
        let fma = |a, b, c| run(AluOp::Fma, ty, relu, &[a, b, c]);
        assert_eq!(fma(one, one, one), two);
        assert_eq!(fma(one | 0x8000, two, one), 0);
        assert_eq!(fma(one | 0x8000, 0, 0x8000), 0); // -0
        assert_eq!(fma(nan | 0x8000, one, one), 0x7fff);
    }
}

/// Every pair of special values of every format, against the ISA's rule in words.
#[test]
fn minimum_and_maximum() {
    for (ty, format) in [(Type::F16, F16), (Type::Bf16, BF16), (Type::F32, F32), (Type::F64, F64)] {
        // f64: quiet, so that its bits as an operand are those of the result.
        let nan = if ty == Type::F64 { 0xfff8_0000_0000_0000 } else { format.sign() - 1 };
        // In the order of the numbers.
        let infinity = format.largest + 1;
        let positive = [0, 1, 1 << format.fraction, infinity / 2, format.largest, infinity];
        let order: Vec<u64> =
            positive.iter().rev().map(|x| x | format.sign()).chain(positive).chain([nan, infinity + 1]).collect();
        let rank = |x: u64| order.iter().position(|y| *y == x).unwrap();
        for &a in &order {
            for &b in &order {
                for (has_nan, xorsign_abs) in [(false, false), (true, false), (false, true), (true, true)] {
                    let modifiers = Modifiers { nan: has_nan, xorsign_abs, ..PLAIN };
                    if !supports(&Alu { op: AluOp::Min, ty, modifiers }) {
                        assert_eq!(ty, Type::F64);
                        continue;
                    }
                    let magnitude = |x: u64| if xorsign_abs { x & !format.sign() } else { x };
                    for is_max in [false, true] {
                        let expected = match (format.is_nan(a), format.is_nan(b)) {
                            (true, true) if ty == Type::F64 => b | 1 << 51,
                            (true, true) => nan,
                            (true, false) | (false, true) if has_nan => nan,
                            (true, false) => magnitude(b),
                            (false, true) => magnitude(a),
                            _ if (rank(magnitude(a)) < rank(magnitude(b))) == is_max => magnitude(b),
                            _ => magnitude(a),
                        };
                        let sign = if xorsign_abs && !format.is_nan(expected) { (a ^ b) & format.sign() } else { 0 };
                        let op = if is_max { AluOp::Max } else { AluOp::Min };
                        let got = run(op, ty, modifiers, &[a, b]);
                        assert_eq!(got, expected | sign, "{op:?} {ty:?} {modifiers:?} {a:x} {b:x}");
                    }
                }
            }
        }
    }
}

#[test]
fn minimum_of_three() {
    let run = |op, m, x: [f32; 3]| run(op, Type::F32, m, &x.map(f));
    assert_eq!(run(AluOp::Min3, PLAIN, [3.0, -1.0, 2.0]), f(-1.0));
    assert_eq!(run(AluOp::Max3, PLAIN, [3.0, -1.0, f32::NAN]), f(3.0));
    assert_eq!(run(AluOp::Max3, Modifiers { nan: true, ..PLAIN }, [3.0, f32::NAN, 4.0]), NAN);
    assert_eq!(run(AluOp::Min3, PLAIN, [f32::NAN; 3]), NAN);
    assert_eq!(run(AluOp::Min3, PLAIN, [0.0, -0.0, 0.0]), MINUS);
}

#[test]
fn copysign_takes_the_sign_of_the_first() {
    assert_eq!(run(AluOp::Copysign, Type::F32, PLAIN, &[f(-0.0), f(3.0)]), f(-3.0));
    assert_eq!(run(AluOp::Copysign, Type::F32, PLAIN, &[f(1.0), PAYLOAD]), PAYLOAD & !MINUS);
    assert_eq!(run_wide(AluOp::Copysign, Type::F64, PLAIN, &[d(-2.0), d(3.0)], 8), d(-3.0));
}

#[test]
fn classes() {
    let values = [0.0, f32::from_bits(1), 1.0, f32::INFINITY, f32::NAN];
    for sign in [0, MINUS] {
        for (test, expected) in [
            (TestP::Finite, [1, 1, 1, 0, 0]),
            (TestP::Infinite, [0, 0, 0, 1, 0]),
            (TestP::Number, [1, 1, 1, 1, 0]),
            (TestP::NotANumber, [0, 0, 0, 0, 1]),
            (TestP::Normal, [0, 0, 1, 0, 0]),
            (TestP::Subnormal, [0, 1, 0, 0, 0]),
        ] {
            let single = values.map(|x| run(AluOp::Testp(test), Type::F32, PLAIN, &[f(x) | sign]));
            assert_eq!(single, expected, "{test:?}");
            let doubles = [0, 1, d(1.0), d(f64::INFINITY), d(f64::NAN)];
            let double = doubles.map(|x| run(AluOp::Testp(test), Type::F64, PLAIN, &[x | sign << 32]));
            assert_eq!(double, expected, "{test:?}");
        }
    }
}

#[test]
fn what_ptx_does_not_have() {
    let no = |op, ty, modifiers| assert!(!supports(&Alu { op, ty, modifiers }), "{op:?} {ty:?} {modifiers:?}");
    no(AluOp::Add, Type::F64, FTZ);
    no(AluOp::Add, Type::F64, SAT);
    no(AluOp::Add, Type::Bf16, FTZ);
    no(AluOp::Add, Type::F16, rounding(Rounding::Rz));
    no(AluOp::Fma, Type::F32, Modifiers { relu: true, ..PLAIN });
    no(AluOp::Fma, Type::F32, rounding(Rounding::Rna));
    no(AluOp::Fma, Type::F16, Modifiers { relu: true, ..SAT });
    no(AluOp::Div, Type::F16, PLAIN);
    no(AluOp::Sqrt, Type::F32, Modifiers { approx: true, ..rounding(Rounding::Rn) });
    no(AluOp::Sin, Type::F64, Modifiers { approx: true, ..PLAIN });
    no(AluOp::Copysign, Type::F16, PLAIN);
    no(AluOp::Max, Type::F64, Modifiers { nan: true, ..PLAIN });
    no(AluOp::Rem, Type::F32, PLAIN);
    no(AluOp::MulLo, Type::F32, PLAIN);
    no(AluOp::Abs, Type::Tf32, PLAIN);
}
