//! Which instructions there are: the syntax lines of the PTX ISA as tables of types, modifiers and roundings.

use super::{Operands, eval};
use crate::program::{Alu, AluOp, Modifiers, Rounding, Type};

/// Whether PTX has this operation with this type and these modifiers, and [`eval`] knows it: what the decoder asks, so that
/// the executor need not look at what `eval` returns.
#[must_use]
pub fn supports(alu: &Alu) -> bool {
    let m = &alu.modifiers;
    let (modifiers, roundings) = allowed(alu);
    let none = [0; 32];
    has_type(alu)
        && is_within(m, &modifiers)
        && (roundings.contains(&m.rounding) || roundings.is_empty() && m.rounding == Rounding::default())
        && !(m.explicit_rounding && (roundings.is_empty() || m.approx || m.full))
        && eval(alu, Operands { a: &none, b: &none, c: &none, d: &none }, 8, 0, &mut 0, &mut [0; 32])
}

/// Whether each modifier of `m` is one of `allowed`.
fn is_within(m: &Modifiers, allowed: &Modifiers) -> bool {
    let flags = |m: &Modifiers| {
        [m.ftz, m.sat, m.satfinite, m.relu, m.nan, m.xorsign_abs, m.approx, m.full, m.carry_out, m.carry_in]
    };
    flags(m).into_iter().zip(flags(allowed)).all(|(has, may)| !has || may)
}

/// The types of operations that [`eval`] would do for more types than PTX does.
fn has_type(alu: &Alu) -> bool {
    use Type::{B16, B32, B64, F16, F16x2, F32, F64, Pred, S32, S64, U32, U64};
    let ty = alu.ty;
    match alu.op {
        AluOp::Mov => ty == Pred || ty.bytes() > 1,
        AluOp::Selp | AluOp::Slct { .. } => matches!(ty.bytes(), 2 | 4 | 8) && !matches!(ty, F16 | F16x2),
        AluOp::And | AluOp::Or | AluOp::Xor | AluOp::Not => matches!(ty, Pred | B16 | B32 | B64),
        AluOp::Cnot | AluOp::Shl => matches!(ty, B16 | B32 | B64),
        AluOp::Popc | AluOp::Clz | AluOp::Brev | AluOp::Bfi => matches!(ty, B32 | B64),
        AluOp::Bfe | AluOp::Bfind { .. } => matches!(ty, U32 | U64 | S32 | S64),
        AluOp::Szext { .. } | AluOp::Dp4a { .. } | AluOp::Dp2a { .. } => matches!(ty, U32 | S32),
        AluOp::Fns
        | AluOp::Bmsk { .. }
        | AluOp::Lop3 { .. }
        | AluOp::ShfL { .. }
        | AluOp::ShfR { .. }
        | AluOp::Prmt(_) => ty == B32,
        AluOp::Min3 | AluOp::Max3 => ty == F32,
        AluOp::Copysign | AluOp::Testp(_) => matches!(ty, F32 | F64),
        _ => true,
    }
}

const NONE: Modifiers = Modifiers {
    rounding: Rounding::Rn,
    explicit_rounding: false,
    ftz: false,
    sat: false,
    satfinite: false,
    relu: false,
    nan: false,
    xorsign_abs: false,
    approx: false,
    full: false,
    carry_out: false,
    carry_in: false,
};
const FTZ: Modifiers = Modifiers { ftz: true, ..NONE };
const SAT: Modifiers = Modifiers { sat: true, ..NONE };
const FTZ_SAT: Modifiers = Modifiers { ftz: true, sat: true, ..NONE };
const RELU: Modifiers = Modifiers { relu: true, ..NONE };
const CARRY: Modifiers = Modifiers { carry_out: true, carry_in: true, ..NONE };
const APPROX: Modifiers = Modifiers { approx: true, ..NONE };
const APPROX_FTZ: Modifiers = Modifiers { approx: true, ftz: true, ..NONE };

const WHOLE: &[Rounding] = &[];
const NEAREST: &[Rounding] = &[Rounding::Rn];
const ALL: &[Rounding] = &[Rounding::Rn, Rounding::Rz, Rounding::Rm, Rounding::Rp];

/// The modifiers that an operation may have, and its roundings (none for what is not rounded).
fn allowed(alu: &Alu) -> (Modifiers, &'static [Rounding]) {
    use Type::{Bf16, Bf16x2, F16, F16x2, F32, F64, S16x2, S32, S64, U32, U64};
    let (m, ty) = (&alu.modifiers, alu.ty);
    let has_carry = m.carry_in || m.carry_out;
    match (alu.op, ty) {
        (AluOp::Add | AluOp::Sub, S32) if !has_carry => (SAT, WHOLE),
        (AluOp::Add | AluOp::Sub | AluOp::MadLo | AluOp::MadHi, U32 | S32 | U64 | S64) if has_carry => (CARRY, WHOLE),
        (AluOp::MadHi | AluOp::Mad24Hi, S32) => (SAT, WHOLE),
        (AluOp::Min | AluOp::Max, S32 | S16x2) => (RELU, WHOLE),

        (AluOp::Add | AluOp::Sub | AluOp::Mul | AluOp::Fma, F32) => (FTZ_SAT, ALL),
        (AluOp::Add | AluOp::Sub | AluOp::Mul | AluOp::Fma, F64) => (NONE, ALL),
        (AluOp::Fma, F16 | F16x2) if m.relu => (Modifiers { relu: true, ..FTZ }, NEAREST),
        (AluOp::Add | AluOp::Sub | AluOp::Mul | AluOp::Fma, F16 | F16x2) => (FTZ_SAT, NEAREST),
        (AluOp::Fma, Bf16 | Bf16x2) => (RELU, NEAREST),
        (AluOp::Add | AluOp::Sub | AluOp::Mul, Bf16 | Bf16x2) => (NONE, NEAREST),
        (AluOp::Div, F32) => (Modifiers { full: true, ..APPROX_FTZ }, ALL),
        (AluOp::Rcp | AluOp::Sqrt, F32) => (APPROX_FTZ, ALL),
        // Approximate reciprocals of f64 are always `.ftz`.
        (AluOp::Rcp, F64) if m.approx && m.ftz => (APPROX_FTZ, WHOLE),
        (AluOp::Div | AluOp::Rcp | AluOp::Sqrt, F64) => (NONE, ALL),
        (AluOp::Rsqrt, F32 | F64) | (AluOp::Sin | AluOp::Cos | AluOp::Lg2, F32) => (APPROX_FTZ, WHOLE),
        (AluOp::Ex2, F32 | Bf16 | Bf16x2) => (APPROX_FTZ, WHOLE),
        (AluOp::Ex2 | AluOp::Tanh, _) => (APPROX, WHOLE),
        (AluOp::Abs | AluOp::Neg, F32 | F16 | F16x2) => (FTZ, WHOLE),
        (AluOp::Min | AluOp::Max, F32 | F16 | F16x2) => (Modifiers { nan: true, xorsign_abs: true, ..FTZ }, WHOLE),
        (AluOp::Min | AluOp::Max, Bf16 | Bf16x2) => (Modifiers { nan: true, xorsign_abs: true, ..NONE }, WHOLE),
        (AluOp::Min3 | AluOp::Max3, F32) => (Modifiers { nan: true, ..FTZ }, WHOLE),

        (AluOp::Slct { float_selector: true }, _) | (AluOp::Set { .. }, F32 | F16 | F16x2) => (FTZ, WHOLE),
        (AluOp::CvtPack { .. }, _) => (SAT, WHOLE),
        (AluOp::Cvt { to, integer_rounding }, from) => allowed_in_cvt(from, to, integer_rounding),
        _ => (NONE, WHOLE),
    }
}

/// `cvt` is rounded where a float is cut; `.ftz` needs an f32, `.relu` and `.satfinite` are for f32 into something narrower.
fn allowed_in_cvt(from: Type, to: Type, integer_rounding: bool) -> (Modifiers, &'static [Rounding]) {
    use Type::{E4m3x2, E5m2x2, F16x2, F32, Tf32};
    const TO_TF32: &[Rounding] = &[Rounding::Rn, Rounding::Rz, Rounding::Rna];
    let is_packed = |ty| matches!(ty, F16x2 | Type::Bf16x2 | E4m3x2 | E5m2x2);
    let narrow = is_packed(to) || to == Tf32;
    let to_half = matches!(to, Type::F16 | Type::Bf16) && from == F32;
    let modifiers = Modifiers {
        ftz: (from == F32 || to == F32) && !narrow,
        sat: !narrow,
        relu: narrow || to_half,
        satfinite: narrow || to_half,
        ..NONE
    };
    let roundings = match (from.is_float(), to.is_float()) {
        (false, false) => WHOLE,
        (_, true) if to == Tf32 => TO_TF32,
        _ if matches!(to, E4m3x2 | E5m2x2) || matches!(from, E4m3x2 | E5m2x2) => NEAREST,
        (true, true) if (from == to || to.bytes() > from.bytes()) && !integer_rounding => WHOLE,
        _ => ALL,
    };
    (modifiers, roundings)
}
