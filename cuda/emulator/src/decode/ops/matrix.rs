//! Tensor-core instructions and what brings their operands.

use super::moves::space;
use super::{Decoded, In};
use crate::decode::reader::illegal;
use crate::program::{Mma, Op, Space, Type};

pub(super) fn decode(name: &str, i: In) -> Decoded {
    match name {
        "ldmatrix" => ldmatrix(i),
        "stmatrix" => stmatrix(i),
        "movmatrix" => {
            i.need("sync.aligned.m8n8.trans.b16")?;
            Ok(Op::MoveMatrix { dst: i.dst(Type::B32)?, src: i.src(Type::B32)? })
        }
        _ => mma(i),
    }
}

/// `.sync.aligned.m8n8.x{1,2,4}[.trans][.shared].b16`: how many matrices, whether transposed, where.
fn matrix_modifiers(i: In) -> Decoded<(usize, bool, Space)> {
    i.need("sync.aligned")?;
    i.refuse("m16n16 m8n16 m16n8", " (needs sm_100a)")?;
    i.need("m8n8")?;
    let count = i.one(".x1, .x2 or .x4", |name| match name {
        "x1" => Some(1),
        "x2" => Some(2),
        "x4" => Some(4),
        _ => None,
    })?;
    let transpose = i.flag("trans");
    let space = i.choice(space).unwrap_or(Space::Generic);
    illegal(!matches!(space, Space::Generic | Space::Shared), "this space")?;
    i.need("b16")?;
    Ok((count, transpose, space))
}

fn ldmatrix(i: In) -> Decoded {
    let (count, transpose, space) = matrix_modifiers(i)?;
    let dst = i.all_destinations(count, Type::B32)?;
    let (space, address) = i.address(space)?;
    Ok(Op::LoadMatrix { space, transpose, dst, address })
}

fn stmatrix(i: In) -> Decoded {
    i.needs(90)?;
    let (count, transpose, space) = matrix_modifiers(i)?;
    let (space, address) = i.address(space)?;
    Ok(Op::StoreMatrix { space, transpose, src: i.sources(count, Type::B32, false)?, address })
}

/// `mma.sync.aligned.mMnNkK.row.col[.satfinite].dtype.atype.btype.ctype d, a, b, c`
fn mma(i: In) -> Decoded {
    i.refuse("sp sp::ordered_metadata", " (sparse matrices)")?;
    i.refuse("kind::f8f6f4 kind::mxf8f6f4 kind::mxf4 kind::mxf4nvf4 block_scale", " (needs sm_120a)")?;
    i.refuse("u4 s4 b1", "")?;
    i.need("sync.aligned")?;
    let [m, n, k] = i.one("a shape", shape)?;
    let a_col = layout(i)?;
    let b_row = !layout(i)?;
    let satfinite = i.flag("satfinite");
    let d = i.ty("f16 f32 f64 s32")?;
    let a = i.ty(INPUTS)?;
    let b = i.ty(INPUTS)?;
    let c = i.ty("f16 f32 f64 s32")?;
    let mma = Mma { m, n, k, a, b, c, d, satfinite, a_col, b_row };
    check(i, &mma)?;
    let [in_a, in_b, in_c, in_d] = fragments(&mma);
    let d = i.all_destinations(in_d, register(d))?;
    let a = i.sources(in_a, register(a), false)?;
    let b = i.sources(in_b, register(b), false)?;
    let c = i.sources(in_c, register(c), false)?;
    Ok(Op::Mma { mma, d, a, b, c })
}

const INPUTS: &str = "f16 bf16 tf32 f64 s8 u8 e4m3 e5m2";

fn shape(name: &str) -> Option<[u8; 3]> {
    Some(match name {
        "m8n8k32" => [8, 8, 32],
        "m16n8k64" => [16, 8, 64],
        "m8n8k4" => [8, 8, 4],
        "m8n8k16" => [8, 8, 16],
        "m16n8k4" => [16, 8, 4],
        "m16n8k8" => [16, 8, 8],
        "m16n8k16" => [16, 8, 16],
        "m16n8k32" => [16, 8, 32],
        _ => return None,
    })
}

/// `.row` or `.col`; true is a column.
fn layout(i: In) -> Decoded<bool> {
    i.one(".row or .col", |name| match name {
        "row" => Some(false),
        "col" => Some(true),
        _ => None,
    })
}

/// The shapes and types that PTX has.
fn check(i: In, mma: &Mma) -> Decoded<()> {
    let Mma { m, n, k, a, b, c, d, satfinite, a_col, b_row } = *mma;
    let integer = |ty| matches!(ty, Type::S8 | Type::U8);
    let small = |ty| matches!(ty, Type::E4m3 | Type::E5m2);
    let half = |ty| matches!(ty, Type::F16 | Type::F32);
    let known = match (a, b, [m, n, k]) {
        (Type::F16, Type::F16, [8, 8, 4]) => half(c) && half(d) && !(c == Type::F32 && d == Type::F16),
        (Type::F16, Type::F16, [16, 8, 8 | 16]) => half(c) && c == d,
        (Type::Bf16, Type::Bf16, [16, 8, 8 | 16]) => c == Type::F32 && d == Type::F32,
        (Type::Tf32, Type::Tf32, [16, 8, 4 | 8]) => c == Type::F32 && d == Type::F32,
        (Type::F64, Type::F64, [8, 8, 4]) => c == Type::F64 && d == Type::F64,
        (Type::F64, Type::F64, [16, 8, 4 | 8 | 16]) => {
            i.needs(90)?;
            c == Type::F64 && d == Type::F64
        }
        (a, b, [8, 8, 16] | [16, 8, 16 | 32]) if integer(a) && integer(b) => c == Type::S32 && d == Type::S32,
        (a, b, [16, 8, 16 | 32]) if small(a) && small(b) => {
            i.needs(89)?;
            half(c) && c == d
        }
        _ => false,
    };
    let name = |ty: Type| ty.name();
    if !known {
        let types = format!("{}.{}.{}.{}", name(d), name(a), name(b), name(c));
        return Err(format!("there is no m{m}n{n}k{k} of .{types}"));
    }
    illegal(satfinite && !integer(a), "satfinite")?;
    let choice = a == Type::F16 && k == 4;
    illegal(!choice && (a_col || b_row), "this layout (only .row.col)")
}

/// The type of a register of a fragment.
fn register(ty: Type) -> Type {
    match ty {
        Type::F16 => Type::F16x2,
        Type::Bf16 => Type::Bf16x2,
        Type::F32 | Type::F64 | Type::S32 => ty,
        _ => Type::B32,
    }
}

/// How many registers the fragments of a, b, c and d have.
fn fragments(mma: &Mma) -> [usize; 4] {
    let [m, n, k] = [mma.m, mma.n, mma.k].map(usize::from);
    let registers = |values: usize, ty: Type| values * ty.bytes() as usize / 32 / register(ty).bytes() as usize;
    // The quarter-warps of m8n8k4 hold four products.
    let products = if mma.a == Type::F16 && k == 4 { 4 } else { 1 };
    [(m * k, mma.a), (k * n, mma.b), (m * n, mma.c), (m * n, mma.d)]
        .map(|(values, ty)| registers(products * values, ty))
}
