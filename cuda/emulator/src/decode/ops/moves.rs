//! `mov`, `cvta`, `isspacep`.

use super::{Decoded, In, NONE, alu};
use crate::decode::special::special;
use crate::program::{AluOp, Modifiers, Op, Space, Src, Type};
use crate::syntax::Operand;

pub(super) fn decode(name: &str, i: In) -> Decoded {
    match name {
        "mov" => mov(i),
        "cvta" => cvta(i),
        _ => isspacep(i),
    }
}

/// A state space, as it stands in a name.
pub(super) fn space(name: &str) -> Option<Space> {
    Some(match name {
        "global" => Space::Global,
        "shared" | "shared::cta" => Space::Shared,
        "shared::cluster" => Space::SharedCluster,
        "local" => Space::Local,
        "const" => Space::Const,
        "param" | "param::entry" => Space::Param,
        _ => return None,
    })
}

/// Clusters came with sm_90.
pub(super) fn needs_cluster(i: In, space: Space) -> Decoded<()> {
    if space == Space::SharedCluster { i.needs(90) } else { Ok(()) }
}

/// `mov.type d, a` of registers, special registers, numbers and addresses; `mov.type d, {a, b}` packs, `mov.type {a, b}, d`
/// unpacks.
fn mov(i: In) -> Decoded {
    let ty = i.ty("pred b16 b32 b64 b128 u16 u32 u64 s16 s32 s64 f32 f64")?;
    if ty == Type::B128 {
        return Err("not supported: values of 128 bits".into());
    }
    match i.operands {
        [Operand::Vector(parts), _] => unpack(i, ty, parts.len()),
        [_, Operand::Vector(parts)] => pack(i, ty, parts.len()),
        _ => {
            let dst = i.dst(ty)?;
            let a = moved(i, ty)?;
            Ok(alu(AluOp::Mov, ty, Modifiers::default(), dst, ty, [a, NONE, NONE, NONE]))
        }
    }
}

fn moved(i: In, ty: Type) -> Decoded<Src> {
    let (name, addend) = match i.operands.first() {
        Some(Operand::Sum(name, addend)) => (*name, *addend),
        Some(Operand::Name(name)) if special(name).is_none() && i.builder.register(name).is_err() => (*name, 0),
        _ => return i.src_or_special(ty, false),
    };
    i.operand()?;
    if name == "_" || i.builder.find(name).is_none() {
        return Err(format!("{name} is not declared"));
    }
    if ty.bytes() < 4 || ty.is_float() {
        return Err(format!("the address of {name} needs a type of 32 or 64 bits"));
    }
    let address = i.address_of(name, addend)?;
    match address {
        Src::Variable(index, _)
            if ty.bytes() == 4 && i.builder.module.variables[index as usize].space == Space::Global =>
        {
            Err(format!("the address of {name} has 64 bits"))
        }
        address => Ok(address),
    }
}

/// The type of one of `count` parts.
fn part(ty: Type, count: usize) -> Decoded<Type> {
    if !matches!(ty, Type::B16 | Type::B32 | Type::B64) {
        return Err(format!("parts need a type of bits, not .{}", ty.name()));
    }
    match (count, ty.bytes() as usize / count.max(1)) {
        (2 | 4, 1) => Ok(Type::B8),
        (2 | 4, 2) => Ok(Type::B16),
        (2, 4) => Ok(Type::B32),
        _ => Err(format!(".{} has no {count} parts", ty.name())),
    }
}

fn pack(i: In, ty: Type, count: usize) -> Decoded {
    let part = part(ty, count)?;
    let dst = i.dst(ty)?;
    Ok(Op::Pack { dst, part_bytes: part.bytes(), parts: i.sources(count, part, false)? })
}

fn unpack(i: In, ty: Type, count: usize) -> Decoded {
    let part = part(ty, count)?;
    let (parts, _) = i.destinations(count, part, false)?;
    Ok(Op::Unpack { part_bytes: part.bytes(), parts, src: i.src(ty)? })
}

/// `cvta.space.u64 d, a` and `cvta.to.space.u64 d, a`; `a` may be a variable.
fn cvta(i: In) -> Decoded {
    let to_generic = !i.flag("to");
    let space = i.one("a state space", space)?;
    needs_cluster(i, space)?;
    let ty = i.ty("u64 u32")?;
    if ty == Type::U32 {
        return Err("not supported: addresses of 32 bits".into());
    }
    let dst = i.dst(ty)?;
    let src = if to_generic { variable(i, space)? } else { None };
    let src = match src {
        Some(src) => src,
        None => i.src(ty)?,
    };
    Ok(Op::Cvta { space, to_generic, bytes: ty.bytes(), dst, src })
}

/// The address of a variable in `space`, if the next operand is one.
fn variable(i: In, space: Space) -> Decoded<Option<Src>> {
    let (name, addend) = match i.operands.first() {
        Some(Operand::Sum(name, addend)) => (*name, *addend),
        Some(Operand::Name(name)) if i.builder.register(name).is_err() => (*name, 0),
        _ => return Ok(None),
    };
    i.operand()?;
    i.address_in(name, addend, space).map(Some)
}

fn isspacep(i: In) -> Decoded {
    let space = i.one("a state space", space)?;
    needs_cluster(i, space)?;
    let dst = i.dst(Type::Pred)?;
    Ok(Op::IsSpace { space, dst, src: i.src(Type::U64)? })
}
