//! Addition, multiplication, fused multiply-add, division and square root of every format in every rounding mode, against
//! the definition of rounding.

mod arith_support;

use arith_support::exact::{BF16, Dyadic, F16, F32, F64, Format};
use arith_support::{MODES, PLAIN, Random, rounding, run, run_many};
use kinglet_emulator::program::{AluOp, Rounding, Type};

const CASES: usize = 8_000;

/// Three operands that are often close to cancelling.
fn operands(random: &mut Random, format: Format) -> [u64; 3] {
    let [a, mut b, mut c] = [(); 3].map(|()| random.float(format));
    let nudge = random.below(5).wrapping_sub(2);
    match random.below(4) {
        0 => b = (a ^ format.sign()).wrapping_add(nudge),
        1 if [a, b].iter().all(|x| format.is_finite(*x)) => {
            // c near the product, of either sign
            c = format.round(&format.value(a).mul(&format.value(b)), Rounding::Rn).wrapping_add(nudge);
            c ^= if random.below(4) > 0 { format.sign() } else { 0 };
        }
        _ => {}
    }
    [a, b, c].map(|x| x & (2 * format.sign() - 1))
}

/// A sum; one of zero is +0, or -0 when rounding down, unless both are zeros of one sign.
fn expected_sum(format: Format, a: &Dyadic, b: &Dyadic, mode: Rounding) -> u64 {
    let sum = a.add(b);
    if sum.is_zero() {
        let negative = if a.is_zero() && a.negative == b.negative { a.negative } else { mode == Rounding::Rm };
        return if negative { format.sign() } else { 0 };
    }
    format.round(&sum, mode)
}

/// Runs `op` on random operands, those that are finite against `expected`.
fn check(
    op: AluOp,
    ty: Type,
    format: Format,
    modes: &[Rounding],
    expected: impl Fn(&[u64; 3], Rounding) -> Option<u64>,
) {
    let mut random = Random(0x9e37_79b9 + u64::from(format.bits()));
    let all: Vec<[u64; 3]> = std::iter::repeat_with(|| operands(&mut random, format))
        .filter(|operands| operands.iter().all(|x| format.is_finite(*x)))
        .take(CASES)
        .collect();
    for &mode in modes {
        let results = run_many(op, ty, rounding(mode), &all);
        let checked = all.iter().zip(results).filter(|(operands, got)| match expected(operands, mode) {
            Some(expected) => {
                assert_eq!(*got, expected, "{op:?} {ty:?} {mode:?} {operands:x?}: {got:x}, not {expected:x}");
                true
            }
            None => false,
        });
        assert!(checked.count() > CASES / 3);
    }
}

fn sums_and_products(ty: Type, format: Format, modes: &[Rounding]) {
    let value = |x: u64| format.value(x);
    check(AluOp::Add, ty, format, modes, |&[a, b, _], mode| Some(expected_sum(format, &value(a), &value(b), mode)));
    check(AluOp::Sub, ty, format, modes, |&[a, b, _], mode| {
        Some(expected_sum(format, &value(a), &value(b).negated(), mode))
    });
    check(AluOp::Mul, ty, format, modes, |&[a, b, _], mode| Some(format.round(&value(a).mul(&value(b)), mode)));
    check(AluOp::Fma, ty, format, modes, |&[a, b, c], mode| {
        Some(expected_sum(format, &value(a).mul(&value(b)), &value(c), mode))
    });
}

fn quotients_and_roots(ty: Type, format: Format) {
    let value = |x: u64| format.value(x);
    // a/b against x is a against x b; both magnitudes.
    let quotient = |a: &Dyadic, b: &Dyadic, mode| {
        if b.is_zero() || a.is_zero() {
            return None;
        }
        Some(format.rounded(a.negative != b.negative, mode, |x| a.cmp_magnitude(&x.mul(b))))
    };
    check(AluOp::Div, ty, format, &MODES, |&[a, b, _], mode| quotient(&value(a), &value(b), mode));
    check(AluOp::Rcp, ty, format, &MODES, |&[a, ..], mode| quotient(&Dyadic::integer(1), &value(a), mode));
    check(AluOp::Sqrt, ty, format, &MODES, |&[a, ..], mode| {
        let a = value(a);
        // The root against x is a against x squared.
        (!a.negative).then(|| format.rounded(false, mode, |x| a.cmp_magnitude(&x.mul(x))))
    });
}

#[test]
fn f32_sums_and_products() {
    sums_and_products(Type::F32, F32, &MODES);
}

#[test]
fn f32_quotients_and_roots() {
    quotients_and_roots(Type::F32, F32);
}

#[test]
fn f64_sums_and_products() {
    sums_and_products(Type::F64, F64, &MODES);
}

#[test]
fn f64_quotients_and_roots() {
    quotients_and_roots(Type::F64, F64);
}

#[test]
fn f16_sums_and_products() {
    sums_and_products(Type::F16, F16, &[Rounding::Rn]);
}

#[test]
fn bf16_sums_and_products() {
    sums_and_products(Type::Bf16, BF16, &[Rounding::Rn]);
}

/// Halves of packed registers do not see each other.
#[test]
fn packed_halves() {
    let mut random = Random(5);
    for (ty, packed, format) in [(Type::F16, Type::F16x2, F16), (Type::Bf16, Type::Bf16x2, BF16)] {
        for op in [AluOp::Add, AluOp::Sub, AluOp::Mul, AluOp::Fma, AluOp::Min, AluOp::Max, AluOp::Neg, AluOp::Abs] {
            for _ in 0..2000 {
                let [low, high] = [(); 2].map(|()| operands(&mut random, format));
                let both: Vec<u64> = low.iter().zip(high).map(|(low, high)| low | high << 16).collect();
                let halves = [low, high].map(|operands| run(op, ty, PLAIN, &operands));
                let got = run(op, packed, PLAIN, &both);
                assert_eq!(got, halves[0] | halves[1] << 16, "{op:?} {packed:?} {both:x?}");
            }
        }
    }
}
