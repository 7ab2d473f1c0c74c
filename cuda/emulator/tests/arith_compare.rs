//! `set`, `setp`, `selp`, `slct`.

mod arith_support;

use arith_support::exact::{BF16, F16, F32, F64};
use arith_support::{PLAIN, Random, d, f, run, run_wide};
use kinglet_emulator::arith::{compare, compare_supports};
use kinglet_emulator::program::{AluOp, Combine, Compare, Modifiers, Type};
use std::cmp::Ordering;

const ALL: [Compare; 18] = [
    Compare::Eq,
    Compare::Ne,
    Compare::Lt,
    Compare::Le,
    Compare::Gt,
    Compare::Ge,
    Compare::Lo,
    Compare::Ls,
    Compare::Hi,
    Compare::Hs,
    Compare::Equ,
    Compare::Neu,
    Compare::Ltu,
    Compare::Leu,
    Compare::Gtu,
    Compare::Geu,
    Compare::Num,
    Compare::Nan,
];

/// The ISA's tables: what each comparison says of below, equal, above, unordered.
fn holds(compare: Compare, order: Option<Ordering>) -> bool {
    let row = match compare {
        Compare::Eq => [false, true, false, false],
        Compare::Ne => [true, false, true, false],
        Compare::Lt | Compare::Lo => [true, false, false, false],
        Compare::Le | Compare::Ls => [true, true, false, false],
        Compare::Gt | Compare::Hi => [false, false, true, false],
        Compare::Ge | Compare::Hs => [false, true, true, false],
        Compare::Equ => [false, true, false, true],
        Compare::Neu => [true, false, true, true],
        Compare::Ltu => [true, false, false, true],
        Compare::Leu => [true, true, false, true],
        Compare::Gtu => [false, false, true, true],
        Compare::Geu => [false, true, true, true],
        Compare::Num => [true, true, true, false],
        Compare::Nan => [false, false, false, true],
    };
    row[match order {
        Some(Ordering::Less) => 0,
        Some(Ordering::Equal) => 1,
        Some(Ordering::Greater) => 2,
        None => 3,
    }]
}

/// How a type orders two registers; the independent word on each type.
fn order(ty: Type, a: u64, b: u64) -> Option<Ordering> {
    let by_value = |format: arith_support::exact::Format| {
        if format.is_nan(a) || format.is_nan(b) {
            return None;
        }
        // Sign and magnitude as an integer; both zeros are 0.
        let key = |x: u64| {
            let magnitude = i128::from(x & !format.sign());
            if x & format.sign() != 0 { -magnitude } else { magnitude }
        };
        Some(key(a).cmp(&key(b)))
    };
    match ty {
        Type::F16 => by_value(F16),
        Type::Bf16 => by_value(BF16),
        Type::F32 => by_value(F32),
        Type::F64 => by_value(F64),
        Type::S16 => Some((a as i16).cmp(&(b as i16))),
        Type::S32 => Some((a as i32).cmp(&(b as i32))),
        Type::S64 => Some((a as i64).cmp(&(b as i64))),
        _ => Some(a.cmp(&b)),
    }
}

fn operand(random: &mut Random, ty: Type) -> u64 {
    match ty {
        Type::F16 => random.float(F16),
        Type::Bf16 => random.float(BF16),
        Type::F32 => random.float(F32),
        Type::F64 => random.float(F64),
        _ => random.integer(8 * ty.bytes()),
    }
}

const TYPES: [Type; 13] = [
    Type::B16,
    Type::B32,
    Type::B64,
    Type::U16,
    Type::U32,
    Type::U64,
    Type::S16,
    Type::S32,
    Type::S64,
    Type::F16,
    Type::Bf16,
    Type::F32,
    Type::F64,
];

#[test]
fn every_comparison_of_every_type() {
    let mut random = Random(61);
    let mut known = 0;
    for ty in TYPES {
        for by in ALL.into_iter().filter(|by| compare_supports(*by, ty)) {
            known += 1;
            for _ in 0..100 {
                let a: [u64; 32] = std::array::from_fn(|_| operand(&mut random, ty));
                let b: [u64; 32] =
                    std::array::from_fn(|lane| if random.below(4) == 0 { a[lane] } else { operand(&mut random, ty) });
                let mask = random.next() as u32;
                let (got, second) = compare(by, ty, false, &a, &b, mask);
                assert_eq!(second, 0);
                for lane in 0..32 {
                    let expected = mask >> lane & 1 == 1 && holds(by, order(ty, a[lane], b[lane]));
                    let (a, b) = (a[lane], b[lane]);
                    assert_eq!(got >> lane & 1 == 1, expected, "{by:?} {ty:?} {a:x} {b:x}");
                }
            }
        }
    }
    // b: eq ne; u: ten, s: six, floats: fourteen comparisons.
    assert_eq!(known, 3 * 2 + 3 * 10 + 3 * 6 + 4 * 14);
}

#[test]
fn zeros_are_equal_and_subnormals_are_not_unless_flushed() {
    let ask = |by, ty, ftz, a, b| compare(by, ty, ftz, &[a; 32], &[b; 32], 1).0;
    assert_eq!(ask(Compare::Eq, Type::F32, false, f(0.0), f(-0.0)), 1);
    assert_eq!(ask(Compare::Lt, Type::F32, false, f(-0.0), f(0.0)), 0);
    assert_eq!(ask(Compare::Lt, Type::F32, false, 0, 1), 1);
    assert_eq!(ask(Compare::Lt, Type::F32, true, 0, 1), 0);
    assert_eq!(ask(Compare::Eq, Type::F16, true, 0x8001, 1), 1);
    assert_eq!(ask(Compare::Eq, Type::F16, false, 0x8001, 1), 0);
}

#[test]
fn packed_pairs_have_two_results() {
    let (one, two, nan) = (0x3c00, 0x4000, 0x7e00);
    let a = [one << 16 | two; 32];
    let b = [two << 16 | two; 32];
    assert_eq!(compare(Compare::Lt, Type::F16x2, false, &a, &b, 0xff), (0, 0xff));
    assert_eq!(compare(Compare::Eq, Type::F16x2, false, &a, &b, 0xff), (0xff, 0));
    assert_eq!(compare(Compare::Nan, Type::F16x2, false, &a, &[nan << 16; 32], 3), (0, 3));
    assert_eq!(compare(Compare::Gt, Type::Bf16x2, false, &[0x4000_3f80; 32], &[0x3f80_4000; 32], 1), (0, 1));
}

#[test]
fn set_writes_ones_or_one() {
    let set = |compare, combine, to, ty, operands: &[u64]| {
        run_wide(AluOp::Set { compare, combine, to }, ty, PLAIN, operands, 4)
    };
    let (two, three) = (f(2.0), f(3.0));
    for (to, one) in [(Type::U32, 0xffff_ffff), (Type::S32, 0xffff_ffff), (Type::F32, f(1.0))] {
        assert_eq!(set(Compare::Lt, None, to, Type::F32, &[two, three]), one);
        assert_eq!(set(Compare::Gt, None, to, Type::F32, &[two, three]), 0);
        assert_eq!(set(Compare::Lo, None, to, Type::U32, &[2, 3]), one);
        assert_eq!(set(Compare::Lt, None, to, Type::F64, &[d(-1.0), d(1.0)]), one);
    }
    assert_eq!(set(Compare::Lt, None, Type::F16, Type::F16, &[0x3c00, 0x4000]), 0x3c00);
    assert_eq!(set(Compare::Lt, None, Type::U16, Type::F16, &[0x3c00, 0x4000]), 0xffff);
    assert_eq!(set(Compare::Lt, None, Type::F16x2, Type::F16x2, &[0x3c00_4000, 0x4000_4000]), 0x3c00_0000);
    assert_eq!(set(Compare::Le, None, Type::Bf16x2, Type::Bf16x2, &[0x3f80_4000, 0x4000_4000]), 0x3f80_3f80);
    assert_eq!(set(Compare::Lt, None, Type::U32, Type::F16x2, &[0x3c00_4000, 0x4000_4000]), 0xffff_0000);
    assert_eq!(set(Compare::Le, None, Type::S32, Type::Bf16x2, &[0x3f80_4000, 0x4000_4000]), 0xffff_ffff);
    for (combine, table) in [(Combine::And, [0, 0, 0, 1]), (Combine::Or, [0, 1, 1, 1]), (Combine::Xor, [0, 1, 1, 0])] {
        let got = [(3, 0), (3, 1), (2, 0), (2, 1)]
            .map(|(a, c)| set(Compare::Lt, Some(combine), Type::U32, Type::S32, &[a, 3, c]) & 1);
        assert_eq!(got, table, "{combine:?}");
    }
}

#[test]
fn selections() {
    assert_eq!(run(AluOp::Selp, Type::B32, PLAIN, &[5, 6, 1]), 5);
    assert_eq!(run(AluOp::Selp, Type::F32, PLAIN, &[5, 6, 0]), 6);
    assert_eq!(run_wide(AluOp::Selp, Type::U64, PLAIN, &[u64::MAX, 6, 1], 8), u64::MAX);
    let slct = |m, c| run(AluOp::Slct { float_selector: true }, Type::U32, m, &[5, 6, c]);
    assert_eq!([0.0, -0.0, 1.0, -1.0, f32::NAN].map(|c| slct(PLAIN, f(c))), [5, 5, 5, 6, 6]);
    assert_eq!(slct(PLAIN, 0x8000_0001), 6);
    assert_eq!(slct(Modifiers { ftz: true, ..PLAIN }, 0x8000_0001), 5);
    let slct = |c: i32| run_wide(AluOp::Slct { float_selector: false }, Type::F64, PLAIN, &[5, 6, c as u32 as u64], 8);
    assert_eq!([0, 1, -1, i32::MIN].map(slct), [5, 5, 6, 6]);
}
