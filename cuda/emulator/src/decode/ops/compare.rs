//! Comparisons and selections.

use super::{Decoded, In, NONE, alu, operands};
use crate::decode::reader::illegal;
use crate::program::{AluOp, Combine, Compare, Modifiers, Op, Type};

const SOURCES: &str = "b16 b32 b64 u16 u32 u64 s16 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64";

pub(super) fn decode(name: &str, i: In) -> Decoded {
    match name {
        "setp" => setp(i),
        "set" => set(i),
        "selp" => selp(i),
        _ => slct(i),
    }
}

fn compare(name: &str) -> Option<Compare> {
    Some(match name {
        "eq" => Compare::Eq,
        "ne" => Compare::Ne,
        "lt" => Compare::Lt,
        "le" => Compare::Le,
        "gt" => Compare::Gt,
        "ge" => Compare::Ge,
        "lo" => Compare::Lo,
        "ls" => Compare::Ls,
        "hi" => Compare::Hi,
        "hs" => Compare::Hs,
        "equ" => Compare::Equ,
        "neu" => Compare::Neu,
        "ltu" => Compare::Ltu,
        "leu" => Compare::Leu,
        "gtu" => Compare::Gtu,
        "geu" => Compare::Geu,
        "num" => Compare::Num,
        "nan" => Compare::Nan,
        _ => return None,
    })
}

fn combine(name: &str) -> Option<Combine> {
    Some(match name {
        "and" => Combine::And,
        "or" => Combine::Or,
        "xor" => Combine::Xor,
        _ => return None,
    })
}

/// Bits know only equality, `lo ls hi hs` are for unsigned numbers, and those that say something of NaN for floats.
fn legal(compare: Compare, ty: Type) -> Decoded<()> {
    let bits = matches!(ty, Type::B16 | Type::B32 | Type::B64);
    let ok = match compare {
        Compare::Eq | Compare::Ne => true,
        Compare::Lt | Compare::Le | Compare::Gt | Compare::Ge => !bits,
        Compare::Lo | Compare::Ls | Compare::Hi | Compare::Hs => !bits && !ty.is_signed() && !ty.is_float(),
        _ => ty.is_float(),
    };
    illegal(!ok, &format!("{compare:?}").to_lowercase())
}

fn is_bf16(ty: Type) -> bool {
    matches!(ty, Type::Bf16 | Type::Bf16x2)
}

fn legal_ftz(ftz: bool, ty: Type) -> Decoded<()> {
    illegal(ftz && !matches!(ty, Type::F32 | Type::F16 | Type::F16x2), "ftz")
}

/// `setp.cmp[.bool][.ftz].type p[|q], a, b[, [!]c]`
fn setp(i: In) -> Decoded {
    let compare = i.one("a comparison", compare)?;
    let combine = i.choice(combine);
    let ftz = i.flag("ftz");
    let ty = i.ty(SOURCES)?;
    legal(compare, ty)?;
    legal_ftz(ftz, ty)?;
    if is_bf16(ty) {
        i.needs(90)?;
    }
    let (p, q) = i.dst_and_predicate(Type::Pred)?;
    illegal(q.is_some() && matches!(ty, Type::F16 | Type::Bf16), "f16 or .bf16 with two results")?;
    let (a, b) = (i.src(ty)?, i.src(ty)?);
    let c = if combine.is_some() { i.predicate()? } else { NONE };
    Ok(Op::Setp { compare, ty, ftz, combine, p, q, a, b, c })
}

/// `set.cmp[.bool][.ftz].dtype.stype d, a, b[, [!]c]`
fn set(i: In) -> Decoded {
    let compare = i.one("a comparison", compare)?;
    let combine = i.choice(combine);
    let m = Modifiers { ftz: i.flag("ftz"), ..Modifiers::default() };
    let to = i.ty("u16 s16 u32 s32 f32 f16 f16x2 bf16 bf16x2")?;
    let ty = i.ty(SOURCES)?;
    legal(compare, ty)?;
    legal_ftz(m.ftz, ty)?;
    let half = matches!(ty, Type::F16 | Type::Bf16);
    let fits = match to {
        Type::F16x2 => ty == Type::F16x2,
        Type::Bf16x2 => ty == Type::Bf16x2,
        Type::Bf16 => !matches!(ty, Type::F16x2 | Type::Bf16x2),
        Type::F32 if half => false,
        Type::U16 | Type::S16 => half,
        Type::F16 => !matches!(ty, Type::F16x2 | Type::Bf16 | Type::Bf16x2),
        // Of two halves, each half of the result says whether it holds.
        _ => true,
    };
    illegal(!fits, ty.name())?;
    if is_bf16(ty) || is_bf16(to) {
        i.needs(90)?;
        illegal(m.ftz, "ftz")?;
    }
    let op = AluOp::Set { compare, combine, to };
    let dst = i.dst(to)?;
    let (a, b) = (i.src(ty)?, i.src(ty)?);
    let c = if combine.is_some() { i.predicate()? } else { NONE };
    Ok(alu(op, ty, m, dst, to, [a, b, c, NONE]))
}

/// `selp.type d, a, b, c`
fn selp(i: In) -> Decoded {
    let ty = i.ty("b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64")?;
    let dst = i.dst(ty)?;
    let (a, b) = (i.src(ty)?, i.src(ty)?);
    let c = i.predicate()?;
    Ok(alu(AluOp::Selp, ty, Modifiers::default(), dst, ty, [a, b, c, NONE]))
}

/// `slct[.ftz].dtype.{s32,f32} d, a, b, c`
fn slct(i: In) -> Decoded {
    let m = Modifiers { ftz: i.flag("ftz"), ..Modifiers::default() };
    let ty = i.ty("b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64")?;
    let selector = i.ty("s32 f32")?;
    let float_selector = selector == Type::F32;
    illegal(m.ftz && !float_selector, "ftz")?;
    operands(i, AluOp::Slct { float_selector }, ty, m, ty, [ty, ty, selector])
}
