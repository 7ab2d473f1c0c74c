//! Every instruction of PTX by its first word.

mod atomic;
mod bits;
mod compare;
mod control;
mod convert;
mod float;
mod hopper;
mod integer;
mod matrix;
mod memory;
mod moves;
mod warp;

use super::Decoded;
use super::builder::Builder;
use super::call::call;
use super::reader::Reader;
use crate::program::{Alu, AluOp, Modifiers, Op, Reg, Src, Type};
use crate::syntax::Instruction;

/// A reader of an instruction: what every decoder takes.
type In<'r, 'b, 'm, 'a> = &'r mut Reader<'b, 'm, 'a>;

/// Decodes one instruction. Where it needs more than one [`Op`], the others are emitted before or behind.
pub(super) fn decode<'a>(builder: &mut Builder<'_, 'a>, instruction: &'a Instruction<'a>) -> Decoded {
    let (name, mut reader) = Reader::new(builder, instruction)?;
    let op = by_name(name, &mut reader)?;
    reader.finish()?;
    Ok(op)
}

fn by_name(name: &str, i: In) -> Decoded {
    match name {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "min" | "max" | "abs" | "neg" => either(name, i),
        "addc" | "subc" | "madc" | "mul24" | "mad24" | "sad" | "rem" | "popc" | "clz" | "bfind" | "fns" | "brev"
        | "bfe" | "bfi" | "szext" | "bmsk" | "dp4a" | "dp2a" => integer::decode(name, i),
        "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign" | "testp" => {
            float::decode(name, i)
        }
        "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl" | "shr" | "shf" | "prmt" => bits::decode(name, i),
        "set" | "setp" | "selp" | "slct" => compare::decode(name, i),
        "mov" | "cvta" | "isspacep" => moves::decode(name, i),
        "cvt" => convert::cvt(i),
        "ld" | "ldu" | "st" | "prefetch" | "prefetchu" | "applypriority" | "discard" | "membar" | "fence" => {
            memory::decode(name, i)
        }
        "atom" | "red" => atomic::decode(name, i),
        "bra" | "brx" | "ret" | "exit" | "trap" | "brkpt" | "bar" | "barrier" | "nanosleep" | "pmevent" => {
            control::decode(name, i)
        }
        "call" => call(i),
        "shfl" | "vote" | "match" | "activemask" | "redux" | "elect" => warp::decode(name, i),
        "ldmatrix" | "stmatrix" | "movmatrix" | "mma" => matrix::decode(name, i),
        "cp" | "createpolicy" | "griddepcontrol" => hopper::decode(name, i),
        _ => Err(hopper::refusal(name)),
    }
}

/// Instructions that integers and floats share: the last type decides.
fn either(name: &str, i: In) -> Decoded {
    let ty = i.parts().iter().rev().find_map(|part| Type::from_name(part));
    match ty {
        Some(ty) if ty.is_float() => float::decode(name, i),
        Some(_) => integer::decode(name, i),
        None => Err("the type is missing".into()),
    }
}

/// An [`Op::Alu`] whose result is as wide as `result`.
fn alu(op: AluOp, ty: Type, modifiers: Modifiers, dst: Reg, result: Type, values: [Src; 4]) -> Op {
    let [a, b, c, d] = values;
    Op::Alu { alu: Alu { op, ty, modifiers }, dst, reg_bytes: result.bytes(), a, b, c, d }
}

/// No operand.
const NONE: Src = Src::Imm(0);

/// `d, a` with `result` for d and `types` for the operands.
fn operands<const N: usize>(
    i: In,
    op: AluOp,
    ty: Type,
    modifiers: Modifiers,
    result: Type,
    types: [Type; N],
) -> Decoded {
    let dst = i.dst(result)?;
    let mut values = [NONE; 4];
    for (value, ty) in values.iter_mut().zip(types) {
        *value = i.src(ty)?;
    }
    Ok(alu(op, ty, modifiers, dst, result, values))
}
