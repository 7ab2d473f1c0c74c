//! Exchange between the lanes of a warp.

use super::{Decoded, In};
use crate::decode::reader::illegal;
use crate::program::{Op, ReduxOp, Shuffle, Type, Vote};

pub(super) fn decode(name: &str, i: In) -> Decoded {
    match name {
        "shfl" => shuffle(i),
        "vote" => vote(i),
        "match" => matching(i),
        "activemask" => {
            i.ty("b32")?;
            Ok(Op::ActiveMask { dst: i.dst(Type::B32)? })
        }
        "redux" => redux(i),
        _ => elect(i),
    }
}

/// What sm_70 took away.
fn sync(i: In) -> Decoded<()> {
    if i.flag("sync") { Ok(()) } else { Err("not supported without .sync (none since sm_70)".into()) }
}

fn shuffle(i: In) -> Decoded {
    sync(i)?;
    let mode = i.one(".up, .down, .bfly or .idx", |name| match name {
        "up" => Some(Shuffle::Up),
        "down" => Some(Shuffle::Down),
        "bfly" => Some(Shuffle::Bfly),
        "idx" => Some(Shuffle::Idx),
        _ => None,
    })?;
    i.ty("b32")?;
    let (dst, in_range) = i.dst_and_predicate(Type::B32)?;
    illegal(dst.is_none(), "b32 with the result _")?;
    let a = i.src(Type::B32)?;
    let (b, c) = (i.src(Type::U32)?, i.src(Type::U32)?);
    Ok(Op::Shuffle { mode, dst, in_range, a, b, c, mask: i.src(Type::B32)? })
}

fn vote(i: In) -> Decoded {
    sync(i)?;
    let vote = i.one(".all, .any, .uni or .ballot", |name| match name {
        "all" => Some(Vote::All),
        "any" => Some(Vote::Any),
        "uni" => Some(Vote::Uni),
        "ballot" => Some(Vote::Ballot),
        _ => None,
    })?;
    let ty = i.ty(if vote == Vote::Ballot { "b32" } else { "pred" })?;
    let dst = i.dst(ty)?;
    Ok(Op::Vote { vote, dst, predicate: i.predicate()?, mask: i.src(Type::B32)? })
}

/// `match.any.sync.type d, a, mask`, `match.all.sync.type d[|p], a, mask`; the type is that of `a`.
fn matching(i: In) -> Decoded {
    let all = i.one(".any or .all", |name| match name {
        "any" => Some(false),
        "all" => Some(true),
        _ => None,
    })?;
    sync(i)?;
    let ty = i.ty("b32 b64")?;
    let (dst, equal) = i.dst_and_predicate(Type::B32)?;
    illegal(!all && equal.is_some(), "any with a predicate")?;
    Ok(Op::Match { all, ty, dst, equal, a: i.src(ty)?, mask: i.src(Type::B32)? })
}

fn redux(i: In) -> Decoded {
    sync(i)?;
    let op = i.one("an operation", |name| match name {
        "add" => Some(ReduxOp::Add),
        "min" => Some(ReduxOp::Min),
        "max" => Some(ReduxOp::Max),
        "and" => Some(ReduxOp::And),
        "or" => Some(ReduxOp::Or),
        "xor" => Some(ReduxOp::Xor),
        _ => None,
    })?;
    let logic = matches!(op, ReduxOp::And | ReduxOp::Or | ReduxOp::Xor);
    let ty = i.ty(if logic { "b32" } else { "u32 s32" })?;
    Ok(Op::Redux { op, ty, dst: i.dst(ty)?, a: i.src(ty)?, mask: i.src(Type::B32)? })
}

/// `elect.sync d|p, mask`
fn elect(i: In) -> Decoded {
    i.needs(90)?;
    sync(i)?;
    let (dst, elected) = i.dst_and_predicate(Type::B32)?;
    let elected = elected.ok_or("the predicate is missing")?;
    Ok(Op::Elect { dst, elected, mask: i.src(Type::B32)? })
}
