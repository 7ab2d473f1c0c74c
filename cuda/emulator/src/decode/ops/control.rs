//! Branches, ends and barriers.

use super::{Decoded, In, NONE};
use crate::decode::names::Symbol;
use crate::program::{BarrierKind, Op, Src, Type};
use crate::syntax::Operand;

/// The most labels of a `brx.idx`.
const MAX_TARGETS: usize = 1 << 16;

pub(super) fn decode(name: &str, i: In) -> Decoded {
    match name {
        "bra" => bra(i),
        "brx" => brx(i),
        "ret" => {
            i.flag("uni");
            i.builder.store_results()?;
            Ok(Op::Return)
        }
        "exit" => Ok(Op::Exit),
        "trap" | "brkpt" => Ok(Op::Trap),
        "nanosleep" => {
            i.ty("u32")?;
            i.src(Type::U32)?;
            Ok(Op::Yield)
        }
        "pmevent" => {
            let mask = i.flag("mask");
            match i.constant()? {
                event if event > 15 && !mask => Err(format!("there is no event {event}, only 0 to 15")),
                _ => Ok(Op::Yield),
            }
        }
        name => barrier(name == "bar", i),
    }
}

fn bra(i: In) -> Decoded {
    let uniform = i.flag("uni");
    let label = i.name()?;
    if let Some(Symbol::Register { .. }) = i.builder.find(label) {
        return Err(format!("not supported: an indirect branch to {label}"));
    }
    i.builder.branch_to(label, 0);
    Ok(Op::Branch { target: 0, uniform })
}

/// `brx.idx[.uni] index, table`
fn brx(i: In) -> Decoded {
    i.need("idx")?;
    let uniform = i.flag("uni");
    let index = i.src(Type::U32)?;
    let name = i.name()?;
    let labels = i.builder.table(name).ok_or_else(|| format!("the table {name} is not declared"))?;
    if labels.len() > MAX_TARGETS {
        return Err(format!("more than {MAX_TARGETS} labels"));
    }
    for (entry, label) in labels.iter().enumerate() {
        i.builder.branch_to(label, entry);
    }
    Ok(Op::BranchIndexed { index, targets: vec![0; labels.len()], uniform })
}

/// `bar[.cta].{sync,arrive,red}`, `bar.warp.sync`, `barrier[.cta].{sync,arrive,red}[.aligned]`; `bar` is always aligned.
fn barrier(bar: bool, i: In) -> Decoded {
    if bar && i.flag("warp") {
        i.need("sync")?;
        return Ok(Op::WarpSync { mask: i.src(Type::B32)? });
    }
    if i.flag("cluster") {
        return Err("not supported yet: barriers of a cluster".into());
    }
    i.flag("cta");
    let kind = i.one(".sync, .arrive or .red", |name| match name {
        "sync" => Some(BarrierKind::Sync),
        "arrive" => Some(BarrierKind::Arrive),
        "red" => Some(BarrierKind::RedPopc),
        _ => None,
    })?;
    let kind = if kind == BarrierKind::RedPopc { reduction(i)? } else { kind };
    let aligned = bar || i.flag("aligned");
    let dst = match kind {
        BarrierKind::RedPopc => {
            i.ty("u32")?;
            Some(i.dst(Type::U32)?)
        }
        BarrierKind::RedAnd | BarrierKind::RedOr => {
            i.ty("pred")?;
            Some(i.dst(Type::Pred)?)
        }
        _ => None,
    };
    let id = i.src(Type::U32)?;
    barrier_id(id)?;
    let left = i.operands.len();
    let threads = match kind {
        _ if dst.is_some() && left == 2 => Some(threads(i)?),
        BarrierKind::Sync if left == 1 => Some(threads(i)?),
        BarrierKind::Arrive => Some(threads(i)?),
        _ => None,
    };
    let predicate = if dst.is_some() { i.predicate()? } else { NONE };
    Ok(Op::Barrier { kind, id, threads, aligned, dst, predicate })
}

fn reduction(i: In) -> Decoded<BarrierKind> {
    i.one(".popc, .and or .or", |name| match name {
        "popc" => Some(BarrierKind::RedPopc),
        "and" => Some(BarrierKind::RedAnd),
        "or" => Some(BarrierKind::RedOr),
        _ => None,
    })
}

fn barrier_id(id: Src) -> Decoded<()> {
    match id {
        Src::Imm(id) if id > 15 => Err(format!("there is no barrier {id}, only 0 to 15")),
        _ => Ok(()),
    }
}

fn threads(i: In) -> Decoded<Src> {
    if let Some(Operand::Not(name)) = i.operands.first() {
        return Err(format!("the number of threads cannot be !{name}"));
    }
    match i.src(Type::U32)? {
        Src::Imm(threads) if threads == 0 || threads % 32 != 0 => {
            Err(format!("{threads} threads: a barrier takes whole warps"))
        }
        threads => Ok(threads),
    }
}
