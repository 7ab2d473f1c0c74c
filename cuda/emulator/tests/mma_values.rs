//! What `mma` computes: the documented order of summation bit by bit, exact results where f64 holds every sum, integers,
//! special values.

#![allow(clippy::needless_range_loop, reason = "lanes are what these tests speak of")]

mod arith_support;
mod mma_support;

use arith_support::Random;
use arith_support::exact::{BF16, Dyadic, E4M3, E5M2, F16, F32, F64, Format};
use kinglet_emulator::program::{Mma, Rounding, Type};
use kinglet_emulator::tensor_core::{fragment_registers, mma};
use mma_support::{a_place, all, b_place, c_place, element_bits, packed, product};

fn format(ty: Type) -> Format {
    match ty {
        Type::F16 => F16,
        Type::Bf16 => BF16,
        Type::E4m3 => E4M3,
        Type::E5m2 => E5M2,
        Type::F64 => F64,
        _ => F32,
    }
}

/// The bits of a matrix, by rows.
type Matrix = Vec<Vec<u64>>;

fn zeros(rows: u8, columns: u8) -> Matrix {
    vec![vec![0; columns.into()]; rows.into()]
}

/// Random registers, element by element, and the four products' matrices that they are.
fn random_operand(
    registers: usize,
    ty: Type,
    mut element: impl FnMut() -> u64,
    mut put: impl FnMut(usize, usize, u64),
) -> Vec<[u64; 32]> {
    let mut lanes = vec![[0; 32]; registers];
    for lane in 0..32 {
        for i in 0..registers * packed(ty) {
            let bits = element();
            lanes[i / packed(ty)][lane] |= bits << (element_bits(ty) * (i % packed(ty)) as u32);
            put(lane, i, bits);
        }
    }
    lanes
}

/// Multiplies random matrices of elements from `element(type)`, and gives every element of D with its row of A, column of B
/// and element of C to `check`.
fn each_sum(shape: &Mma, mut element: impl FnMut(Type) -> u64, mut check: impl FnMut(&[u64], &[u64], u64, u64)) {
    let [na, nb, nc, nd] = fragment_registers(shape).expect("a shape of PTX");
    let mut a = vec![zeros(shape.m, shape.k); 4];
    let mut b = vec![zeros(shape.n, shape.k); 4]; // by columns
    let mut c = vec![zeros(shape.m, shape.n); 4];
    let a_lanes = random_operand(
        na,
        shape.a,
        || element(shape.a),
        |lane, i, bits| {
            let (row, k) = a_place(shape, lane, i);
            a[product(shape, lane)][row][k] = bits;
        },
    );
    let b_lanes = random_operand(
        nb,
        shape.b,
        || element(shape.b),
        |lane, i, bits| {
            let (k, column) = b_place(shape, lane, i);
            b[product(shape, lane)][column][k] = bits;
        },
    );
    let c_lanes = random_operand(
        nc,
        shape.c,
        || element(shape.c),
        |lane, i, bits| {
            let (row, column) = c_place(shape, shape.c, lane, i);
            c[product(shape, lane)][row][column] = bits;
        },
    );
    let mut d = vec![[0; 32]; nd];
    assert!(mma(shape, &a_lanes, &b_lanes, &c_lanes, &mut d));
    let bits = element_bits(shape.d);
    for lane in 0..32 {
        for i in 0..nd * packed(shape.d) {
            let got = d[i / packed(shape.d)][lane] >> (bits * (i % packed(shape.d)) as u32) & (u64::MAX >> (64 - bits));
            let (row, column) = c_place(shape, shape.d, lane, i);
            let which = product(shape, lane);
            check(&a[which][row], &b[which][column], c[which][row][column], got);
        }
    }
}

/// The value of an element; of tf32 without its lower 13 bits.
fn value(ty: Type, bits: u64) -> Dyadic {
    format(ty).value(if ty == Type::Tf32 { bits & 0xffff_e000 } else { bits })
}

fn is_float(shape: &Mma) -> bool {
    shape.c != Type::S32
}

/// Small multiples of a power of two, so that f64 holds every sum exactly: D is the exact sum rounded once, in any order.
#[test]
fn exact_sums_round_once() {
    let mut random = Random(91);
    for shape in all().iter().filter(|shape| is_float(shape)) {
        let element = |ty: Type| {
            let format = format(ty);
            let middle = (1 << (format.exponent - 1)) - 1;
            let sign = random.next() & format.sign();
            // tf32's lower bits are noise that must not count.
            (middle - 2 + random.below(5)) << format.fraction | random.next() & ((1 << format.fraction) - 1) | sign
        };
        each_sum(shape, element, |a, b, c, got| {
            let products = a.iter().zip(b).map(|(a, b)| value(shape.a, *a).mul(&value(shape.b, *b)));
            if shape.d == Type::F64 {
                return; // rounds at each step: below
            }
            let sum = products.fold(value(shape.c, c), |sum, product| sum.add(&product));
            let expected = if sum.is_zero() { 0 } else { format(shape.d).round(&sum, Rounding::Rn) };
            assert_eq!(got, expected, "{shape:?} {a:x?} {b:x?} {c:x}");
        });
    }
}

/// Elements of every size: the documented order, each step rounded as it says, from bits and definitions alone.
#[test]
fn order_of_summation() {
    let mut random = Random(92);
    for shape in all().iter().filter(|shape| is_float(shape)) {
        let element = |ty: Type| loop {
            let bits = random.float(format(ty));
            if format(ty).is_finite(bits) && (ty != Type::F64 || bits >> 52 & 0x7ff != 0x7fe) {
                return bits;
            }
        };
        each_sum(shape, element, |a, b, c, got| {
            let round = |x: &Dyadic, format: Format| if x.is_zero() { 0 } else { format.round(x, Rounding::Rn) };
            let mut sum = F64.round(&value(shape.c, c), Rounding::Rn);
            for (a, b) in a.iter().zip(b) {
                let product = value(shape.a, *a).mul(&value(shape.b, *b));
                if !F64.is_finite(sum) {
                    return; // an f64 sum that overflowed
                }
                sum = round(&F64.value(sum).add(&product), F64);
            }
            if !F64.is_finite(sum) {
                return;
            }
            let expected = round(&F64.value(sum), format(shape.d));
            // Signs of zeros depend on those of products that are zero: any will do.
            if expected & !format(shape.d).sign() == 0 {
                assert_eq!(got & !format(shape.d).sign(), 0);
            } else {
                assert_eq!(got, expected, "{shape:?} {a:x?} {b:x?} {c:x}");
            }
        });
    }
}

#[test]
fn integers() {
    let mut random = Random(93);
    let number = |ty: Type, bits: u64| match ty {
        Type::S8 => i64::from(bits as i8),
        Type::S32 => i64::from(bits as i32),
        _ => bits as i64,
    };
    for shape in all().iter().filter(|shape| !is_float(shape)) {
        for satfinite in [false, true] {
            let shape = Mma { satfinite, ..*shape };
            let mut ends = 0;
            for _ in 0..20 {
                let element = |ty: Type| random.integer(if ty == Type::S32 { 32 } else { 8 });
                each_sum(&shape, element, |a, b, c, got| {
                    let products = a.iter().zip(b).map(|(a, b)| number(shape.a, *a) * number(shape.b, *b));
                    let sum = number(Type::S32, c) + products.sum::<i64>();
                    ends += usize::from(sum != i64::from(sum as i32));
                    let sum = if satfinite { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum };
                    assert_eq!(got, u64::from(sum as u32), "{shape:?} {a:x?} {b:x?} {c:x}");
                });
            }
            assert!(ends > 0, "no sum left 32 bits");
        }
    }
}

/// The largest products of 8 bits, 32 of them.
#[test]
fn integer_extremes() {
    for (a_ty, b_ty, a, b) in [
        (Type::U8, Type::U8, 0xff, 0xff),
        (Type::S8, Type::S8, 0x80, 0x80),
        (Type::U8, Type::S8, 0xff, 0x80),
        (Type::S8, Type::U8, 0x80, 0xff),
    ] {
        let shape = all().into_iter().find(|s| (s.a, s.b, s.k) == (a_ty, b_ty, 32)).unwrap();
        each_sum(
            &shape,
            |ty| {
                if ty == Type::S32 {
                    5
                } else if ty == a_ty {
                    a
                } else {
                    b
                }
            },
            |_, _, _, got| {
                let value = |ty, bits: u64| if ty == Type::S8 { i64::from(bits as i8) } else { bits as i64 };
                assert_eq!(got as u32 as i32 as i64, 5 + 32 * value(a_ty, a) * value(b_ty, b));
            },
        );
    }
}

/// Infinities and NaN: one NaN a type; inf - inf and 0 inf are NaN; large sums overflow to infinity.
#[test]
fn special_values() {
    for shape in all().iter().filter(|shape| is_float(shape) && shape.a != Type::E4m3 && shape.b != Type::E4m3) {
        let nan = match shape.d {
            Type::F16 => 0x7fff,
            Type::F32 => 0x7fff_ffff,
            _ => 0xfff8_0000_0000_0000,
        };
        let infinity = |ty: Type| format(ty).largest + 1;
        let sign = format(shape.a).sign();
        let one = |ty: Type| mma_support::one(ty);
        // All elements of A, of B, of C; and D.
        for (a, b, c, expected) in [
            (infinity(shape.a), one(shape.b), one(shape.c), infinity(shape.d)),
            (infinity(shape.a) | sign, one(shape.b), one(shape.c), infinity(shape.d) | format(shape.d).sign()),
            (infinity(shape.a), 0, one(shape.c), nan),
            (infinity(shape.a) | sign, one(shape.b), infinity(shape.c), nan),
            (one(shape.a), one(shape.b), infinity(shape.c), infinity(shape.d)),
            (sign * 2 - 1, one(shape.b), one(shape.c), nan),
            (one(shape.a), one(shape.b), 2 * format(shape.c).sign() - 1, nan),
        ] {
            let mut turn = 0;
            let counts = fragment_registers(shape).expect("a shape of PTX");
            let sizes = [counts[0] * 32 * packed(shape.a), counts[1] * 32 * packed(shape.b)];
            let element = |_| {
                turn += 1;
                if turn <= sizes[0] {
                    a
                } else if turn <= sizes[0] + sizes[1] {
                    b
                } else {
                    c
                }
            };
            each_sum(shape, element, |_, _, _, got| assert_eq!(got, expected, "{shape:?} {a:x} {b:x} {c:x}"));
        }
    }
    // e4m3 has one NaN and no infinity; 448 * 448 * 32 leaves f16.
    let shape = |c| all().into_iter().find(|s| (s.a, s.b, s.c, s.k) == (Type::E4m3, Type::E4m3, c, 32)).unwrap();
    each_sum(&shape(Type::F16), |ty| if ty == Type::F16 { 0 } else { 0x7e }, |_, _, _, got| assert_eq!(got, 0x7c00));
    each_sum(
        &shape(Type::F32),
        |ty| if ty == Type::F32 { 0 } else { 0x7e },
        |_, _, _, got| {
            assert_eq!(f32::from_bits(got as u32), 448.0 * 448.0 * 32.0);
        },
    );
    each_sum(
        &shape(Type::F32),
        |ty| if ty == Type::F32 { 0 } else { 0x7f },
        |_, _, _, got| assert_eq!(got, 0x7fff_ffff),
    );
}

/// The same registers twice give the same bits, and rows do not see each other: a NaN stays in its row.
#[test]
fn a_nan_stays_in_its_row() {
    let shape = all().into_iter().find(|s| (s.a, s.c, s.k, s.m) == (Type::Bf16, Type::F32, 16, 16)).unwrap();
    let mut a = vec![[0x3f80_3f80; 32]; 4];
    a[0][4] = 0x3f80_7fc0; // row 1, column 0
    let (b, c, mut d) = (vec![[0x3f80_3f80; 32]; 2], vec![[0; 32]; 4], vec![[0; 32]; 4]);
    assert!(mma(&shape, &a, &b, &c, &mut d));
    for lane in 0..32 {
        for (i, d) in d.iter().enumerate() {
            let (row, _) = c_place(&shape, Type::F32, lane, i);
            assert_eq!(d[lane], if row == 1 { 0x7fff_ffff } else { u64::from(16f32.to_bits()) });
        }
    }
}
