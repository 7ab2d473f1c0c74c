//! Bit fields, shifts and permutations against the PTX ISA's pseudo-code, bit by bit.

mod arith_support;

use arith_support::{PLAIN, Random, run, run_wide};
use kinglet_emulator::arith::supports;
use kinglet_emulator::program::{Alu, AluOp, PrmtMode, Type};

fn bit(x: u64, i: u64) -> u64 {
    x >> i & 1
}

/// Bits from a function of their place.
fn bits(width: u64, f: impl Fn(u64) -> u64) -> u64 {
    (0..width).fold(0, |all, i| all | f(i) << i)
}

/// A place or a length: small, or anything.
fn amount(random: &mut Random) -> u64 {
    match random.below(3) {
        0 => random.below(40),
        1 => random.below(300),
        _ => random.next() & 0xffff_ffff,
    }
}

const FIELDS: [(Type, u64, bool); 4] =
    [(Type::U32, 32, false), (Type::S32, 32, true), (Type::U64, 64, false), (Type::S64, 64, true)];

#[test]
fn bfe_as_the_isa_says() {
    let mut random = Random(31);
    for (ty, width, signed) in FIELDS {
        for _ in 0..20_000 {
            let (a, b, c) = (random.integer(width as u32), amount(&mut random), amount(&mut random));
            let (position, length, msb) = (b & 0xff, c & 0xff, width - 1);
            let sign = if !signed || length == 0 { 0 } else { bit(a, (position + length - 1).min(msb)) };
            let expected = bits(width, |i| if i < length && position + i <= msb { bit(a, position + i) } else { sign });
            assert_eq!(run_wide(AluOp::Bfe, ty, PLAIN, &[a, b, c], 8), expected, "{ty:?} {a:x} {position} {length}");
        }
    }
}

#[test]
fn bfi_as_the_isa_says() {
    let mut random = Random(32);
    for (ty, width) in [(Type::B32, 32), (Type::B64, 64)] {
        for _ in 0..20_000 {
            let [a, b] = [(); 2].map(|()| random.integer(width as u32));
            let [c, d] = [(); 2].map(|()| amount(&mut random));
            let (position, length) = (c & 0xff, d & 0xff);
            let expected =
                bits(width, |i| if i >= position && i - position < length { bit(a, i - position) } else { bit(b, i) });
            assert_eq!(run_wide(AluOp::Bfi, ty, PLAIN, &[a, b, c, d], 8), expected, "{a:x} {b:x} {position} {length}");
        }
    }
}

#[test]
fn bfind_as_the_isa_says() {
    let mut random = Random(33);
    for (ty, width, signed) in FIELDS {
        for _ in 0..5000 {
            let a = random.integer(width as u32);
            let sign = if signed { bit(a, width - 1) } else { 0 };
            let found = (0..width).rev().find(|i| bit(a, *i) != sign);
            let plain = run(AluOp::Bfind { shift_amount: false }, ty, PLAIN, &[a]);
            assert_eq!(plain, found.unwrap_or(0xffff_ffff), "{ty:?} {a:x}");
            let shift = run(AluOp::Bfind { shift_amount: true }, ty, PLAIN, &[a]);
            assert_eq!(shift, found.map_or(0xffff_ffff, |i| width - 1 - i), "{ty:?} {a:x}");
        }
    }
}

#[test]
fn fns_as_the_isa_says() {
    let mut random = Random(34);
    for _ in 0..50_000 {
        let mask = random.integer(32);
        let (base, offset) = (random.below(32), random.below(41) as i64 - 20);
        // The ISA's loop.
        let mut expected = 0xffff_ffff;
        if offset == 0 {
            if bit(mask, base) == 1 {
                expected = base;
            }
        } else {
            let (mut position, mut count) = (base as i64, offset.abs() - 1);
            while (0..32).contains(&position) {
                if bit(mask, position as u64) == 1 {
                    if count == 0 {
                        expected = position as u64;
                        break;
                    }
                    count -= 1;
                }
                position += offset.signum();
            }
        }
        let got = run(AluOp::Fns, Type::B32, PLAIN, &[mask, base, offset as u64 & 0xffff_ffff]);
        assert_eq!(got, expected, "{mask:x} {base} {offset}");
    }
}

#[test]
fn counts() {
    let mut random = Random(35);
    for (ty, width) in [(Type::B32, 32), (Type::B64, 64)] {
        for _ in 0..3000 {
            let a = random.integer(width as u32);
            let ones = (0..width).map(|i| bit(a, i)).sum::<u64>();
            let zeros = (0..width).rev().take_while(|i| bit(a, *i) == 0).count() as u64;
            assert_eq!(run(AluOp::Popc, ty, PLAIN, &[a]), ones);
            assert_eq!(run(AluOp::Clz, ty, PLAIN, &[a]), zeros);
            assert_eq!(run_wide(AluOp::Brev, ty, PLAIN, &[a], 8), bits(width, |i| bit(a, width - 1 - i)));
        }
    }
}

#[test]
fn shifts_clamp() {
    let mut random = Random(36);
    for (ty, width, signed) in [
        (Type::B16, 16, false),
        (Type::U16, 16, false),
        (Type::S16, 16, true),
        (Type::B32, 32, false),
        (Type::U32, 32, false),
        (Type::S32, 32, true),
        (Type::B64, 64, false),
        (Type::U64, 64, false),
        (Type::S64, 64, true),
    ] {
        for _ in 0..4000 {
            let (a, by) = (random.integer(width as u32), amount(&mut random));
            let sign = if signed { bit(a, width - 1) } else { 0 };
            let right = bits(width, |i| if i + by < width { bit(a, i + by) } else { sign });
            assert_eq!(run_wide(AluOp::Shr, ty, PLAIN, &[a, by], 8), right, "shr {ty:?} {a:x} {by}");
            if matches!(ty, Type::B16 | Type::B32 | Type::B64) {
                let left = bits(width, |i| if i >= by { bit(a, i - by) } else { 0 });
                assert_eq!(run_wide(AluOp::Shl, ty, PLAIN, &[a, by], 8), left, "shl {ty:?} {a:x} {by}");
            }
        }
    }
}

#[test]
fn funnel_shifts() {
    let mut random = Random(37);
    for _ in 0..20_000 {
        let [a, b] = [(); 2].map(|()| random.integer(32));
        let c = amount(&mut random);
        for wrap in [false, true] {
            let n = if wrap { c & 31 } else { c.min(32) };
            let both = u128::from(b << 32 | a);
            let left = (both << n >> 32) as u64 & 0xffff_ffff;
            let right = (both >> n) as u64 & 0xffff_ffff;
            assert_eq!(run(AluOp::ShfL { wrap }, Type::B32, PLAIN, &[a, b, c]), left, "{wrap} {a:x} {b:x} {c}");
            assert_eq!(run(AluOp::ShfR { wrap }, Type::B32, PLAIN, &[a, b, c]), right, "{wrap} {a:x} {b:x} {c}");
        }
    }
}

#[test]
fn logic() {
    let mut random = Random(38);
    for (ty, width) in [(Type::Pred, 1), (Type::B16, 16), (Type::B32, 32), (Type::B64, 64)] {
        for _ in 0..300 {
            let [a, b] = [(); 2].map(|()| random.integer(width));
            let mask = u64::MAX >> (64 - width);
            assert_eq!(run_wide(AluOp::And, ty, PLAIN, &[a, b], 8), a & b);
            assert_eq!(run_wide(AluOp::Or, ty, PLAIN, &[a, b], 8), a | b);
            assert_eq!(run_wide(AluOp::Xor, ty, PLAIN, &[a, b], 8), a ^ b);
            assert_eq!(run_wide(AluOp::Not, ty, PLAIN, &[a], 8), !a & mask);
            assert_eq!(run_wide(AluOp::Mov, ty, PLAIN, &[a], 8), a);
        }
    }
    assert_eq!(run(AluOp::Cnot, Type::B32, PLAIN, &[0]), 1);
    assert_eq!(run(AluOp::Cnot, Type::B32, PLAIN, &[5]), 0);
    assert_eq!(run(AluOp::Cnot, Type::B16, PLAIN, &[0]), 1);
}

/// The ISA: the table of a function F is F(0xF0, 0xCC, 0xAA).
#[test]
fn lop3_tables() {
    let [a, b, c] = [0xf0, 0xcc, 0xaa];
    for table in 0..=255 {
        assert_eq!(run(AluOp::Lop3 { table }, Type::B32, PLAIN, &[a, b, c]) & 0xff, u64::from(table));
    }
    let mut random = Random(39);
    for _ in 0..1000 {
        let [a, b, c] = [(); 3].map(|()| random.integer(32));
        assert_eq!(run(AluOp::Lop3 { table: 0x1a }, Type::B32, PLAIN, &[a, b, c]), (a & b | c) ^ a);
        assert_eq!(run(AluOp::Lop3 { table: 0xea }, Type::B32, PLAIN, &[a, b, c]), a & b | c);
        assert_eq!(run(AluOp::Lop3 { table: 0x80 }, Type::B32, PLAIN, &[a, b, c]), a & b & c);
    }
}

#[test]
fn szext_and_bmsk() {
    let mut random = Random(40);
    for _ in 0..20_000 {
        let (a, b) = (random.integer(32), amount(&mut random));
        for wrap in [false, true] {
            let n = if wrap { b & 31 } else { b.min(32) };
            let sign = if n == 0 { 0 } else { bit(a, n - 1) };
            let unsigned = bits(32, |i| if i < n { bit(a, i) } else { 0 });
            let signed = bits(32, |i| if i < n { bit(a, i) } else { sign });
            assert_eq!(run(AluOp::Szext { wrap }, Type::U32, PLAIN, &[a, b]), unsigned);
            assert_eq!(run(AluOp::Szext { wrap }, Type::S32, PLAIN, &[a, b]), signed);

            let start = amount(&mut random);
            let (from, width) = if wrap { (start & 31, b & 31) } else { (start, b) };
            let expected = bits(32, |i| u64::from(i >= from && i - from < width));
            assert_eq!(run(AluOp::Bmsk { wrap }, Type::B32, PLAIN, &[start, b]), expected, "{wrap} {start} {b}");
        }
    }
}

#[test]
fn prmt_tables() {
    // Bytes of the source named by their numbers; the ISA's tables list the result's bytes from the highest.
    let (a, b) = (0x0302_0100, 0x0706_0504);
    let tables: [(PrmtMode, [u64; 4]); 6] = [
        (PrmtMode::F4e, [0x0302_0100, 0x0403_0201, 0x0504_0302, 0x0605_0403]),
        (PrmtMode::B4e, [0x0506_0700, 0x0607_0001, 0x0700_0102, 0x0001_0203]),
        (PrmtMode::Rc8, [0, 0x0101_0101, 0x0202_0202, 0x0303_0303]),
        (PrmtMode::Ecl, [0x0302_0100, 0x0302_0101, 0x0302_0202, 0x0303_0303]),
        (PrmtMode::Ecr, [0, 0x0101_0100, 0x0202_0100, 0x0302_0100]),
        (PrmtMode::Rc16, [0x0100_0100, 0x0302_0302, 0x0100_0100, 0x0302_0302]),
    ];
    for (mode, results) in tables {
        for (control, expected) in (0u64..).zip(results) {
            // Only the two lowest bits of the control count.
            let got = run(AluOp::Prmt(mode), Type::B32, PLAIN, &[a, b, control | 0xfffc]);
            assert_eq!(got, expected, "{mode:?} {control}");
        }
    }
    let mut random = Random(41);
    for _ in 0..10_000 {
        let [a, b, c] = [(); 3].map(|()| random.integer(32));
        let source = b << 32 | a;
        let expected = (0..4).fold(0, |all, i| {
            let selector = c >> (4 * i) & 15;
            let byte = source >> (8 * (selector & 7)) & 0xff;
            let byte = if selector < 8 {
                byte
            } else if byte >= 0x80 {
                0xff
            } else {
                0
            };
            all | byte << (8 * i)
        });
        assert_eq!(run(AluOp::Prmt(PrmtMode::Index), Type::B32, PLAIN, &[a, b, c]), expected, "{a:x} {b:x} {c:x}");
    }
}

#[test]
fn dot_products() {
    let part = |x: u64, width: u32, i: u32, signed: bool| {
        let value = (x >> (width * i) & ((1 << width) - 1)) as i64;
        if signed && value >= 1 << (width - 1) { value - (1 << width) } else { value }
    };
    let mut random = Random(42);
    for _ in 0..5000 {
        let [a, b, c] = [(); 3].map(|()| random.integer(32));
        for (a_signed, b_signed) in [(false, false), (false, true), (true, false), (true, true)] {
            let ty = if a_signed || b_signed { Type::S32 } else { Type::U32 };
            let four: i64 = (0..4).map(|i| part(a, 8, i, a_signed) * part(b, 8, i, b_signed)).sum();
            let got = run(AluOp::Dp4a { a_signed, b_signed }, ty, PLAIN, &[a, b, c]);
            assert_eq!(got, (c as i64 + four) as u64 & 0xffff_ffff, "{a:x} {b:x} {c:x}");
            for high in [false, true] {
                let first = if high { 2 } else { 0 };
                let two: i64 = (0..2).map(|i| part(a, 16, i, a_signed) * part(b, 8, first + i, b_signed)).sum();
                let got = run(AluOp::Dp2a { a_signed, b_signed, high }, ty, PLAIN, &[a, b, c]);
                assert_eq!(got, (c as i64 + two) as u64 & 0xffff_ffff, "{a:x} {b:x} {c:x}");
            }
        }
    }
}

#[test]
fn what_ptx_does_not_have() {
    let no = |op, ty| assert!(!supports(&Alu { op, ty, modifiers: PLAIN }), "{op:?} {ty:?}");
    no(AluOp::And, Type::F32);
    no(AluOp::And, Type::U32);
    no(AluOp::Shl, Type::U32);
    no(AluOp::Popc, Type::B16);
    no(AluOp::Lop3 { table: 1 }, Type::B64);
    no(AluOp::Bfe, Type::B32);
    no(AluOp::Prmt(PrmtMode::Index), Type::U32);
    no(AluOp::Not, Type::B128);
}
