//! Integer arithmetic.

use super::{Decoded, In, operands};
use crate::decode::reader::illegal;
use crate::program::{AluOp, Modifiers, Type};

const INTEGERS: &str = "u16 u32 u64 s16 s32 s64";
const WORDS: &str = "u32 u64 s32 s64";

pub(super) fn decode(name: &str, i: In) -> Decoded {
    match name {
        "add" | "sub" | "addc" | "subc" => add_sub(name, i),
        "mul" => mul(i),
        "mad" | "madc" => mad(name, i),
        "mul24" | "mad24" => mul24(name, i),
        "sad" => same(i, AluOp::Sad, INTEGERS, 3),
        "div" => same(i, AluOp::Div, INTEGERS, 2),
        "rem" => same(i, AluOp::Rem, INTEGERS, 2),
        "abs" => same(i, AluOp::Abs, "s16 s32 s64", 1),
        "neg" => same(i, AluOp::Neg, "s16 s32 s64", 1),
        "min" => min_max(i, AluOp::Min),
        "max" => min_max(i, AluOp::Max),
        "popc" => count(i, AluOp::Popc, "b32 b64"),
        "clz" => count(i, AluOp::Clz, "b32 b64"),
        "bfind" => {
            let shift_amount = i.flag("shiftamt");
            count(i, AluOp::Bfind { shift_amount }, WORDS)
        }
        "brev" => same(i, AluOp::Brev, "b32 b64", 1),
        "fns" => {
            let ty = i.ty("b32")?;
            operands(i, AluOp::Fns, ty, plain(), Type::B32, [Type::B32, Type::B32, Type::S32])
        }
        "bfe" => {
            let ty = i.ty(WORDS)?;
            operands(i, AluOp::Bfe, ty, plain(), ty, [ty, Type::U32, Type::U32])
        }
        "bfi" => {
            let ty = i.ty("b32 b64")?;
            operands(i, AluOp::Bfi, ty, plain(), ty, [ty, ty, Type::U32, Type::U32])
        }
        "szext" => {
            let wrap = wrap(i)?;
            let ty = i.ty("u32 s32")?;
            operands(i, AluOp::Szext { wrap }, ty, plain(), ty, [ty, Type::U32])
        }
        "bmsk" => {
            let wrap = wrap(i)?;
            let ty = i.ty("b32")?;
            operands(i, AluOp::Bmsk { wrap }, ty, plain(), ty, [Type::U32, Type::U32])
        }
        "dp4a" => dot(i, |a_signed, b_signed| AluOp::Dp4a { a_signed, b_signed }),
        "dp2a" => {
            let high = i.one(".lo or .hi", low_high)?;
            dot(i, |a_signed, b_signed| AluOp::Dp2a { a_signed, b_signed, high })
        }
        _ => Err("it takes no integers".into()),
    }
}

fn plain() -> Modifiers {
    Modifiers::default()
}

/// `.lo` and `.hi`; true is high.
fn low_high(name: &str) -> Option<bool> {
    match name {
        "lo" => Some(false),
        "hi" => Some(true),
        _ => None,
    }
}

/// `.clamp` or `.wrap`.
pub(super) fn wrap(i: In) -> Decoded<bool> {
    i.one(".clamp or .wrap", |name| match name {
        "clamp" => Some(false),
        "wrap" => Some(true),
        _ => None,
    })
}

/// The result and all `count` operands are of the type of the instruction.
fn same(i: In, op: AluOp, types: &str, count: usize) -> Decoded {
    let ty = i.ty(types)?;
    same_of(i, op, ty, plain(), count)
}

/// [`same`] behind the type.
pub(super) fn same_of(i: In, op: AluOp, ty: Type, modifiers: Modifiers, count: usize) -> Decoded {
    match count {
        1 => operands(i, op, ty, modifiers, ty, [ty]),
        2 => operands(i, op, ty, modifiers, ty, [ty, ty]),
        _ => operands(i, op, ty, modifiers, ty, [ty, ty, ty]),
    }
}

/// One operand, and a result of 32 bits.
fn count(i: In, op: AluOp, types: &str) -> Decoded {
    let ty = i.ty(types)?;
    operands(i, op, ty, plain(), Type::U32, [ty])
}

fn add_sub(name: &str, i: In) -> Decoded {
    let op = if name.starts_with("add") { AluOp::Add } else { AluOp::Sub };
    let carry_in = name.ends_with('c');
    let sat = !carry_in && i.flag("sat");
    let carry_out = !sat && i.flag("cc");
    let modifiers = Modifiers { sat, carry_in, carry_out, ..plain() };
    let ty = match (carry_in || carry_out, sat) {
        (true, _) => i.ty(WORDS)?,
        (_, true) => i.ty("s32")?,
        _ => i.ty("u16 u32 u64 s16 s32 s64 u16x2 s16x2")?,
    };
    if matches!(ty, Type::U16x2 | Type::S16x2) {
        i.needs(90)?;
        illegal(op == AluOp::Sub, ty.name())?;
    }
    same_of(i, op, ty, modifiers, 2)
}

fn mul(i: In) -> Decoded {
    let op = i.one(".lo, .hi or .wide", |name| match name {
        "lo" => Some(AluOp::MulLo),
        "hi" => Some(AluOp::MulHi),
        "wide" => Some(AluOp::MulWide),
        _ => None,
    })?;
    if op != AluOp::MulWide {
        return same(i, op, INTEGERS, 2);
    }
    let ty = i.ty("u16 u32 s16 s32")?;
    operands(i, op, ty, plain(), doubled(ty), [ty, ty])
}

/// `mad`, `mad.cc`, `madc`, `madc.cc`.
fn mad(name: &str, i: In) -> Decoded {
    let carry_in = name == "madc";
    let op = i.one(".lo, .hi or .wide", |name| match name {
        "lo" => Some(AluOp::MadLo),
        "hi" => Some(AluOp::MadHi),
        "wide" if !carry_in => Some(AluOp::MadWide),
        _ => None,
    })?;
    if op == AluOp::MadWide {
        let ty = i.ty("u16 u32 s16 s32")?;
        return operands(i, op, ty, plain(), doubled(ty), [ty, ty, doubled(ty)]);
    }
    let sat = op == AluOp::MadHi && !carry_in && i.flag("sat");
    let carry_out = !sat && i.flag("cc");
    let types = match (sat, carry_in || carry_out) {
        (true, _) => "s32",
        (_, true) => WORDS,
        _ => INTEGERS,
    };
    let ty = i.ty(types)?;
    same_of(i, op, ty, Modifiers { sat, carry_in, carry_out, ..plain() }, 3)
}

fn mul24(name: &str, i: In) -> Decoded {
    let high = i.one(".lo or .hi", low_high)?;
    let mad = name == "mad24";
    let op = match (mad, high) {
        (false, false) => AluOp::Mul24Lo,
        (false, true) => AluOp::Mul24Hi,
        (true, false) => AluOp::Mad24Lo,
        (true, true) => AluOp::Mad24Hi,
    };
    let sat = op == AluOp::Mad24Hi && i.flag("sat");
    let ty = i.ty(if sat { "s32" } else { "u32 s32" })?;
    same_of(i, op, ty, Modifiers { sat, ..plain() }, if mad { 3 } else { 2 })
}

/// The type of twice the width.
fn doubled(ty: Type) -> Type {
    match ty {
        Type::U16 => Type::U32,
        Type::S16 => Type::S32,
        Type::U32 => Type::U64,
        _ => Type::S64,
    }
}

fn min_max(i: In, op: AluOp) -> Decoded {
    let relu = i.flag("relu");
    let ty = i.ty(if relu { "s32 s16x2" } else { "u16 u32 u64 s16 s32 s64 u16x2 s16x2" })?;
    if relu || matches!(ty, Type::U16x2 | Type::S16x2) {
        i.needs(90)?;
    }
    same_of(i, op, ty, Modifiers { relu, ..plain() }, 2)
}

/// `dp4a` and `dp2a`: the types of a and b, then `d, a, b, c`.
fn dot(i: In, op: impl Fn(bool, bool) -> AluOp) -> Decoded {
    let a = i.ty("u32 s32")?.is_signed();
    let b = i.ty("u32 s32")?.is_signed();
    // Signed as soon as one of them is.
    let ty = if a || b { Type::S32 } else { Type::U32 };
    operands(i, op(a, b), ty, plain(), ty, [Type::B32, Type::B32, ty])
}
