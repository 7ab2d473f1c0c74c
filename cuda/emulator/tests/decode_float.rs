//! Floating-point instructions and conversions.

mod common;

use common::{alu, d, e, error_for, f, h, imm, op, p, plain, r, refused, reg, regs, rounded};
use kinglet_emulator::program::{AluOp, Modifiers, Rounding, TestP, Type};

use Type::{Bf16, Bf16x2, F16, F16x2, F32, F64};
use kinglet_emulator::program::AluOp::{
    Add, Cvt, CvtPack, Div, Ex2, Fma, Lg2, Max, Min, Mul, Rcp, Rsqrt, Sqrt, Sub, Tanh,
};

fn ftz(modifiers: Modifiers) -> Modifiers {
    Modifiers { ftz: true, ..modifiers }
}

fn sat(modifiers: Modifiers) -> Modifiers {
    Modifiers { sat: true, ..modifiers }
}

fn approx() -> Modifiers {
    Modifiers { approx: true, ..plain() }
}

/// `name` with the type in its name and as many sources as `count`, all of one type.
fn check(table: &[(&str, AluOp, Type, Modifiers)], count: u32) {
    for &(name, expected, ty, modifiers) in table {
        let (letter, base) = match ty {
            F16 | Bf16 => ("h", h(0)),
            F64 => ("e", e(0)),
            F32 => ("f", f(0)),
            _ => ("r", r(0)),
        };
        let sources: Vec<String> = (1..=count).map(|n| format!("{letter}{n}")).collect();
        let text = format!("{name} {letter}0, {};", sources.join(", "));
        let values: Vec<_> = (1..=count).map(|n| reg(base + n)).collect();
        assert_eq!(op(&text), alu(expected, ty, modifiers, base, ty.bytes(), &values), "{text}");
    }
}

#[test]
fn sums_and_products() {
    let rn = rounded(Rounding::Rn);
    check(
        &[
            ("add.f32", Add, F32, plain()),
            ("add.rn.f32", Add, F32, rn),
            ("add.rz.ftz.sat.f32", Add, F32, sat(ftz(rounded(Rounding::Rz)))),
            ("add.rp.f64", Add, F64, rounded(Rounding::Rp)),
            ("add.ftz.sat.f16", Add, F16, sat(ftz(plain()))),
            ("add.rn.bf16x2", Add, Bf16x2, rn),
            ("sub.rm.f32", Sub, F32, rounded(Rounding::Rm)),
            ("sub.f16x2", Sub, F16x2, plain()),
            ("mul.rn.f32", Mul, F32, rn),
            ("mul.bf16", Mul, Bf16, plain()),
        ],
        2,
    );
    check(
        &[
            ("fma.rn.f32", Fma, F32, rn),
            ("fma.rz.ftz.sat.f32", Fma, F32, sat(ftz(rounded(Rounding::Rz)))),
            ("fma.rp.f64", Fma, F64, rounded(Rounding::Rp)),
            ("fma.rn.ftz.relu.f16x2", Fma, F16x2, Modifiers { relu: true, ..ftz(rn) }),
            ("fma.rn.relu.bf16", Fma, Bf16, Modifiers { relu: true, ..rn }),
            ("mad.rn.f32", Fma, F32, rn),
        ],
        3,
    );
}

#[test]
fn quotients_and_extremes() {
    let nan = Modifiers { nan: true, ..plain() };
    check(
        &[
            ("div.approx.ftz.f32", Div, F32, ftz(approx())),
            ("div.full.f32", Div, F32, Modifiers { full: true, ..plain() }),
            ("div.rn.f32", Div, F32, rounded(Rounding::Rn)),
            ("div.rz.f64", Div, F64, rounded(Rounding::Rz)),
            ("min.f32", Min, F32, plain()),
            ("max.ftz.NaN.f32", Max, F32, ftz(nan)),
            ("max.NaN.xorsign.abs.f32", Max, F32, Modifiers { xorsign_abs: true, ..nan }),
            ("min.f64", Min, F64, plain()),
            ("max.NaN.bf16x2", Max, Bf16x2, nan),
            ("copysign.f64", AluOp::Copysign, F64, plain()),
        ],
        2,
    );
}

#[test]
fn functions_of_one_value() {
    check(
        &[
            ("abs.ftz.f32", AluOp::Abs, F32, ftz(plain())),
            ("neg.bf16", AluOp::Neg, Bf16, plain()),
            ("rcp.approx.f32", Rcp, F32, approx()),
            ("rcp.rm.ftz.f32", Rcp, F32, ftz(rounded(Rounding::Rm))),
            ("rcp.rn.f64", Rcp, F64, rounded(Rounding::Rn)),
            ("rcp.approx.ftz.f64", Rcp, F64, ftz(approx())),
            ("sqrt.approx.ftz.f32", Sqrt, F32, ftz(approx())),
            ("sqrt.rp.f64", Sqrt, F64, rounded(Rounding::Rp)),
            ("rsqrt.approx.f32", Rsqrt, F32, approx()),
            ("rsqrt.approx.f64", Rsqrt, F64, approx()),
            ("rsqrt.approx.ftz.f64", Rsqrt, F64, ftz(approx())),
            ("sin.approx.f32", AluOp::Sin, F32, approx()),
            ("cos.approx.ftz.f32", AluOp::Cos, F32, ftz(approx())),
            ("lg2.approx.ftz.f32", Lg2, F32, ftz(approx())),
            ("ex2.approx.ftz.f32", Ex2, F32, ftz(approx())),
            ("ex2.approx.f16x2", Ex2, F16x2, approx()),
            ("ex2.approx.ftz.bf16", Ex2, Bf16, ftz(approx())),
            ("tanh.approx.f32", Tanh, F32, approx()),
            ("tanh.approx.bf16x2", Tanh, Bf16x2, approx()),
        ],
        1,
    );
    let tests = [
        ("finite", TestP::Finite),
        ("infinite", TestP::Infinite),
        ("number", TestP::Number),
        ("notanumber", TestP::NotANumber),
        ("normal", TestP::Normal),
        ("subnormal", TestP::Subnormal),
    ];
    for (name, test) in tests {
        let expected = alu(AluOp::Testp(test), F64, plain(), p(0), 1, &[reg(e(1))]);
        assert_eq!(op(&format!("testp.{name}.f64 p0, e1;")), expected);
    }
}

#[test]
fn constants() {
    let table = [
        ("add.f32 f0, f1, 0f3F800000;", F32, f(0), f(1), 0x3f80_0000),
        ("add.f32 f0, f1, 1.5;", F32, f(0), f(1), 0x3fc0_0000),
        ("add.f32 f0, f1, -2.5e-1;", F32, f(0), f(1), 0xbe80_0000),
        ("add.f32 f0, f1, 0d3FF0000000000000;", F32, f(0), f(1), 0x3f80_0000),
        ("add.f64 e0, e1, 0d3FF8000000000000;", F64, e(0), e(1), 0x3ff8_0000_0000_0000),
        ("add.f64 e0, e1, 0f7FC00001;", F64, e(0), e(1), 0x7ff8_0000_2000_0000),
    ];
    for (text, ty, dst, a, bits) in table {
        assert_eq!(op(text), alu(Add, ty, plain(), dst, ty.bytes(), &[reg(a), imm(bits)]), "{text}");
    }
}

/// Text, result type, source type, modifiers, whether to an integer value, destination and its width, values.
#[test]
fn conversions() {
    let rn = rounded(Rounding::Rn);
    let rz = rounded(Rounding::Rz);
    let cvt = |to, integer_rounding| Cvt { to, integer_rounding };
    let satfinite = Modifiers { satfinite: true, ..rn };
    let finite = Modifiers { relu: true, ..satfinite };
    let table = [
        ("cvt.u32.u16 r0, h1;", cvt(Type::U32, false), Type::U16, plain(), r(0), 4, vec![reg(h(1))]),
        ("cvt.s64.s32 d0, r1;", cvt(Type::S64, false), Type::S32, plain(), d(0), 8, vec![reg(r(1))]),
        ("cvt.u8.u32 r0, r1;", cvt(Type::U8, false), Type::U32, plain(), r(0), 4, vec![reg(r(1))]),
        ("cvt.s8.s8 h0, d1;", cvt(Type::S8, false), Type::S8, plain(), h(0), 2, vec![reg(d(1))]),
        ("cvt.sat.u8.s32 r0, r1;", cvt(Type::U8, false), Type::S32, sat(plain()), r(0), 4, vec![reg(r(1))]),
        ("cvt.rn.f32.s32 f0, r1;", cvt(F32, false), Type::S32, rn, f(0), 4, vec![reg(r(1))]),
        ("cvt.rzi.ftz.s32.f32 r0, f1;", cvt(Type::S32, true), F32, ftz(rz), r(0), 4, vec![reg(f(1))]),
        ("cvt.rmi.f32.f32 f0, f1;", cvt(F32, true), F32, rounded(Rounding::Rm), f(0), 4, vec![reg(f(1))]),
        ("cvt.sat.f32.f32 f0, f1;", cvt(F32, false), F32, sat(plain()), f(0), 4, vec![reg(f(1))]),
        ("cvt.f64.f32 e0, f1;", cvt(F64, false), F32, plain(), e(0), 8, vec![reg(f(1))]),
        ("cvt.rp.f32.f64 f0, e1;", cvt(F32, false), F64, rounded(Rounding::Rp), f(0), 4, vec![reg(e(1))]),
        ("cvt.f32.f16 f0, h1;", cvt(F32, false), F16, plain(), f(0), 4, vec![reg(h(1))]),
        ("cvt.f32.bf16 f0, h1;", cvt(F32, false), Bf16, plain(), f(0), 4, vec![reg(h(1))]),
        ("cvt.rn.bf16.f32 h0, f1;", cvt(Bf16, false), F32, rn, h(0), 2, vec![reg(f(1))]),
        ("cvt.rn.relu.satfinite.f16.f32 h0, f1;", cvt(F16, false), F32, finite, h(0), 2, vec![reg(f(1))]),
        ("cvt.rna.tf32.f32 r0, f1;", cvt(Type::Tf32, false), F32, rounded(Rounding::Rna), r(0), 4, vec![reg(f(1))]),
        ("cvt.rn.f16x2.f32 r0, f1, f2;", cvt(F16x2, false), F32, rn, r(0), 4, regs([f(1), f(2)]).to_vec()),
        ("cvt.rz.bf16x2.f32 r0, f1, f2;", cvt(Bf16x2, false), F32, rz, r(0), 4, regs([f(1), f(2)]).to_vec()),
        (
            "cvt.rn.satfinite.relu.e4m3x2.f32 h0, f1, f2;",
            cvt(Type::E4m3x2, false),
            F32,
            finite,
            h(0),
            2,
            regs([f(1), f(2)]).to_vec(),
        ),
        ("cvt.rn.satfinite.e5m2x2.f16x2 h0, r1;", cvt(Type::E5m2x2, false), F16x2, satfinite, h(0), 2, vec![reg(r(1))]),
        ("cvt.rn.f16x2.e4m3x2 r0, h1;", cvt(F16x2, false), Type::E4m3x2, rn, r(0), 4, vec![reg(h(1))]),
        (
            "cvt.pack.sat.s16.s32 r0, r1, r2;",
            CvtPack { to: Type::S16 },
            Type::S32,
            sat(plain()),
            r(0),
            4,
            regs([r(1), r(2)]).to_vec(),
        ),
        (
            "cvt.pack.sat.u8.s32.b32 r0, r1, r2, r3;",
            CvtPack { to: Type::U8 },
            Type::S32,
            sat(plain()),
            r(0),
            4,
            regs([r(1), r(2), r(3)]).to_vec(),
        ),
    ];
    for (text, expected, ty, modifiers, dst, bytes, values) in table {
        assert_eq!(op(text), alu(expected, ty, modifiers, dst, bytes, &values), "{text}");
    }
}

#[test]
fn modifiers_stand_in_any_order_but_types_do_not() {
    assert_eq!(op("add.f32.ftz.rz f0, f1, f2;"), op("add.rz.ftz.f32 f0, f1, f2;"));
    assert_eq!(op("cvt.f32.rn.s32 f0, r1;"), op("cvt.rn.f32.s32 f0, r1;"));
    assert!(common::error("cvt.rn.s32.f32 f0, r1;").contains("rni"));
}

#[test]
fn what_is_illegal_is_refused() {
    refused(&[
        ("add.ftz.f64 e0, e1, e2;", "ftz"),
        ("add.sat.bf16 h0, h1, h2;", "sat"),
        ("add.rz.f16 h0, h1, h2;", "rz"),
        ("add.f32 f0, f1, 1;", "f32"),
        ("add.f16 h0, h1, 0x3C00;", "f16"),
        ("add.rni.f32 f0, f1, f2;", "rni"),
        ("fma.f32 f0, f1, f2, f3;", "rounding"),
        ("fma.rn.relu.f32 f0, f1, f2, f3;", "relu"),
        ("div.f32 f0, f1, f2;", "rounding"),
        ("div.approx.f64 e0, e1, e2;", "approx"),
        ("rcp.approx.f64 e0, e1;", "approx"),
        ("sqrt.approx.ftz.f64 e0, e1;", "approx"),
        ("sin.f32 f0, f1;", "approx"),
        ("tanh.approx.ftz.f32 f0, f1;", "ftz"),
        ("ex2.approx.bf16 h0, h1;", "ftz"),
        ("max.NaN.f64 e0, e1, e2;", "NaN"),
        ("min.f32 f0, f1, f2, f3;", "sm_100"),
        ("testp.odd.f32 p0, f1;", "test"),
        ("cvt.f32.s32 f0, r1;", "rn"),
        ("cvt.rn.s32.f32 r0, f1;", "rni"),
        ("cvt.rni.f32.s32 f0, r1;", "rn"),
        ("cvt.rn.f64.f32 e0, f1;", "rounding"),
        ("cvt.f32.f64 f0, e1;", "rn"),
        ("cvt.sat.u32.u16 r0, h1;", "sat"),
        ("cvt.rn.u32.u16 r0, h1;", "rounding"),
        ("cvt.ftz.u32.u16 r0, h1;", "ftz"),
        ("cvt.rn.f16x2.f32 r0, f1;", "operand"),
        ("cvt.rn.e4m3x2.f32 h0, f1, f2;", "satfinite"),
        ("cvt.pack.sat.u4.s32.b32 r0, r1, r2, r3;", "not supported: .u4"),
        ("cvt.u64.u32 r0, r1;", "r0"),
    ]);
    assert!(error_for("sm_80", "add.bf16 h0, h1, h2;").contains("sm_90"));
    assert!(error_for("sm_80", "cvt.rn.satfinite.e4m3x2.f32 h0, f1, f2;").contains("sm_89"));
    assert!(error_for("sm_80", "min.xorsign.abs.f32 f0, f1, f2;").contains("sm_86"));
}
