//! Logic, shifts, comparisons, selections, moves.

mod common;

use common::{alu, d, e, f, h, imm, op, p, plain, r, refused, reg, regs};
use kinglet_emulator::program::{AluOp, Combine, Compare, Modifiers, Op, PrmtMode, Space, Special, Src, Type};

use Type::{B16, B32, B64, F32, S32, U32, U64};

#[test]
fn logic() {
    for (name, expected) in [("and", AluOp::And), ("or", AluOp::Or), ("xor", AluOp::Xor)] {
        let b16 = alu(expected, B16, plain(), h(0), 2, &regs([h(1), h(2)]));
        assert_eq!(op(&format!("{name}.b16 h0, h1, h2;")), b16);
        let b64 = alu(expected, B64, plain(), d(0), 8, &[reg(d(1)), imm(u64::MAX)]);
        assert_eq!(op(&format!("{name}.b64 d0, d1, -1;")), b64);
        let pred = alu(expected, Type::Pred, plain(), p(0), 1, &[reg(p(1)), Src::NotReg(p(2))]);
        assert_eq!(op(&format!("{name}.pred p0, p1, !p2;")), pred);
    }
    assert_eq!(op("not.b32 r0, r1;"), alu(AluOp::Not, B32, plain(), r(0), 4, &[reg(r(1))]));
    assert_eq!(op("not.pred p0, p1;"), alu(AluOp::Not, Type::Pred, plain(), p(0), 1, &[reg(p(1))]));
    assert_eq!(op("cnot.b64 d0, d1;"), alu(AluOp::Cnot, B64, plain(), d(0), 8, &[reg(d(1))]));
    let lop3 = alu(AluOp::Lop3 { table: 0x96 }, B32, plain(), r(0), 4, &regs([r(1), r(2), r(3)]));
    assert_eq!(op("lop3.b32 r0, r1, r2, r3, 0x96;"), lop3);
}

#[test]
fn shifts_take_amounts_of_32_bits() {
    let two = regs([d(1), r(2)]);
    assert_eq!(op("shl.b64 d0, d1, r2;"), alu(AluOp::Shl, B64, plain(), d(0), 8, &two));
    assert_eq!(op("shr.s64 d0, d1, r2;"), alu(AluOp::Shr, Type::S64, plain(), d(0), 8, &two));
    assert_eq!(op("shr.u16 h0, h1, 3;"), alu(AluOp::Shr, Type::U16, plain(), h(0), 2, &[reg(h(1)), imm(3)]));
    let three = regs([r(1), r(2), r(3)]);
    for (mode, wrap) in [("clamp", false), ("wrap", true)] {
        let left = alu(AluOp::ShfL { wrap }, B32, plain(), r(0), 4, &three);
        assert_eq!(op(&format!("shf.l.{mode}.b32 r0, r1, r2, r3;")), left);
        let right = alu(AluOp::ShfR { wrap }, B32, plain(), r(0), 4, &three);
        assert_eq!(op(&format!("shf.r.{mode}.b32 r0, r1, r2, r3;")), right);
    }
}

#[test]
fn permutations() {
    let modes = [
        ("", PrmtMode::Index),
        (".f4e", PrmtMode::F4e),
        (".b4e", PrmtMode::B4e),
        (".rc8", PrmtMode::Rc8),
        (".ecl", PrmtMode::Ecl),
        (".ecr", PrmtMode::Ecr),
        (".rc16", PrmtMode::Rc16),
    ];
    for (name, mode) in modes {
        let expected = alu(AluOp::Prmt(mode), B32, plain(), r(0), 4, &regs([r(1), r(2), r(3)]));
        assert_eq!(op(&format!("prmt.b32{name} r0, r1, r2, r3;")), expected);
    }
}

const COMPARISONS: [(&str, Compare); 18] = [
    ("eq", Compare::Eq),
    ("ne", Compare::Ne),
    ("lt", Compare::Lt),
    ("le", Compare::Le),
    ("gt", Compare::Gt),
    ("ge", Compare::Ge),
    ("equ", Compare::Equ),
    ("neu", Compare::Neu),
    ("ltu", Compare::Ltu),
    ("leu", Compare::Leu),
    ("gtu", Compare::Gtu),
    ("geu", Compare::Geu),
    ("num", Compare::Num),
    ("nan", Compare::Nan),
    ("lo", Compare::Lo),
    ("ls", Compare::Ls),
    ("hi", Compare::Hi),
    ("hs", Compare::Hs),
];

#[test]
fn comparisons() {
    for (index, (name, compare)) in COMPARISONS.into_iter().enumerate() {
        let unsigned = index >= 14;
        let (ty, a, b) = if unsigned { (U32, "r1", "r2") } else { (F32, "f1", "f2") };
        let (x, y) = if unsigned { (r(1), r(2)) } else { (f(1), f(2)) };
        let expected = |p, q, combine, c| Op::Setp { compare, ty, ftz: false, combine, p, q, a: reg(x), b: reg(y), c };
        let ty_name = ty.name();
        let plain = expected(Some(p(0)), None, None, imm(0));
        assert_eq!(op(&format!("setp.{name}.{ty_name} p0, {a}, {b};")), plain);
        let both = expected(Some(p(0)), Some(p(1)), None, imm(0));
        assert_eq!(op(&format!("setp.{name}.{ty_name} p0|p1, {a}, {b};")), both);
        let combined = expected(None, Some(p(1)), Some(Combine::Xor), Src::NotReg(p(2)));
        assert_eq!(op(&format!("setp.{name}.xor.{ty_name} _|p1, {a}, {b}, !p2;")), combined);
    }
    let ftz = op("setp.lt.and.ftz.f32 p0, f1, 0f00000000, p3;");
    assert!(matches!(ftz, Op::Setp { ftz: true, combine: Some(Combine::And), c: Src::Reg(3), .. }));
}

#[test]
fn comparisons_into_registers() {
    let set = |compare, combine, to| AluOp::Set { compare, combine, to };
    let plain_set = alu(set(Compare::Lt, None, U32), F32, plain(), r(0), 4, &regs([f(1), f(2)]));
    assert_eq!(op("set.lt.u32.f32 r0, f1, f2;"), plain_set);
    let combined = alu(
        set(Compare::Ge, Some(Combine::Or), F32),
        S32,
        plain(),
        f(0),
        4,
        &[reg(r(1)), reg(r(2)), Src::NotReg(p(1))],
    );
    assert_eq!(op("set.ge.or.f32.s32 f0, r1, r2, !p1;"), combined);
    let halves = alu(set(Compare::Nan, None, Type::F16x2), Type::F16x2, plain(), r(0), 4, &regs([r(1), r(2)]));
    assert_eq!(op("set.nan.f16x2.f16x2 r0, r1, r2;"), halves);
    let masks = alu(set(Compare::Gt, None, U32), Type::F16x2, plain(), r(0), 4, &regs([r(1), r(2)]));
    assert_eq!(op("set.gt.u32.f16x2 r0, r1, r2;"), masks);
}

#[test]
fn selections() {
    let values = [reg(d(1)), imm(7), reg(p(1))];
    assert_eq!(op("selp.b64 d0, d1, 7, p1;"), alu(AluOp::Selp, B64, plain(), d(0), 8, &values));
    let by_float = AluOp::Slct { float_selector: true };
    let ftz = Modifiers { ftz: true, ..plain() };
    assert_eq!(op("slct.ftz.u32.f32 r0, r1, r2, f3;"), alu(by_float, U32, ftz, r(0), 4, &regs([r(1), r(2), f(3)])));
    let by_int = AluOp::Slct { float_selector: false };
    assert_eq!(op("slct.f64.s32 e0, e1, e2, r3;"), alu(by_int, Type::F64, plain(), e(0), 8, &regs([e(1), e(2), r(3)])));
}

#[test]
fn moves() {
    let mov = |ty: Type, dst, src| alu(AluOp::Mov, ty, plain(), dst, ty.bytes(), &[src]);
    let table = [
        ("mov.b32 r0, f1;", mov(B32, r(0), reg(f(1)))),
        ("mov.f32 f0, 0f3F800000;", mov(F32, f(0), imm(0x3f80_0000))),
        ("mov.b32 r0, 0f3F800000;", mov(B32, r(0), imm(0x3f80_0000))),
        ("mov.b64 d0, 0d3FF0000000000000;", mov(B64, d(0), imm(0x3ff0_0000_0000_0000))),
        ("mov.pred p0, -1;", mov(Type::Pred, p(0), imm(1))),
        ("mov.u32 r0, %tid.x;", mov(U32, r(0), Src::Special(Special::Tid(0)))),
        ("mov.u16 h0, %ntid.y;", mov(Type::U16, h(0), Src::Special(Special::NTid(1)))),
        ("mov.b32 r0, %ctaid.z;", mov(B32, r(0), Src::Special(Special::CtaId(2)))),
        ("mov.u32 r0, %laneid;", mov(U32, r(0), Src::Special(Special::LaneId))),
        ("mov.u64 d0, %clock64;", mov(U64, d(0), Src::Special(Special::Clock64))),
        ("mov.u64 d0, %globaltimer;", mov(U64, d(0), Src::Special(Special::GlobalTimer))),
        ("mov.u32 r0, %lanemask_lt;", mov(U32, r(0), Src::Special(Special::LaneMaskLt))),
        ("mov.u32 r0, %cluster_ctarank;", mov(U32, r(0), Src::Special(Special::ClusterCtaRank))),
        ("mov.u64 d0, gv;", mov(U64, d(0), Src::Variable(0, 0))),
        ("mov.u64 d0, gv+12;", mov(U64, d(0), Src::Variable(0, 12))),
        ("mov.u64 d0, cv-4;", mov(U64, d(0), Src::Variable(1, -4))),
        ("mov.u32 r0, sv+8;", mov(U32, r(0), imm(8))),
        ("mov.u64 d0, dyn;", mov(U64, d(0), Src::DynamicShared(0))),
        ("mov.u64 d0, lv;", mov(U64, d(0), imm(0))),
        ("mov.u64 d0, ks+16;", mov(U64, d(0), imm(24))),
    ];
    for (text, expected) in table {
        assert_eq!(op(text), expected, "{text}");
    }
    let cvt = AluOp::Cvt { to: U64, integer_rounding: false };
    let expected = alu(cvt, U32, plain(), d(0), 8, &[Src::Special(Special::Tid(0))]);
    assert_eq!(op("cvt.u64.u32 d0, %tid.x;"), expected);
}

#[test]
fn packing() {
    let pack = |dst, part_bytes, parts: &[Src]| Op::Pack { dst, part_bytes, parts: parts.to_vec() };
    assert_eq!(op("mov.b32 r0, {h1, h2};"), pack(r(0), 2, &regs([h(1), h(2)])));
    assert_eq!(op("mov.b64 d0, {r1, f2};"), pack(d(0), 4, &regs([r(1), f(2)])));
    assert_eq!(op("mov.b64 d0, {h0, h1, h2, 5};"), pack(d(0), 2, &[reg(h(0)), reg(h(1)), reg(h(2)), imm(5)]));
    let unpack = |part_bytes, parts: &[Option<u32>], src| Op::Unpack { part_bytes, parts: parts.to_vec(), src };
    assert_eq!(op("mov.b32 {h1, h2}, r0;"), unpack(2, &[Some(h(1)), Some(h(2))], reg(r(0))));
    assert_eq!(op("mov.b64 {r1, _}, d0;"), unpack(4, &[Some(r(1)), None], reg(d(0))));
    assert_eq!(op("mov.b64 {_, r1}, e0;"), unpack(4, &[None, Some(r(1))], reg(e(0))));
}

#[test]
fn generic_addresses() {
    let cvta = |space, to_generic, src| Op::Cvta { space, to_generic, bytes: 8, dst: d(0), src };
    assert_eq!(op("cvta.global.u64 d0, d1;"), cvta(Space::Global, true, reg(d(1))));
    assert_eq!(op("cvta.global.u64 d0, gv+4;"), cvta(Space::Global, true, Src::Variable(0, 4)));
    assert_eq!(op("cvta.to.global.u64 d0, d1;"), cvta(Space::Global, false, reg(d(1))));
    assert_eq!(op("cvta.shared.u64 d0, sv;"), cvta(Space::Shared, true, imm(0)));
    assert_eq!(op("cvta.to.shared::cluster.u64 d0, d1;"), cvta(Space::SharedCluster, false, reg(d(1))));
    assert_eq!(op("cvta.local.u64 d0, lv+8;"), cvta(Space::Local, true, imm(8)));
    assert_eq!(op("cvta.param.u64 d0, ks;"), cvta(Space::Param, true, imm(8)));
    assert_eq!(op("cvta.const.u64 d0, cv;"), cvta(Space::Const, true, Src::Variable(1, 0)));
    assert_eq!(op("isspacep.shared p0, d1;"), Op::IsSpace { space: Space::Shared, dst: p(0), src: reg(d(1)) });
}

#[test]
fn what_is_illegal_is_refused() {
    refused(&[
        ("and.u32 r0, r1, r2;", "u32"),
        ("and.b32 r0, r1, !p2;", "no operand"),
        ("lop3.or.b32 r0|p0, r1, r2, r3, 1, p1;", "not supported"),
        ("lop3.b32 r0, r1, r2, r3, 256;", "8 bits"),
        ("shl.u32 r0, r1, r2;", "u32"),
        ("shl.b64 d0, d1, d2;", "d2"),
        ("shf.l.b32 r0, r1, r2, r3;", ".clamp or .wrap"),
        ("setp.lt.b32 p0, r1, r2;", "lt"),
        ("setp.hi.s32 p0, r1, r2;", "hi"),
        ("setp.nan.u32 p0, r1, r2;", "nan"),
        ("setp.eq.ftz.f64 p0, e1, e2;", "ftz"),
        ("setp.eq.and.u32 p0, r1, r2;", "missing"),
        ("setp.eq.u32 r0, r1, r2;", "r0"),
        ("setp.eq.f16 p0|p1, h1, h2;", "two results"),
        ("setp.u32 p0, r1, r2;", "comparison"),
        ("set.eq.u16.f32 h0, f1, f2;", "f32"),
        ("selp.f32 f0, f1, f2, r3;", "r3"),
        ("slct.f32.u32 f0, f1, f2, r3;", "u32"),
        ("mov.u8 h0, h1;", "u8"),
        ("mov.f16 h0, h1;", "f16"),
        ("mov.u32 r0, gv;", "64 bits"),
        ("mov.u16 h0, sv;", "32 or 64"),
        ("mov.u32 r0, %clock64;", "u64"),
        ("mov.u32 r0, %odd;", "not declared"),
        ("mov.u32 r0, %tid.w;", "not declared"),
        ("mov.b32 r0, {r1, r2};", "r1"),
        ("mov.b32 {h0, h1, h2}, r0;", "no 3 parts"),
        ("mov.u32 r0, {h0, h1};", "type of bits"),
        ("mov.u64 d0, kernel;", "function"),
        ("cvta.global.u32 r0, r1;", "32 bits"),
        ("cvta.shared.u64 d0, gv;", "space"),
        ("cvta.to.global.u64 d0, gv;", "no register"),
        ("cvta.u64 d0, d1;", "state space"),
        ("isspacep.global p0, r1;", "r1"),
    ]);
}
