//! Integer arithmetic against numbers of 128 bits.

mod arith_support;

use arith_support::{PLAIN, Random, run, run_wide};
use kinglet_emulator::arith::{Operands, eval, supports};
use kinglet_emulator::program::{Alu, AluOp, Modifiers, Type};

const TYPES: [(Type, u32, bool); 6] = [
    (Type::U16, 16, false),
    (Type::U32, 32, false),
    (Type::U64, 64, false),
    (Type::S16, 16, true),
    (Type::S32, 32, true),
    (Type::S64, 64, true),
];

fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// The number that the low bits are.
fn number(x: u64, bits: u32, signed: bool) -> i128 {
    let cut = i128::from(x & mask(bits));
    if signed { cut << (128 - bits) >> (128 - bits) } else { cut }
}

/// The low bits of a number.
fn cut(x: i128, bits: u32) -> u64 {
    x as u64 & mask(bits)
}

/// Checks one operation for random operands of each of `types`.
fn check(op: AluOp, modifiers: Modifiers, types: &[(Type, u32, bool)], model: impl Fn([i128; 3], u32) -> u64) {
    let mut random = Random(21);
    for &(ty, bits, signed) in types {
        for _ in 0..3000 {
            let operands = [(); 3].map(|()| random.integer(bits));
            let numbers = operands.map(|x| number(x, bits, signed));
            let got = run_wide(op, ty, modifiers, &operands, 8);
            assert_eq!(got, model(numbers, bits), "{op:?} {ty:?} {numbers:?}");
        }
    }
}

#[test]
fn arithmetic() {
    let all = &TYPES;
    check(AluOp::Add, PLAIN, all, |[a, b, _], bits| cut(a + b, bits));
    check(AluOp::Sub, PLAIN, all, |[a, b, _], bits| cut(a - b, bits));
    check(AluOp::MulLo, PLAIN, all, |[a, b, _], bits| cut(a.wrapping_mul(b), bits));
    check(AluOp::MadLo, PLAIN, all, |[a, b, c], bits| cut(a.wrapping_mul(b).wrapping_add(c), bits));
    check(AluOp::Sad, PLAIN, all, |[a, b, c], bits| cut(c + (a - b).abs(), bits));
    check(AluOp::Min, PLAIN, all, |[a, b, _], bits| cut(a.min(b), bits));
    check(AluOp::Max, PLAIN, all, |[a, b, _], bits| cut(a.max(b), bits));
    check(AluOp::Abs, PLAIN, &TYPES[3..], |[a, ..], bits| cut(a.abs(), bits));
    check(AluOp::Neg, PLAIN, &TYPES[3..], |[a, ..], bits| cut(-a, bits));
    let narrow: Vec<_> = TYPES.into_iter().filter(|(_, bits, _)| *bits < 64).collect();
    check(AluOp::MulWide, PLAIN, &narrow, |[a, b, _], bits| cut(a * b, 2 * bits));
    check(AluOp::MulHi, PLAIN, &narrow, |[a, b, _], bits| cut((a * b) >> bits, bits));
    check(AluOp::MadHi, PLAIN, &narrow, |[a, b, c], bits| cut(((a * b) >> bits) + c, bits));
    // Unsigned 64-bit products leave i128, so they are made of wrapping u128.
    check(AluOp::MulHi, PLAIN, &TYPES[5..], |[a, b, _], bits| cut((a * b) >> bits, bits));
    check(AluOp::MulHi, PLAIN, &TYPES[2..3], |[a, b, _], _| ((a as u128).wrapping_mul(b as u128) >> 64) as u64);
}

#[test]
fn mad_wide_adds_the_wide_operand() {
    assert_eq!(run_wide(AluOp::MadWide, Type::S32, PLAIN, &[0xffff_ffff, 5, 1 << 40], 8), (1 << 40) - 5);
    assert_eq!(
        run_wide(AluOp::MadWide, Type::U32, PLAIN, &[0xffff_ffff, 0xffff_ffff, u64::MAX], 8),
        0xffff_fffe_0000_0000
    );
    assert_eq!(run(AluOp::MadWide, Type::U16, PLAIN, &[0xffff, 0xffff, 0xffff_ffff]), 0xfffe_0000);
    assert_eq!(run(AluOp::MadWide, Type::S16, PLAIN, &[0xffff, 2, 1]), 0xffff_ffff);
}

#[test]
fn division() {
    check(AluOp::Div, PLAIN, &TYPES, |[a, b, _], bits| if b == 0 { mask(bits) } else { cut(a / b, bits) });
    check(AluOp::Rem, PLAIN, &TYPES, |[a, b, _], bits| if b == 0 { mask(bits) } else { cut(a % b, bits) });
    assert_eq!(run(AluOp::Div, Type::S32, PLAIN, &[0x8000_0000, 0xffff_ffff]), 0x8000_0000);
    assert_eq!(run(AluOp::Rem, Type::S32, PLAIN, &[0x8000_0000, 0xffff_ffff]), 0);
    assert_eq!(run(AluOp::Rem, Type::S32, PLAIN, &[(-7i32) as u32 as u64, 3]), (-1i32) as u32 as u64);
}

#[test]
fn saturation() {
    let sat = Modifiers { sat: true, ..PLAIN };
    let s32 = &TYPES[4..5];
    let clamp = |x: i128| cut(x.clamp(i32::MIN.into(), i32::MAX.into()), 32);
    check(AluOp::Add, sat, s32, |[a, b, _], _| clamp(a + b));
    check(AluOp::Sub, sat, s32, |[a, b, _], _| clamp(a - b));
    check(AluOp::MadHi, sat, s32, |[a, b, c], _| clamp(((a * b) >> 32) + c));
    let relu = Modifiers { relu: true, ..PLAIN };
    check(AluOp::Min, relu, s32, |[a, b, _], _| cut(a.min(b).max(0), 32));
    check(AluOp::Max, relu, s32, |[a, b, _], _| cut(a.max(b).max(0), 32));
}

#[test]
fn products_of_24_bits() {
    for (ty, signed) in [(Type::U32, false), (Type::S32, true)] {
        let low = |x: i128| number(x as u64, 24, signed);
        let types = &[(ty, 32, signed)];
        check(AluOp::Mul24Lo, PLAIN, types, |[a, b, _], _| cut(low(a) * low(b), 32));
        check(AluOp::Mul24Hi, PLAIN, types, |[a, b, _], _| cut((low(a) * low(b)) >> 16, 32));
        check(AluOp::Mad24Lo, PLAIN, types, |[a, b, c], _| cut(low(a) * low(b) + c, 32));
        check(AluOp::Mad24Hi, PLAIN, types, |[a, b, c], _| cut(((low(a) * low(b)) >> 16) + c, 32));
    }
    let sat = Modifiers { sat: true, ..PLAIN };
    check(AluOp::Mad24Hi, sat, &TYPES[4..5], |[a, b, c], _| {
        let low = |x: i128| number(x as u64, 24, true);
        cut((((low(a) * low(b)) >> 16) + c).clamp(i32::MIN.into(), i32::MAX.into()), 32)
    });
}

#[test]
fn packed_pairs() {
    let mut random = Random(22);
    for (ty, signed) in [(Type::U16x2, false), (Type::S16x2, true)] {
        for (op, relu) in
            [(AluOp::Add, false), (AluOp::Min, false), (AluOp::Max, false), (AluOp::Min, true), (AluOp::Max, true)]
        {
            if relu && !signed {
                continue;
            }
            for _ in 0..2000 {
                let [a, b] = [(); 2].map(|()| random.integer(16) | random.integer(16) << 16);
                let half = |shift: u32| {
                    let [a, b] = [a, b].map(|x| number(x >> shift, 16, signed));
                    let result = match op {
                        AluOp::Add => a + b,
                        AluOp::Min => a.min(b),
                        _ => a.max(b),
                    };
                    cut(if relu { result.max(0) } else { result }, 16)
                };
                assert_eq!(
                    run(op, ty, Modifiers { relu, ..PLAIN }, &[a, b]),
                    half(0) | half(16) << 16,
                    "{op:?} {a:x} {b:x}"
                );
            }
        }
    }
}

/// Numbers of 128 and 96 bits added, subtracted and multiplied in limbs, each lane with a carry of its own.
#[test]
fn carry_chains() {
    let mut random = Random(23);
    for (ty, bits) in [(Type::U32, 32), (Type::S32, 32), (Type::U64, 64), (Type::S64, 64)] {
        for _ in 0..300 {
            let mut lanes = || -> [u64; 32] { std::array::from_fn(|_| random.integer(bits)) };
            let (a, b) = ([lanes(), lanes(), lanes()], [lanes(), lanes(), lanes()]);
            for op in [AluOp::Add, AluOp::Sub] {
                let mut carry = 0x5555_5555; // what it was before does not matter to .cc
                let mut result = [[0; 32]; 3];
                for limb in 0..3 {
                    let modifiers = Modifiers { carry_in: limb > 0, carry_out: limb < 2, ..PLAIN };
                    let read = Operands { a: &a[limb], b: &b[limb], c: &a[0], d: &a[0] };
                    assert!(eval(&Alu { op, ty, modifiers }, read, 8, u32::MAX, &mut carry, &mut result[limb]));
                }
                for lane in 0..32 {
                    // Limb by limb as on paper.
                    let mut carried = 0;
                    for limb in 0..3 {
                        let (x, y) = (i128::from(a[limb][lane]), i128::from(b[limb][lane]));
                        let exact = if op == AluOp::Add { x + y + carried } else { x - y - carried };
                        carried = i128::from(exact < 0 || exact >= 1 << bits);
                        assert_eq!(result[limb][lane], cut(exact, bits), "{op:?} {ty:?} limb {limb}");
                    }
                }
            }
        }
    }
}

#[test]
fn multiplication_by_carry_chains() {
    // (a1 a0) * b + (c1 c0), 64 bits, as ptxas's users write it: mad.lo.cc, madc.hi.
    let mut random = Random(24);
    for _ in 0..2000 {
        let [a, b, c] = [random.next(), random.integer(32), random.next()];
        let (mut carry, mut low, mut high) = (0, [0; 32], [0; 32]);
        let [a0, a1, b, c0, c1] = [a & 0xffff_ffff, a >> 32, b, c & 0xffff_ffff, c >> 32].map(|x| [x; 32]);
        let cc = Modifiers { carry_out: true, ..PLAIN };
        let madc = Modifiers { carry_in: true, ..PLAIN };
        let alu = |op, modifiers| Alu { op, ty: Type::U32, modifiers };
        let read = Operands { a: &a0, b: &b, c: &c0, d: &c0 };
        assert!(eval(&alu(AluOp::MadLo, cc), read, 4, u32::MAX, &mut carry, &mut low));
        let read = Operands { a: &a0, b: &b, c: &c1, d: &c0 };
        assert!(eval(&alu(AluOp::MadHi, madc), read, 4, u32::MAX, &mut carry, &mut high));
        let read = Operands { a: &a1, b: &b, c: &high, d: &c0 };
        let mut top = [0; 32];
        assert!(eval(&alu(AluOp::MadLo, PLAIN), read, 4, u32::MAX, &mut carry, &mut top));
        assert_eq!(low[3] | top[3] << 32, a.wrapping_mul(b[0]).wrapping_add(c));
    }
}

#[test]
fn a_mask_keeps_other_lanes_carry() {
    let (ones, zero) = ([0xffff_ffff; 32], [0; 32]);
    let alu = Alu { op: AluOp::Add, ty: Type::U32, modifiers: Modifiers { carry_out: true, ..PLAIN } };
    let mut carry = 0xf0;
    eval(&alu, Operands { a: &ones, b: &ones, c: &zero, d: &zero }, 4, 0x0f, &mut carry, &mut [0; 32]);
    assert_eq!(carry, 0xff);
    eval(&alu, Operands { a: &zero, b: &zero, c: &zero, d: &zero }, 4, 0x3c, &mut carry, &mut [0; 32]);
    assert_eq!(carry, 0xc3);
}

#[test]
fn what_ptx_does_not_have() {
    let no = |op, ty, modifiers| assert!(!supports(&Alu { op, ty, modifiers }), "{op:?} {ty:?} {modifiers:?}");
    no(AluOp::Add, Type::U8, PLAIN);
    no(AluOp::Add, Type::B32, PLAIN);
    no(AluOp::Abs, Type::U32, PLAIN);
    no(AluOp::MulWide, Type::U64, PLAIN);
    no(AluOp::Mul24Lo, Type::U64, PLAIN);
    no(AluOp::Mul, Type::U32, PLAIN);
    no(AluOp::Sub, Type::U16x2, PLAIN);
    no(AluOp::Add, Type::U16, Modifiers { carry_out: true, ..PLAIN });
    no(AluOp::Add, Type::U32, Modifiers { sat: true, ..PLAIN });
    no(AluOp::Add, Type::S64, Modifiers { sat: true, ..PLAIN });
    no(AluOp::Add, Type::S32, Modifiers { ftz: true, ..PLAIN });
    no(AluOp::Min, Type::U32, Modifiers { relu: true, ..PLAIN });
    no(AluOp::MadLo, Type::S32, Modifiers { sat: true, ..PLAIN });
}
