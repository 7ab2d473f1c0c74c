//! Floating-point arithmetic.

use super::integer::same_of;
use super::{Decoded, In, operands};
use crate::decode::reader::illegal;
use crate::program::{AluOp, Modifiers, Rounding, TestP, Type};

const HALVES: [Type; 4] = [Type::F16, Type::F16x2, Type::Bf16, Type::Bf16x2];

pub(super) fn decode(name: &str, i: In) -> Decoded {
    match name {
        "add" => add_sub_mul(i, AluOp::Add),
        "sub" => add_sub_mul(i, AluOp::Sub),
        "mul" => add_sub_mul(i, AluOp::Mul),
        "fma" | "mad" => fma(name, i),
        "div" => div(i),
        "min" => min_max(i, AluOp::Min, AluOp::Min3),
        "max" => min_max(i, AluOp::Max, AluOp::Max3),
        "abs" => sign(i, AluOp::Abs),
        "neg" => sign(i, AluOp::Neg),
        "rcp" => root(i, AluOp::Rcp),
        "sqrt" => root(i, AluOp::Sqrt),
        "rsqrt" => rsqrt(i),
        "sin" => approximate(i, AluOp::Sin, "f32"),
        "cos" => approximate(i, AluOp::Cos, "f32"),
        "lg2" => approximate(i, AluOp::Lg2, "f32"),
        "ex2" => approximate(i, AluOp::Ex2, "f32 f16 f16x2 bf16 bf16x2"),
        "tanh" => approximate(i, AluOp::Tanh, "f32 f16 f16x2 bf16 bf16x2"),
        "copysign" => {
            let ty = i.ty("f32 f64")?;
            same_of(i, AluOp::Copysign, ty, Modifiers::default(), 2)
        }
        _ => {
            let test = i.one("a test", test)?;
            let ty = i.ty("f32 f64")?;
            operands(i, AluOp::Testp(test), ty, Modifiers::default(), Type::Pred, [ty])
        }
    }
}

fn test(name: &str) -> Option<TestP> {
    Some(match name {
        "finite" => TestP::Finite,
        "infinite" => TestP::Infinite,
        "number" => TestP::Number,
        "notanumber" => TestP::NotANumber,
        "normal" => TestP::Normal,
        "subnormal" => TestP::Subnormal,
        _ => return None,
    })
}

fn is_bf16(ty: Type) -> bool {
    matches!(ty, Type::Bf16 | Type::Bf16x2)
}

/// `{.rnd}{.ftz}{.sat}.f32`, `{.rnd}.f64`, `{.rn}{.ftz}{.sat}.f16[x2]`, `{.rn}.bf16[x2]`.
fn add_sub_mul(i: In, op: AluOp) -> Decoded {
    let mut m = Modifiers::default();
    i.rounding(&mut m);
    m.ftz = i.flag("ftz");
    m.sat = i.flag("sat");
    let ty = i.ty("f32 f64 f16 f16x2 bf16 bf16x2")?;
    illegal(ty != Type::F32 && ty != Type::F64 && m.rounding != Rounding::Rn, "rz")?;
    illegal(m.ftz && (ty == Type::F64 || is_bf16(ty)), "ftz")?;
    illegal(m.sat && (ty == Type::F64 || is_bf16(ty)), "sat")?;
    if is_bf16(ty) {
        i.needs(90)?;
    }
    same_of(i, op, ty, m, 2)
}

/// `fma.rnd{.ftz}{.sat}.f32`, `fma.rnd.f64`, `fma.rn{.ftz}{.sat|.relu}.f16[x2]`, `fma.rn{.relu}.bf16[x2]`; `mad` for f32 and
/// f64.
fn fma(name: &str, i: In) -> Decoded {
    let mut m = Modifiers::default();
    i.rounding(&mut m);
    m.ftz = i.flag("ftz");
    m.sat = i.flag("sat");
    m.relu = !m.sat && i.flag("relu");
    let ty = i.ty(if name == "mad" { "f32 f64" } else { "f32 f64 f16 f16x2 bf16 bf16x2" })?;
    if !m.explicit_rounding {
        return Err("the rounding is missing".into());
    }
    let half = HALVES.contains(&ty);
    illegal(half && m.rounding != Rounding::Rn, "rz")?;
    illegal(m.relu && !half, "relu")?;
    illegal(m.ftz && (ty == Type::F64 || is_bf16(ty)), "ftz")?;
    illegal(m.sat && (ty == Type::F64 || is_bf16(ty)), "sat")?;
    same_of(i, AluOp::Fma, ty, m, 3)
}

/// `div.approx{.ftz}.f32`, `div.full{.ftz}.f32`, `div.rnd{.ftz}.f32`, `div.rnd.f64`.
fn div(i: In) -> Decoded {
    let mut m = Modifiers { approx: i.flag("approx"), ..Modifiers::default() };
    m.full = !m.approx && i.flag("full");
    if !m.approx && !m.full {
        i.rounding(&mut m);
    }
    m.ftz = i.flag("ftz");
    let ty = i.ty("f32 f64")?;
    illegal(ty == Type::F64 && m.ftz, "ftz")?;
    illegal(ty == Type::F64 && (m.approx || m.full), "approx")?;
    rounded(&m)?;
    same_of(i, AluOp::Div, ty, m, 2)
}

/// One of `.approx`, `.full` and a rounding must be there.
fn rounded(m: &Modifiers) -> Decoded<()> {
    if m.approx || m.full || m.explicit_rounding { Ok(()) } else { Err("the rounding or .approx is missing".into()) }
}

/// `{.ftz}{.NaN}{.xorsign.abs}.f32`, `.f64`, `{.ftz}{.NaN}{.xorsign.abs}.f16[x2]`, `{.NaN}{.xorsign.abs}.bf16[x2]`, and f32
/// with three operands.
fn min_max(i: In, op: AluOp, op3: AluOp) -> Decoded {
    let mut m = Modifiers { ftz: i.flag("ftz"), nan: i.flag("NaN"), ..Modifiers::default() };
    if i.flag("xorsign") {
        i.need("abs")?;
        m.xorsign_abs = true;
    }
    let three = i.operands.len() == 4;
    i.refuse("abs", " without .xorsign")?;
    let ty = i.ty("f32 f64 f16 f16x2 bf16 bf16x2")?;
    illegal(m.ftz && (ty == Type::F64 || is_bf16(ty)), "ftz")?;
    illegal(ty == Type::F64 && m.nan, "NaN")?;
    illegal(m.xorsign_abs && (ty == Type::F64 || three), "xorsign")?;
    if m.xorsign_abs {
        i.needs(86)?;
    }
    if three && ty == Type::F32 {
        i.needs(100)?;
        return same_of(i, op3, ty, m, 3);
    }
    same_of(i, op, ty, m, 2)
}

/// `abs` and `neg`: `{.ftz}.f32`, `.f64`, `{.ftz}.f16[x2]`, `.bf16[x2]`.
fn sign(i: In, op: AluOp) -> Decoded {
    let m = Modifiers { ftz: i.flag("ftz"), ..Modifiers::default() };
    let ty = i.ty("f32 f64 f16 f16x2 bf16 bf16x2")?;
    illegal(m.ftz && (ty == Type::F64 || is_bf16(ty)), "ftz")?;
    same_of(i, op, ty, m, 1)
}

/// `rcp` and `sqrt`: `.approx{.ftz}.f32`, `.rnd{.ftz}.f32`, `.rnd.f64`; also `rcp.approx.ftz.f64`.
fn root(i: In, op: AluOp) -> Decoded {
    let mut m = Modifiers { approx: i.flag("approx"), ..Modifiers::default() };
    if !m.approx {
        i.rounding(&mut m);
    }
    m.ftz = i.flag("ftz");
    let ty = i.ty("f32 f64")?;
    rounded(&m)?;
    if ty == Type::F64 {
        illegal(m.approx != m.ftz, if m.approx { "approx without .ftz" } else { "ftz" })?;
        illegal(m.approx && op != AluOp::Rcp, "approx")?;
    }
    same_of(i, op, ty, m, 1)
}

/// `rsqrt.approx{.ftz}.f32`, `rsqrt.approx{.ftz}.f64`.
fn rsqrt(i: In) -> Decoded {
    approximate(i, AluOp::Rsqrt, "f32 f64")
}

/// `.approx{.ftz}.f32`; of the halves, bf16 flushes subnormals and says so (`ex2.approx.ftz.bf16`), and tanh never does.
fn approximate(i: In, op: AluOp, types: &str) -> Decoded {
    i.need("approx")?;
    let m = Modifiers { approx: true, ftz: i.flag("ftz"), ..Modifiers::default() };
    let ty = i.ty(types)?;
    illegal(m.ftz && op == AluOp::Tanh, "ftz")?;
    illegal(m.ftz && matches!(ty, Type::F16 | Type::F16x2), "ftz")?;
    if is_bf16(ty) {
        i.needs(90)?;
        illegal(!m.ftz && op == AluOp::Ex2, "bf16 without .ftz")?;
    }
    same_of(i, op, ty, m, 1)
}
