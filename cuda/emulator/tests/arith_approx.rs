//! The approximate functions: within the ISA's bounds, in truth much closer, and special values exactly as its tables say.

mod arith_support;

use arith_support::exact::{BF16, Dyadic, F16, F32};
use arith_support::{PLAIN, Random, d, f, rounding, run, run_many, run_wide};
use kinglet_emulator::program::{AluOp, Modifiers, Rounding, Type};

const APPROX: Modifiers = Modifiers { approx: true, ..PLAIN };
const APPROX_FTZ: Modifiers = Modifiers { approx: true, ftz: true, ..PLAIN };
const NAN: u64 = 0x7fff_ffff;
const INF: u64 = 0x7f80_0000;
const MINUS: u64 = 0x8000_0000;

/// How far `got` is from `truth`, in units of the last place of f32 there.
fn ulps(got: u64, truth: f64) -> f64 {
    let got = f32::from_bits(got as u32);
    if f64::from(got) == truth || truth.abs() > f64::from(f32::MAX) && got.is_infinite() {
        return 0.0;
    }
    let exponent = (truth.abs().log2().floor()).max(-126.0);
    (f64::from(got) - truth).abs() / (exponent - 23.0).exp2()
}

/// Every value of a function is within half a unit in the last place, and a thousandth.
fn check(op: AluOp, inputs: impl Iterator<Item = f32>, truth: impl Fn(f64) -> f64) {
    let inputs: Vec<f32> = inputs.collect();
    let operands: Vec<[u64; 3]> = inputs.iter().map(|x| [f(*x); 3]).collect();
    let mut worst = 0.0f64;
    for (x, got) in inputs.into_iter().zip(run_many(op, Type::F32, APPROX, &operands)) {
        let error = ulps(got, truth(x.into()));
        assert!(error < 0.501, "{op:?} {x:e}: {got:x}, {error} ulp");
        worst = worst.max(error);
    }
    assert!(worst > 0.3, "no input was hard: {worst}");
}

/// Numbers of any size below the given one, of both signs.
fn numbers(seed: u64, largest: f32) -> impl Iterator<Item = f32> {
    let mut random = Random(seed);
    std::iter::repeat_with(move || f32::from_bits(random.next() as u32)).filter(move |x| x.abs() < largest).take(40_000)
}

/// Numbers spread evenly.
fn even(from: f32, to: f32) -> impl Iterator<Item = f32> {
    (0..40_000).map(move |i| from + (to - from) * (i as f32 / 40_000.0))
}

#[test]
fn ex2() {
    check(AluOp::Ex2, even(-150.0, 130.0).chain(even(-1.0, 1.0)), f64::exp2);
    check(AluOp::Ex2, numbers(81, 128.0), f64::exp2);
}

#[test]
fn lg2() {
    check(AluOp::Lg2, numbers(82, f32::MAX).map(f32::abs).filter(|x| *x > 0.0), f64::log2);
    check(AluOp::Lg2, even(0.5, 2.0), f64::log2);
    for n in -149..128 {
        assert_eq!(run(AluOp::Lg2, Type::F32, APPROX, &[f(2f64.powi(n) as f32)]), f(n as f32));
    }
}

#[test]
fn sin_and_cos() {
    for (op, truth) in [(AluOp::Sin, f64::sin as fn(f64) -> f64), (AluOp::Cos, f64::cos)] {
        check(op, even(-10.0, 10.0), truth);
        check(op, even(-1e5, 1e5), truth);
        check(op, numbers(83, f32::MAX), truth);
    }
    // f32 closest to multiples of pi/2: sin and cos are tiny there.
    check(AluOp::Cos, (1..2000).map(|i| (f64::from(2 * i + 1) * std::f64::consts::FRAC_PI_2) as f32), f64::cos);
}

#[test]
fn tanh() {
    check(AluOp::Tanh, even(-10.0, 10.0).chain(even(-0.51, 0.51)), f64::tanh);
    check(AluOp::Tanh, numbers(84, f32::MAX), f64::tanh);
}

#[test]
fn rsqrt() {
    check(AluOp::Rsqrt, numbers(85, f32::MAX).map(f32::abs).filter(|x| *x > 0.0), |x| 1.0 / x.sqrt());
}

/// `rcp`, `sqrt` and `div` are the nearest numbers even where they need not be.
#[test]
fn approximate_arithmetic_is_rounded_to_nearest() {
    let mut random = Random(86);
    let rn = rounding(Rounding::Rn);
    for _ in 0..10_000 {
        let [a, b] = [(); 2].map(|()| random.float(F32));
        assert_eq!(run(AluOp::Rcp, Type::F32, APPROX, &[a]), run(AluOp::Rcp, Type::F32, rn, &[a]));
        assert_eq!(run(AluOp::Sqrt, Type::F32, APPROX, &[a]), run(AluOp::Sqrt, Type::F32, rn, &[a]));
        let exact = run(AluOp::Div, Type::F32, rn, &[a, b]);
        assert_eq!(run(AluOp::Div, Type::F32, Modifiers { full: true, ..PLAIN }, &[a, b]), exact);
        let b = f32::from_bits(b as u32);
        if b.abs() <= 2f32.powi(126) {
            assert_eq!(run(AluOp::Div, Type::F32, APPROX, &[a, f(b)]), exact);
        }
    }
}

/// The ISA: "if 2^126 < |b| < 2^128, then a/b is NaN if a is infinite, otherwise 0".
#[test]
fn div_approx_of_large_divisors() {
    let div = |a: f32, b: f32| run(AluOp::Div, Type::F32, APPROX, &[f(a), f(b)]);
    assert_eq!(div(2f32.powi(127), f32::MAX), 0);
    assert_eq!(div(-1.0, 1.5 * 2f32.powi(126)), MINUS);
    assert_eq!(div(f32::INFINITY, f32::MAX), NAN);
    assert_eq!(div(2f32.powi(126), 2f32.powi(126)), f(1.0));
    assert_eq!(div(f32::INFINITY, f32::INFINITY), NAN);
}

/// -inf, -normal, -subnormal, -0, +0, +subnormal, +inf, NaN, without and with `.ftz`; `None`: a number that is not special.
#[test]
fn special_values() {
    let (normal, subnormal) = (f(-2.0), 0x0060_0000);
    let inputs = [INF | MINUS, normal, subnormal | MINUS, MINUS, 0, subnormal, INF, 0xffc1_2345];
    let one = f(1.0);
    for (op, ftz, results) in [
        (AluOp::Rcp, false, [Some(MINUS), None, None, Some(INF | MINUS), Some(INF), None, Some(0), Some(NAN)]),
        (
            AluOp::Rcp,
            true,
            [Some(MINUS), None, Some(INF | MINUS), Some(INF | MINUS), Some(INF), Some(INF), Some(0), Some(NAN)],
        ),
        (AluOp::Sqrt, false, [Some(NAN), Some(NAN), Some(NAN), Some(MINUS), Some(0), None, Some(INF), Some(NAN)]),
        (AluOp::Sqrt, true, [Some(NAN), Some(NAN), Some(MINUS), Some(MINUS), Some(0), Some(0), Some(INF), Some(NAN)]),
        (
            AluOp::Rsqrt,
            false,
            [Some(NAN), Some(NAN), Some(NAN), Some(INF | MINUS), Some(INF), None, Some(0), Some(NAN)],
        ),
        (
            AluOp::Rsqrt,
            true,
            [Some(NAN), Some(NAN), Some(INF | MINUS), Some(INF | MINUS), Some(INF), Some(INF), Some(0), Some(NAN)],
        ),
        (
            AluOp::Lg2,
            false,
            [Some(NAN), Some(NAN), Some(NAN), Some(INF | MINUS), Some(INF | MINUS), None, Some(INF), Some(NAN)],
        ),
        (
            AluOp::Lg2,
            true,
            [
                Some(NAN),
                Some(NAN),
                Some(INF | MINUS),
                Some(INF | MINUS),
                Some(INF | MINUS),
                Some(INF | MINUS),
                Some(INF),
                Some(NAN),
            ],
        ),
        (AluOp::Ex2, false, [Some(0), None, Some(one), Some(one), Some(one), Some(one), Some(INF), Some(NAN)]),
        (AluOp::Ex2, true, [Some(0), None, Some(one), Some(one), Some(one), Some(one), Some(INF), Some(NAN)]),
        (
            AluOp::Sin,
            false,
            [Some(NAN), None, Some(subnormal | MINUS), Some(MINUS), Some(0), Some(subnormal), Some(NAN), Some(NAN)],
        ),
        (AluOp::Sin, true, [Some(NAN), None, Some(MINUS), Some(MINUS), Some(0), Some(0), Some(NAN), Some(NAN)]),
        (AluOp::Cos, false, [Some(NAN), None, Some(one), Some(one), Some(one), Some(one), Some(NAN), Some(NAN)]),
        (AluOp::Cos, true, [Some(NAN), None, Some(one), Some(one), Some(one), Some(one), Some(NAN), Some(NAN)]),
        (
            AluOp::Tanh,
            false,
            [Some(f(-1.0)), None, Some(subnormal | MINUS), Some(MINUS), Some(0), Some(subnormal), Some(one), Some(NAN)],
        ),
    ] {
        for (input, expected) in inputs.into_iter().zip(results) {
            let got = run(op, Type::F32, if ftz { APPROX_FTZ } else { APPROX }, &[input]);
            match expected {
                Some(expected) => assert_eq!(got, expected, "{op:?} ftz {ftz} {input:x}: {got:x}"),
                None => assert!(f32::from_bits(got as u32).is_finite(), "{op:?} ftz {ftz} {input:x}: {got:x}"),
            }
        }
    }
    // Results that `.ftz` flushes.
    assert_eq!(run(AluOp::Ex2, Type::F32, APPROX_FTZ, &[f(-127.0)]), 0);
    assert_eq!(run(AluOp::Ex2, Type::F32, APPROX, &[f(-127.0)]), 0x0040_0000);
    assert_eq!(run(AluOp::Rcp, Type::F32, APPROX_FTZ, &[f(-2f32.powi(127))]), MINUS);
}

/// ex2 and tanh of every f16 and bf16: the nearest number to the truth.
#[test]
fn halves_are_rounded_to_nearest() {
    for (ty, format, ftz) in [(Type::F16, F16, false), (Type::Bf16, BF16, true)] {
        for (op, truth) in [(AluOp::Ex2, f64::exp2 as fn(f64) -> f64), (AluOp::Tanh, f64::tanh)] {
            let modifiers = Modifiers { ftz: ftz && op == AluOp::Ex2, ..APPROX };
            let all: Vec<[u64; 3]> = (0..1 << 16).map(|a| [a; 3]).collect();
            for ([a, ..], got) in all.iter().copied().zip(run_many(op, ty, modifiers, &all)) {
                if format.is_nan(a) {
                    assert_eq!(got, 0x7fff);
                    continue;
                }
                let value = if ty == Type::F16 {
                    f64::from(f32::from_bits(
                        run(AluOp::Cvt { to: Type::F32, integer_rounding: false }, ty, PLAIN, &[a]) as u32,
                    ))
                } else {
                    f64::from(f32::from_bits((a as u32) << 16))
                };
                let expected = truth(value);
                let expected = if expected.is_infinite() { format.largest + 1 } else { nearest(format, expected) };
                let is_subnormal = |x: u64| x & !format.sign() < 1 << format.fraction;
                let expected =
                    if modifiers.ftz && is_subnormal(expected) { expected & format.sign() } else { expected };
                // A subnormal operand is as good as 0 for ex2.
                assert_eq!(got, expected, "{op:?} {ty:?} {a:x}");
            }
        }
    }
}

fn nearest(format: arith_support::exact::Format, x: f64) -> u64 {
    use arith_support::exact::{F64, Natural};
    let exact = F64.value(x.to_bits());
    let sign = if exact.negative { format.sign() } else { 0 };
    if exact.cmp_magnitude(&Dyadic { negative: false, magnitude: Natural::new(1), exponent: 200 }).is_gt() {
        return sign | (format.largest + 1);
    }
    format.round(&exact, Rounding::Rn)
}

/// The lower words are 0 and of no account; subnormals are flushed.
#[test]
fn f64_reciprocals_of_upper_words() {
    let rcp = |x: u64| run_wide(AluOp::Rcp, Type::F64, APPROX_FTZ, &[x], 8);
    let rsqrt = |x: u64| run_wide(AluOp::Rsqrt, Type::F64, APPROX_FTZ, &[x], 8);
    let mut random = Random(87);
    for _ in 0..10_000 {
        let x = random.next() >> 1;
        let got = rcp(x);
        assert_eq!(got & 0xffff_ffff, 0);
        assert_eq!(got, rcp(x & !0xffff_ffff | 1));
        let value = f64::from_bits(x & !0xffff_ffff);
        let (got, truth) = (f64::from_bits(got), 1.0 / value);
        if value.is_normal() && truth.is_normal() {
            assert!(((got - truth) / truth).abs() < 2f64.powi(-20), "{value:e}");
            let (got, truth) = (f64::from_bits(rsqrt(x)), 1.0 / value.sqrt());
            assert!(((got - truth) / truth).abs() < 2f64.powi(-20), "{value:e}");
        }
    }
    assert_eq!(rcp(1), d(f64::INFINITY));
    assert_eq!(rcp(d(-0.0)), d(f64::NEG_INFINITY));
    assert_eq!(rcp(d(f64::MAX)), 0);
    assert_eq!(rcp(d(f64::NEG_INFINITY)), d(-0.0));
    assert!(f64::from_bits(rsqrt(d(-1.0))).is_nan());
    assert_eq!(rsqrt(d(0.0)), d(f64::INFINITY));
    // Without .ftz, the whole number.
    let whole = run_wide(AluOp::Rsqrt, Type::F64, APPROX, &[d(2.0)], 8);
    assert_eq!(whole, d(1.0 / 2f64.sqrt()));
}
