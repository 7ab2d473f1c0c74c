//! Logic, shifts and permutations.

use super::integer::{same_of, wrap};
use super::{Decoded, In, NONE, alu, operands};
use crate::program::{AluOp, Modifiers, PrmtMode, Type};

pub(super) fn decode(name: &str, i: In) -> Decoded {
    match name {
        "and" => logic(i, AluOp::And, 2),
        "or" => logic(i, AluOp::Or, 2),
        "xor" => logic(i, AluOp::Xor, 2),
        "not" => logic(i, AluOp::Not, 1),
        "cnot" => {
            let ty = i.ty("b16 b32 b64")?;
            same_of(i, AluOp::Cnot, ty, Modifiers::default(), 1)
        }
        "lop3" => lop3(i),
        "shl" => shift(i, AluOp::Shl, "b16 b32 b64"),
        "shr" => shift(i, AluOp::Shr, "b16 b32 b64 u16 u32 u64 s16 s32 s64"),
        "shf" => funnel(i),
        _ => prmt(i),
    }
}

fn logic(i: In, op: AluOp, count: usize) -> Decoded {
    let ty = i.ty("pred b16 b32 b64")?;
    if ty != Type::Pred {
        return same_of(i, op, ty, Modifiers::default(), count);
    }
    let dst = i.dst(ty)?;
    let a = i.predicate()?;
    let b = if count == 2 { i.predicate()? } else { NONE };
    Ok(alu(op, ty, Modifiers::default(), dst, ty, [a, b, NONE, NONE]))
}

/// `lop3.b32 d, a, b, c, table`
fn lop3(i: In) -> Decoded {
    i.refuse("or and xor", " (a predicate as second result)")?;
    let ty = i.ty("b32")?;
    let dst = i.dst(ty)?;
    let values = [i.src(ty)?, i.src(ty)?, i.src(ty)?, NONE];
    let table = i.constant()?;
    let table = u8::try_from(table).map_err(|_| format!("the table {table} has more than 8 bits"))?;
    Ok(alu(AluOp::Lop3 { table }, ty, Modifiers::default(), dst, ty, values))
}

/// The amount has 32 bits whatever is shifted.
fn shift(i: In, op: AluOp, types: &str) -> Decoded {
    let ty = i.ty(types)?;
    operands(i, op, ty, Modifiers::default(), ty, [ty, Type::U32])
}

fn funnel(i: In) -> Decoded {
    let left = i.one(".l or .r", |name| match name {
        "l" => Some(true),
        "r" => Some(false),
        _ => None,
    })?;
    let wrap = wrap(i)?;
    let ty = i.ty("b32")?;
    let op = if left { AluOp::ShfL { wrap } } else { AluOp::ShfR { wrap } };
    operands(i, op, ty, Modifiers::default(), ty, [ty, ty, Type::U32])
}

fn prmt(i: In) -> Decoded {
    let ty = i.ty("b32")?;
    let mode = i.choice(|name| {
        Some(match name {
            "f4e" => PrmtMode::F4e,
            "b4e" => PrmtMode::B4e,
            "rc8" => PrmtMode::Rc8,
            "ecl" => PrmtMode::Ecl,
            "ecr" => PrmtMode::Ecr,
            "rc16" => PrmtMode::Rc16,
            _ => return None,
        })
    });
    let op = AluOp::Prmt(mode.unwrap_or(PrmtMode::Index));
    operands(i, op, ty, Modifiers::default(), ty, [ty, ty, ty])
}
