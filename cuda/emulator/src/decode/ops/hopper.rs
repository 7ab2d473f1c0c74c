//! Asynchronous copies, what Hopper adds, and what is refused.

use super::memory::cache_policy;
use super::{Decoded, In, NONE, alu};
use crate::program::{AluOp, Modifiers, Op, Space, Src, Type};

pub(super) fn decode(name: &str, i: In) -> Decoded {
    match name {
        "cp" => cp(i),
        "createpolicy" => createpolicy(i),
        _ => {
            i.needs(90)?;
            i.one(".launch_dependents or .wait", |name| matches!(name, "launch_dependents" | "wait").then_some(()))?;
            Ok(Op::Hint)
        }
    }
}

fn cp(i: In) -> Decoded {
    i.need("async")?;
    i.refuse("bulk", " yet")?;
    if i.flag("mbarrier") || i.flag("reduce") {
        return Err("not supported yet: cp.async with an mbarrier".into());
    }
    if i.flag("commit_group") {
        return Ok(Op::CommitGroup);
    }
    if i.flag("wait_all") {
        return Ok(Op::WaitGroup(None));
    }
    if i.flag("wait_group") {
        return Ok(Op::WaitGroup(Some(i.constant()?)));
    }
    copy(i)
}

/// `cp.async.{ca,cg}.shared.global[.L2..] [dst], [src], bytes[, src_bytes | ignore][, policy]`
fn copy(i: In) -> Decoded {
    let all_levels = i.one(".ca or .cg", |name| match name {
        "ca" => Some(true),
        "cg" => Some(false),
        _ => None,
    })?;
    if !i.flag("shared::cta") {
        i.need("shared")?;
    }
    i.need("global")?;
    let policy = i.flag("L2::cache_hint");
    i.choice(|name| matches!(name, "L2::64B" | "L2::128B" | "L2::256B").then_some(()));
    let (_, dst) = i.address(Space::Shared)?;
    let (_, src) = i.address(Space::Global)?;
    let bytes = i.constant()?;
    match bytes {
        16 => {}
        4 | 8 if all_levels => {}
        other => return Err(format!("it does not copy {other} bytes")),
    }
    let (mut src_bytes, mut ignore) = (Src::Imm(bytes.into()), None);
    if i.operands.len() > usize::from(policy) {
        match is_predicate(i) {
            true => ignore = Some(i.predicate()?),
            false => src_bytes = i.src(Type::U32)?,
        }
    }
    if matches!(src_bytes, Src::Imm(given) if given > bytes.into()) {
        return Err("the source has more bytes than are copied".into());
    }
    cache_policy(i, policy)?;
    Ok(Op::CopyAsync { dst, src, bytes, src_bytes, ignore })
}

fn is_predicate(i: In) -> bool {
    use crate::syntax::Operand;
    match i.operands.first() {
        Some(Operand::Not(_)) => true,
        Some(Operand::Name(name)) => i.builder.predicate(name).is_ok(),
        _ => false,
    }
}

/// Caches have no policies here: the policy is 0, and no instruction looks at it.
fn createpolicy(i: In) -> Decoded {
    let kind = i.one(".fractional, .range or .cvt", |name| match name {
        "fractional" => Some(1),
        "range" => Some(2),
        "cvt" => Some(3),
        _ => None,
    })?;
    match kind {
        1 => {
            priorities(i)?;
        }
        2 => {
            i.flag("global");
            priorities(i)?;
        }
        _ => i.need("L2")?,
    }
    i.ty("b64")?;
    let dst = i.dst(Type::B64)?;
    match kind {
        1 if i.more() => {
            i.src(Type::F32)?;
        }
        1 => {}
        2 => {
            i.address(Space::Generic)?;
            i.src(Type::U32)?;
            i.src(Type::U32)?;
        }
        _ => {
            i.src(Type::B64)?;
        }
    }
    Ok(alu(AluOp::Mov, Type::B64, Modifiers::default(), dst, Type::B64, [NONE; 4]))
}

/// `.L2::evict_last[.L2::evict_unchanged]`
fn priorities(i: In) -> Decoded<()> {
    let first = |name: &str| {
        matches!(name, "L2::evict_last" | "L2::evict_normal" | "L2::evict_first" | "L2::evict_unchanged").then_some(())
    };
    i.one("an eviction priority", first)?;
    i.choice(|name| matches!(name, "L2::evict_first" | "L2::evict_unchanged").then_some(()));
    Ok(())
}

/// Why an instruction is refused.
pub(super) fn refusal(name: &str) -> String {
    match name {
        "wgmma" | "setmaxnreg" => format!("not supported yet: {name} (needs sm_90a)"),
        "mbarrier" | "mapa" | "getctarank" | "tensormap" | "multimem" | "clusterlaunchcontrol" => {
            format!("not supported yet: {name}")
        }
        "tcgen05" => "not supported: tcgen05 (needs sm_100a)".into(),
        "wmma" => "not supported: wmma (mma.sync says what lies in which register)".into(),
        "tex" | "tld4" | "txq" | "suld" | "sust" | "sured" | "suq" | "istypep" => {
            format!("not supported: textures and surfaces ({name})")
        }
        "vadd" | "vsub" | "vabsdiff" | "vmin" | "vmax" | "vshl" | "vshr" | "vmad" | "vset" | "vadd2" | "vsub2"
        | "vavrg2" | "vabsdiff2" | "vmin2" | "vmax2" | "vset2" | "vadd4" | "vsub4" | "vavrg4" | "vabsdiff4"
        | "vmin4" | "vmax4" | "vset4" => format!("not supported: video instructions ({name})"),
        "alloca" | "stacksave" | "stackrestore" => format!("not supported: a stack ({name})"),
        _ => "unknown instruction".into(),
    }
}
