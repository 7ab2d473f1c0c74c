//! `atom` and `red`.

use super::memory::{cache_policy, optional_scope, vector};
use super::moves::{needs_cluster, space};
use super::{Decoded, In, NONE};
use crate::decode::reader::illegal;
use crate::program::{AtomicOp, Op, Space, Type};

/// `atom[.sem][.scope][.space].op[.noftz][.L2::cache_hint][.vec].type d, [a], b[, c]`; `red` without `d`.
pub(super) fn decode(name: &str, i: In) -> Decoded {
    let red = name == "red";
    i.refuse("async", " yet")?;
    let order = order(i, red)?;
    let space = i.choice(space).unwrap_or(Space::Generic);
    needs_cluster(i, space)?;
    if !matches!(space, Space::Generic | Space::Global | Space::Shared | Space::SharedCluster) {
        return Err("atomics work on .global and .shared".into());
    }
    let op = i.one("an operation", operation)?;
    illegal(red && matches!(op, AtomicOp::Exch | AtomicOp::Cas), "exch and .cas")?;
    let noftz = i.flag("noftz");
    let policy = op != AtomicOp::Cas && i.flag("L2::cache_hint");
    let count = vector(i);
    let ty = i.ty("b16 b32 b64 b128 u32 u64 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64")?;
    check(i, op, ty, count, noftz, space)?;
    let dst = if red { None } else { Some(i.destinations(count, ty, false)?.0) };
    let (space, address) = i.address(space)?;
    let b = i.sources(count, ty, false)?;
    let c = if op == AtomicOp::Cas { i.src(ty)? } else { NONE };
    cache_policy(i, policy)?;
    if order.release {
        i.builder.emit(Op::Fence)?;
    }
    if order.acquire {
        i.builder.after.push(Op::Fence);
    }
    Ok(Op::Atomic { space, op, ty, dst, address, b, c })
}

/// Which sides of an atomic a fence stands on.
#[derive(Clone, Copy, Default)]
struct Order {
    /// Before it.
    release: bool,
    /// Behind it.
    acquire: bool,
}

/// `.relaxed .acquire .release .acq_rel` and a scope; either may stand alone.
fn order(i: In, red: bool) -> Decoded<Order> {
    let known = |name: &str| match name {
        "relaxed" => Some(Order::default()),
        "release" => Some(Order { release: true, acquire: false }),
        "acquire" if !red => Some(Order { release: false, acquire: true }),
        "acq_rel" if !red => Some(Order { release: true, acquire: true }),
        _ => None,
    };
    let order = i.choice(known).unwrap_or_default();
    optional_scope(i)?;
    Ok(order)
}

fn operation(name: &str) -> Option<AtomicOp> {
    Some(match name {
        "and" => AtomicOp::And,
        "or" => AtomicOp::Or,
        "xor" => AtomicOp::Xor,
        "exch" => AtomicOp::Exch,
        "cas" => AtomicOp::Cas,
        "add" => AtomicOp::Add,
        "inc" => AtomicOp::Inc,
        "dec" => AtomicOp::Dec,
        "min" => AtomicOp::Min,
        "max" => AtomicOp::Max,
        _ => return None,
    })
}

fn check(i: In, op: AtomicOp, ty: Type, count: usize, noftz: bool, space: Space) -> Decoded<()> {
    if ty == Type::B128 {
        return Err("not supported: values of 128 bits".into());
    }
    let half = matches!(ty, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2);
    let fits = match op {
        AtomicOp::And | AtomicOp::Or | AtomicOp::Xor | AtomicOp::Exch => matches!(ty, Type::B32 | Type::B64),
        AtomicOp::Cas => matches!(ty, Type::B16 | Type::B32 | Type::B64),
        AtomicOp::Add => half || matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::F32 | Type::F64),
        AtomicOp::Inc | AtomicOp::Dec => ty == Type::U32,
        AtomicOp::Min | AtomicOp::Max => {
            matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64) || (half && count > 1)
        }
    };
    illegal(!fits, ty.name())?;
    if noftz != half {
        return Err(if half { ".noftz is missing".into() } else { ".noftz is for f16 and bf16".into() });
    }
    if matches!(ty, Type::Bf16 | Type::Bf16x2) {
        i.needs(90)?;
    }
    if count == 1 {
        return Ok(());
    }
    i.needs(90)?;
    let bytes = count as u32 * ty.bytes();
    illegal(!(half || (ty == Type::F32 && op == AtomicOp::Add)) || bytes > 16, "v2 (or .v4, .v8)")?;
    illegal(!matches!(space, Space::Global | Space::Generic), "shared")
}
