//! Loads, stores, fences, hints.

use super::moves::space;
use super::{Decoded, In};
use crate::program::{Op, Space, Type};
use crate::syntax::{Address, Operand};

const VALUES: &str = "b8 b16 b32 b64 u8 u16 u32 u64 s8 s16 s32 s64 f32 f64";

pub(super) fn decode(name: &str, i: In) -> Decoded {
    match name {
        "ld" => load(i),
        "ldu" => ldu(i),
        "st" => store(i),
        "membar" => membar(i),
        "fence" => fence(i),
        _ => hint(name, i),
    }
}

fn one_of(i: In, names: &str) -> bool {
    let found = !i.peek().is_empty() && names.split(' ').any(|name| name == i.peek());
    if found {
        i.part();
    }
    found
}

/// `.L1::evict_last`, `.L2::evict_first`, `.L2::cache_hint`, `.L2::128B`; whether a cache policy follows as last operand.
pub(super) fn cache_modifiers(i: In) -> bool {
    one_of(i, "L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate");
    one_of(i, "L2::evict_normal L2::evict_first L2::evict_last");
    let policy = i.flag("L2::cache_hint");
    one_of(i, "L2::64B L2::128B L2::256B");
    policy
}

/// The operand of `.L2::cache_hint`.
pub(super) fn cache_policy(i: In, given: bool) -> Decoded<()> {
    if given {
        i.src(Type::B64)?;
    }
    Ok(())
}

/// A scope; what it orders is ordered here anyway.
pub(super) fn scope(i: In) -> Decoded<()> {
    if one_of(i, "cta cluster gpu sys") { Ok(()) } else { Err(i.unexpected("a scope (.cta .cluster .gpu .sys)")) }
}

/// `.weak`, `.volatile`, `.relaxed.scope`, `.acquire.scope` (`.release.scope`), `.mmio.relaxed.sys`: whether there was one
/// that excludes cache operators.
fn semantics(i: In, strong: &str) -> Decoded<bool> {
    if i.flag("mmio") {
        i.need("relaxed.sys")?;
        return Ok(true);
    }
    if i.flag("weak") {
        return Ok(false);
    }
    if i.flag("volatile") {
        return Ok(true);
    }
    if i.flag("relaxed") || i.flag(strong) {
        scope(i)?;
        return Ok(true);
    }
    Ok(false)
}

/// `.v2`, `.v4`, `.v8`
pub(super) fn vector(i: In) -> usize {
    i.choice(|name| match name {
        "v2" => Some(2),
        "v4" => Some(4),
        "v8" => Some(8),
        _ => None,
    })
    .unwrap_or(1)
}

/// At most 16 bytes an access; 32 since sm_100.
fn check_vector(i: In, count: usize, ty: Type) -> Decoded<()> {
    match count as u32 * ty.bytes() {
        0..=16 if count < 8 => Ok(()),
        32 if ty.bytes() >= 4 => i.needs(100),
        bytes => Err(format!("no access has {count} times .{}, {bytes} bytes", ty.name())),
    }
}

fn load(i: In) -> Decoded {
    let strong = semantics(i, "acquire")?;
    let space = load_space(i);
    if !strong && one_of(i, "ca cg cs lu cv") && space.is_some_and(|space| space == Space::Param) {
        return Err("a cache operator does not go with .param".into());
    }
    if i.flag("nc") && space != Some(Space::Global) {
        return Err(".nc goes with .global only".into());
    }
    let policy = cache_modifiers(i);
    let count = vector(i);
    let ty = i.ty(VALUES)?;
    check_vector(i, count, ty)?;
    let (dst, reg_bytes) = i.destinations(count, ty, true)?;
    if matches!(i.operands.first(), Some(Operand::Address(Address { unified: true, .. }))) {
        return Err("not supported: .unified".into());
    }
    let (space, address) = i.address(space.unwrap_or(Space::Generic))?;
    cache_policy(i, policy)?;
    Ok(Op::Load { space, ty, reg_bytes, dst, address })
}

/// `.param::func` is the parameter of a call or of a function: the frame, which the address says as well.
fn load_space(i: In) -> Option<Space> {
    if i.flag("param::func") {
        return Some(Space::Param);
    }
    i.choice(space)
}

fn ldu(i: In) -> Decoded {
    let space = i.choice(|name| (name == "global").then_some(Space::Global)).unwrap_or(Space::Generic);
    let count = vector(i);
    let ty = i.ty(VALUES)?;
    check_vector(i, count, ty)?;
    let (dst, reg_bytes) = i.destinations(count, ty, true)?;
    let (space, address) = i.address(space)?;
    Ok(Op::Load { space, ty, reg_bytes, dst, address })
}

fn store(i: In) -> Decoded {
    if matches!(i.peek(), "async" | "bulk") {
        return Err(format!("not supported yet: .{}", i.peek()));
    }
    let strong = semantics(i, "release")?;
    let space = load_space(i).unwrap_or(Space::Generic);
    if space == Space::Const {
        return Err("constant memory is not written".into());
    }
    if !strong {
        one_of(i, "wb cg cs wt");
    }
    let policy = cache_modifiers(i);
    let count = vector(i);
    let ty = i.ty(VALUES)?;
    check_vector(i, count, ty)?;
    let (space, address) = i.address(space)?;
    if space == Space::Param {
        return Err("the parameters of a kernel are not written".into());
    }
    let src = i.sources(count, ty, true)?;
    cache_policy(i, policy)?;
    Ok(Op::Store { space, ty, src, address })
}

fn membar(i: In) -> Decoded {
    if i.flag("proxy") {
        return proxy(i);
    }
    if one_of(i, "cta gl sys") { Ok(Op::Fence) } else { Err(i.unexpected(".cta, .gl or .sys")) }
}

/// `fence[.sc|.acq_rel|.acquire|.release].scope`, `fence.proxy..`, `fence.mbarrier_init.release.cluster`.
fn fence(i: In) -> Decoded {
    if i.flag("proxy") {
        return proxy(i);
    }
    if i.flag("mbarrier_init") {
        i.needs(90)?;
        i.need("release.cluster")?;
        return Ok(Op::Fence);
    }
    one_of(i, "sc acq_rel acquire release");
    scope(i)?;
    Ok(Op::Fence)
}

/// There is one proxy here: a fence between proxies is a fence. The tensor map's also has an address and a size.
fn proxy(i: In) -> Decoded {
    if one_of(i, "alias async async.global") {
        // `.async.global`, `.async.shared::cta`
        one_of(i, "global shared::cta shared::cluster");
        return Ok(Op::Fence);
    }
    i.needs(90)?;
    i.need("tensormap::generic")?;
    let acquire = i.flag("acquire");
    if !acquire {
        i.need("release")?;
    }
    scope(i)?;
    if acquire {
        i.address(Space::Generic)?;
        i.constant()?;
    }
    Ok(Op::Fence)
}

/// Instructions that only advise: checked, then nothing.
fn hint(name: &str, i: In) -> Decoded {
    match name {
        "prefetchu" => {
            i.need("L1")?;
            i.address(Space::Generic)?;
        }
        "prefetch" => {
            let space = i.choice(space).unwrap_or(Space::Generic);
            if i.peek() == "tensormap" {
                return Err("not supported yet: .tensormap".into());
            }
            if !one_of(i, "L1 L2 L2::evict_last L2::evict_normal") {
                return Err(i.unexpected(".L1 or .L2"));
            }
            i.address(space)?;
        }
        _ => {
            let space = i.choice(|name| (name == "global").then_some(Space::Global)).unwrap_or(Space::Generic);
            i.need(if name == "discard" { "L2" } else { "L2::evict_normal" })?;
            i.address(space)?;
            if i.constant()? != 128 {
                return Err("the size is 128".into());
            }
        }
    }
    Ok(Op::Hint)
}
