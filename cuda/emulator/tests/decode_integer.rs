//! Integer instructions: text and what it becomes.

mod common;

use common::{alu, d, error_for, h, imm, op, plain, r, refused, reg, regs};
use kinglet_emulator::program::{AluOp, Modifiers, Type};

/// The register of this number and width.
fn of(ty: Type, n: u32) -> u32 {
    match ty.bytes() {
        2 => h(n),
        4 => r(n),
        _ => d(n),
    }
}

/// `name` with the type's name behind, all operands of that type.
fn same(name: &str, expected: AluOp, modifiers: Modifiers, types: &[Type], count: u32) {
    for &ty in types {
        let letter = ["h", "r", "d"][(ty.bytes() / 2).ilog2() as usize];
        let sources: Vec<String> = (1..=count).map(|n| format!("{letter}{n}")).collect();
        let text = format!("{name}.{} {letter}0, {};", ty.name(), sources.join(", "));
        let values: Vec<_> = (1..=count).map(|n| reg(of(ty, n))).collect();
        assert_eq!(op(&text), alu(expected, ty, modifiers, of(ty, 0), ty.bytes(), &values), "{text}");
    }
}

use Type::{S16, S16x2, S32, S64, U16, U16x2, U32, U64};
const ALL: [Type; 6] = [U16, U32, U64, S16, S32, S64];
const WORDS: [Type; 4] = [U32, U64, S32, S64];

#[test]
fn sums_and_products() {
    same("add", AluOp::Add, plain(), &ALL, 2);
    same("sub", AluOp::Sub, plain(), &ALL, 2);
    same("add", AluOp::Add, plain(), &[U16x2, S16x2], 2);
    same("mul.lo", AluOp::MulLo, plain(), &ALL, 2);
    same("mul.hi", AluOp::MulHi, plain(), &ALL, 2);
    same("mad.lo", AluOp::MadLo, plain(), &ALL, 3);
    same("mad.hi", AluOp::MadHi, plain(), &ALL, 3);
    same("mul24.lo", AluOp::Mul24Lo, plain(), &[U32, S32], 2);
    same("mul24.hi", AluOp::Mul24Hi, plain(), &[U32, S32], 2);
    same("mad24.lo", AluOp::Mad24Lo, plain(), &[U32, S32], 3);
    same("mad24.hi", AluOp::Mad24Hi, plain(), &[U32, S32], 3);
    same("sad", AluOp::Sad, plain(), &ALL, 3);
    same("div", AluOp::Div, plain(), &ALL, 2);
    same("rem", AluOp::Rem, plain(), &ALL, 2);
    same("abs", AluOp::Abs, plain(), &[S16, S32, S64], 1);
    same("neg", AluOp::Neg, plain(), &[S16, S32, S64], 1);
}

#[test]
fn smallest_and_largest() {
    same("min", AluOp::Min, plain(), &ALL, 2);
    same("max", AluOp::Max, plain(), &ALL, 2);
    same("min", AluOp::Min, plain(), &[U16x2, S16x2], 2);
    let relu = Modifiers { relu: true, ..plain() };
    same("max.relu", AluOp::Max, relu, &[S32, S16x2], 2);
}

#[test]
fn saturation_and_carries() {
    let sat = Modifiers { sat: true, ..plain() };
    same("add.sat", AluOp::Add, sat, &[S32], 2);
    same("sub.sat", AluOp::Sub, sat, &[S32], 2);
    same("mad.hi.sat", AluOp::MadHi, sat, &[S32], 3);
    same("mad24.hi.sat", AluOp::Mad24Hi, sat, &[S32], 3);
    let out = Modifiers { carry_out: true, ..plain() };
    let carry = Modifiers { carry_in: true, ..plain() };
    let both = Modifiers { carry_out: true, carry_in: true, ..plain() };
    same("add.cc", AluOp::Add, out, &WORDS, 2);
    same("addc", AluOp::Add, carry, &WORDS, 2);
    same("addc.cc", AluOp::Add, both, &WORDS, 2);
    same("sub.cc", AluOp::Sub, out, &WORDS, 2);
    same("subc", AluOp::Sub, carry, &WORDS, 2);
    same("mad.lo.cc", AluOp::MadLo, out, &WORDS, 3);
    same("madc.hi", AluOp::MadHi, carry, &WORDS, 3);
    same("madc.hi.cc", AluOp::MadHi, both, &WORDS, 3);
}

#[test]
fn wide_products() {
    for (name, ty) in [("u32", U32), ("s32", S32)] {
        let text = format!("mul.wide.{name} d0, r1, r2;");
        assert_eq!(op(&text), alu(AluOp::MulWide, ty, plain(), d(0), 8, &regs([r(1), r(2)])));
        let text = format!("mad.wide.{name} d0, r1, r2, d3;");
        assert_eq!(op(&text), alu(AluOp::MadWide, ty, plain(), d(0), 8, &regs([r(1), r(2), d(3)])));
    }
    let expected = alu(AluOp::MulWide, S16, plain(), r(0), 4, &[reg(h(1)), imm(0xfffe)]);
    assert_eq!(op("mul.wide.s16 r0, h1, -2;"), expected);
}

#[test]
fn bit_counts_have_results_of_32_bits() {
    for (name, wide) in [("b32", false), ("b64", true)] {
        let (ty, source, letter) = if wide { (Type::B64, d(1), "d1") } else { (Type::B32, r(1), "r1") };
        for (instruction, expected) in [("popc", AluOp::Popc), ("clz", AluOp::Clz)] {
            let text = format!("{instruction}.{name} r0, {letter};");
            assert_eq!(op(&text), alu(expected, ty, plain(), r(0), 4, &[reg(source)]));
        }
    }
    let find = |shift_amount| AluOp::Bfind { shift_amount };
    assert_eq!(op("bfind.s64 r0, d1;"), alu(find(false), S64, plain(), r(0), 4, &[reg(d(1))]));
    assert_eq!(op("bfind.shiftamt.u32 r0, r1;"), alu(find(true), U32, plain(), r(0), 4, &[reg(r(1))]));
    assert_eq!(op("brev.b64 d0, d1;"), alu(AluOp::Brev, Type::B64, plain(), d(0), 8, &[reg(d(1))]));
    let fns = alu(AluOp::Fns, Type::B32, plain(), r(0), 4, &regs([r(1), r(2), r(3)]));
    assert_eq!(op("fns.b32 r0, r1, r2, r3;"), fns);
}

#[test]
fn bit_fields() {
    let values = [reg(d(1)), imm(3), reg(r(2))];
    assert_eq!(op("bfe.s64 d0, d1, 3, r2;"), alu(AluOp::Bfe, S64, plain(), d(0), 8, &values));
    let values = [reg(r(1)), reg(r(2)), imm(8), imm(4)];
    assert_eq!(op("bfi.b32 r0, r1, r2, 8, 4;"), alu(AluOp::Bfi, Type::B32, plain(), r(0), 4, &values));
    let two = regs([r(1), r(2)]);
    for (mode, wrap) in [("clamp", false), ("wrap", true)] {
        let text = format!("szext.{mode}.s32 r0, r1, r2;");
        assert_eq!(op(&text), alu(AluOp::Szext { wrap }, S32, plain(), r(0), 4, &two));
        let text = format!("bmsk.{mode}.b32 r0, r1, r2;");
        assert_eq!(op(&text), alu(AluOp::Bmsk { wrap }, Type::B32, plain(), r(0), 4, &two));
    }
}

#[test]
fn dot_products() {
    let three = regs([r(1), r(2), r(3)]);
    for (a, a_signed) in [("u32", false), ("s32", true)] {
        for (b, b_signed) in [("u32", false), ("s32", true)] {
            let ty = if a_signed || b_signed { S32 } else { U32 };
            let text = format!("dp4a.{a}.{b} r0, r1, r2, r3;");
            assert_eq!(op(&text), alu(AluOp::Dp4a { a_signed, b_signed }, ty, plain(), r(0), 4, &three));
            for (half, high) in [("lo", false), ("hi", true)] {
                let text = format!("dp2a.{half}.{a}.{b} r0, r1, r2, r3;");
                let expected = AluOp::Dp2a { a_signed, b_signed, high };
                assert_eq!(op(&text), alu(expected, ty, plain(), r(0), 4, &three));
            }
        }
    }
}

#[test]
fn constants_take_the_width_of_the_instruction() {
    let table: [(&str, u64); 8] = [
        ("add.s32 r0, r1, -1;", 0xffff_ffff),
        ("add.u32 r0, r1, 0x1ffffffff;", 0xffff_ffff),
        ("add.s32 r0, r1, 0b101;", 5),
        ("add.s32 r0, r1, 017;", 15),
        ("add.s32 r0, r1, (1 << 4) | 3;", 19),
        ("add.s32 r0, r1, WARP_SZ * 2;", 64),
        ("add.s32 r0, r1, 7U;", 7),
        ("add.s32 r0, r1, ~0 ? 3 : 4;", 3),
    ];
    for (text, bits) in table {
        let kinglet_emulator::program::Op::Alu { b, .. } = op(text) else { panic!("{text}") };
        assert_eq!(b, imm(bits), "{text}");
    }
}

#[test]
fn what_is_illegal_is_refused() {
    refused(&[
        ("add.u8 r0, r1, r2;", "u8"),
        ("add.b32 r0, r1, r2;", "b32"),
        ("add.sat.u32 r0, r1, r2;", "u32"),
        ("add.cc.sat.s32 r0, r1, r2;", "sat"),
        ("add.u32 r0, r1;", "missing"),
        ("add.u32 r0, r1, r2, r3;", "too many"),
        ("add.u32 d0, r1, r2;", "d0 is declared .b64"),
        ("add.u32 r0, f1, r2;", "f1 is declared .f32"),
        ("add.u32 r0, r1, 0f3F800000;", "u32"),
        ("add.u32 r0, r1, %tid.x;", "mov and cvt"),
        ("add.u32 _, r1, r2;", "_"),
        ("add.u32 r0, r1, gv;", "no register"),
        ("add.u32 r0, r1, nothing;", "not declared"),
        ("add.u32 r0, r1, %r1000;", "not declared"),
        ("add.foo.u32 r0, r1, r2;", "unexpected .foo"),
        ("add r0, r1, r2;", "missing"),
        ("sub.u16x2 r0, r1, r2;", "u16x2"),
        ("mul.u32 r0, r1, r2;", ".lo, .hi or .wide"),
        ("mul.wide.u64 d0, d1, d2;", "u64"),
        ("mul.wide.u32 r0, r1, r2;", "declared .b32"),
        ("madc.wide.u32 d0, r1, r2, d3;", ".lo"),
        ("mul24.lo.u64 d0, d1, d2;", "u64"),
        ("abs.u32 r0, r1;", "u32"),
        ("popc.b32 d0, r1;", "d0"),
        ("bfe.b32 r0, r1, r2, r3;", "b32"),
        ("szext.u32 r0, r1, r2;", ".clamp or .wrap"),
        ("dp2a.u32.u32 r0, r1, r2, r3;", ".lo or .hi"),
        ("fma.u32 r0, r1, r2, r3;", "integers"),
    ]);
    assert!(error_for("sm_80", "add.s16x2 r0, r1, r2;").contains("sm_90"));
    assert!(error_for("sm_80", "max.relu.s32 r0, r1, r2;").contains("sm_90"));
}
