//! What the tests of the decoder share: a kernel around one instruction, with registers of known numbers.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part")]

use kinglet_emulator::error::{Error, Result};
use kinglet_emulator::program::{Alu, AluOp, Modifiers, Op, Program, Reg, Rounding, Src, Type};

/// Registers `p0..p3`, `h0..h3` (b16), `r0..r7` (b32), `d0..d7` (b64), `f0..f7` (f32), `e0..e3` (f64), numbered from 0 in this
/// order, then the wide families `%r<1000>`.
const HEAD: &str = "
.address_size 64
.global .align 16 .b8 gv[64];
.const .align 16 .b8 cv[64];
.shared .align 16 .b8 sv[64];
.extern .shared .align 32 .b8 dyn[];
.visible .entry kernel(.param .u64 kp, .param .align 8 .b8 ks[24])
{
.reg .pred p0, p1, p2, p3;
.reg .b16 h0, h1, h2, h3;
.reg .b32 r0, r1, r2, r3, r4, r5, r6, r7;
.reg .b64 d0, d1, d2, d3, d4, d5, d6, d7;
.reg .f32 f0, f1, f2, f3, f4, f5, f6, f7;
.reg .f64 e0, e1, e2, e3;
.reg .b32 %r<1000>;
.local .align 16 .b8 lv[64];
";

/// The line that the body begins at.
pub const FIRST_LINE: u32 = 18;

pub fn p(n: u32) -> Reg {
    n
}
pub fn h(n: u32) -> Reg {
    4 + n
}
pub fn r(n: u32) -> Reg {
    8 + n
}
pub fn d(n: u32) -> Reg {
    16 + n
}
pub fn f(n: u32) -> Reg {
    24 + n
}
pub fn e(n: u32) -> Reg {
    32 + n
}

/// A module with one kernel of this body.
pub fn text(target: &str, body: &str) -> String {
    format!(".version 8.8\n.target {target}{HEAD}{body}\nret;\n}}\n")
}

pub fn parse_for(target: &str, body: &str) -> Result<Program> {
    Program::parse(&text(target, body))
}

pub fn parse(body: &str) -> Result<Program> {
    parse_for("sm_90", body)
}

/// The operations of a body, without the closing `ret`.
pub fn ops(body: &str) -> Vec<Op> {
    let program = parse(body).unwrap_or_else(|error| panic!("{body}: {error}"));
    let code = &program.kernels[0].code;
    code[..code.len() - 1].iter().map(|instruction| instruction.op.clone()).collect()
}

/// The one operation of a body of one instruction.
pub fn op(instruction: &str) -> Op {
    let ops = ops(instruction);
    assert_eq!(ops.len(), 1, "{instruction}");
    ops[0].clone()
}

/// The error of a body of one line, without the line.
pub fn error(body: &str) -> String {
    error_for("sm_90", body)
}

pub fn error_for(target: &str, body: &str) -> String {
    match parse_for(target, body) {
        Err(Error::Parse { line, what }) => {
            assert_eq!(line, FIRST_LINE, "{body}: {what}");
            what
        }
        other => panic!("{body}: an error is expected, not {:?}", other.map(|program| program.kernels[0].code.clone())),
    }
}

/// Every line is refused with an error that has this in it.
pub fn refused(table: &[(&str, &str)]) {
    for (body, wanted) in table {
        let what = error(body);
        let name = body.split([' ', ';']).next().unwrap_or_default();
        assert!(what.starts_with(&format!("{name}: ")), "{body}: {what}");
        assert!(what.contains(wanted), "{body}: {what}");
    }
}

pub fn reg(register: Reg) -> Src {
    Src::Reg(register)
}

pub fn imm(bits: u64) -> Src {
    Src::Imm(bits)
}

pub fn plain() -> Modifiers {
    Modifiers::default()
}

pub fn rounded(rounding: Rounding) -> Modifiers {
    Modifiers { rounding, explicit_rounding: true, ..plain() }
}

/// An [`Op::Alu`] with up to four values.
pub fn alu(op: AluOp, ty: Type, modifiers: Modifiers, dst: Reg, reg_bytes: u32, values: &[Src]) -> Op {
    let value = |index: usize| values.get(index).copied().unwrap_or(Src::Imm(0));
    Op::Alu { alu: Alu { op, ty, modifiers }, dst, reg_bytes, a: value(0), b: value(1), c: value(2), d: value(3) }
}

/// The values of registers.
pub fn regs<const N: usize>(registers: [Reg; N]) -> [Src; N] {
    registers.map(Src::Reg)
}
