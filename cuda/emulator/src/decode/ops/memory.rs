//! Loads, stores, fences, hints.

use super::moves::{needs_cluster, space};
use super::{Decoded, In};
use crate::decode::reader::illegal;
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

/// What stands between the state space and the type.
#[derive(Clone, Copy)]
struct Cache {
    /// Whether a cache policy follows as last operand.
    policy: bool,
    /// `.L1::evict_last`, `.L1::no_allocate`
    l1_eviction: bool,
    /// `.L2::evict_first`: for accesses of 32 bytes.
    l2_eviction: bool,
}

/// `.L1::evict_last`, `.L2::evict_first`, `.L2::cache_hint`, and for loads `.L2::128B`: global memory only.
fn cache_modifiers(i: In, load: bool, space: Space) -> Decoded<Cache> {
    let before = i.parts().len();
    let l1_eviction = i.one_of("L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate");
    let l2_eviction = i.one_of("L2::evict_normal L2::evict_first L2::evict_last");
    let policy = i.flag("L2::cache_hint");
    if load {
        i.one_of("L2::64B L2::128B L2::256B");
    }
    if i.parts().len() != before && !matches!(space, Space::Generic | Space::Global) {
        return Err("cache modifiers go with global memory only".into());
    }
    Ok(Cache { policy, l1_eviction, l2_eviction })
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
    if optional_scope(i)? { Ok(()) } else { Err(i.missing("a scope (.cta .cluster .gpu .sys)")) }
}

/// [`scope`], if there.
pub(super) fn optional_scope(i: In) -> Decoded<bool> {
    if i.flag("cluster") {
        i.needs(90)?;
        return Ok(true);
    }
    Ok(i.one_of("cta gpu sys"))
}

/// How an access orders others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Weak,
    /// `.relaxed.scope`
    Relaxed,
    /// `.acquire.scope` of a load, `.release.scope` of a store: with a fence.
    Fenced,
    Volatile,
    /// `.mmio.relaxed.sys`
    Mmio,
}

/// `fenced` is the order that brings a fence.
fn order(i: In, fenced: &str) -> Decoded<Order> {
    if i.flag("mmio") {
        i.need("relaxed.sys")?;
        return Ok(Order::Mmio);
    }
    if i.flag("volatile") {
        return Ok(Order::Volatile);
    }
    for (name, order) in [("relaxed", Order::Relaxed), (fenced, Order::Fenced)] {
        if i.flag(name) {
            scope(i)?;
            return Ok(order);
        }
    }
    i.flag("weak");
    Ok(Order::Weak)
}

/// The spaces that the orders are for.
fn check_order(order: Order, space: Space, cache: Cache) -> Decoded<()> {
    let ordered = match order {
        Order::Weak => true,
        Order::Volatile => space != Space::Param,
        Order::Relaxed | Order::Fenced => !matches!(space, Space::Const | Space::Param | Space::Local),
        Order::Mmio => matches!(space, Space::Generic | Space::Global),
    };
    illegal(!ordered, "relaxed or .volatile")?;
    illegal(cache.policy && matches!(order, Order::Volatile | Order::Mmio), "L2::cache_hint")?;
    illegal(cache.l1_eviction && matches!(order, Order::Volatile | Order::Mmio), "L1::..")
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

/// At most 16 bytes an access; of global memory 32 since sm_100, and only those choose how L2 evicts them.
fn check_vector(i: In, count: usize, ty: Type, space: Space, cache: Cache) -> Decoded<()> {
    let bytes = count as u32 * ty.bytes();
    let large = bytes == 32 && ty.bytes() >= 4 && matches!(space, Space::Generic | Space::Global);
    if large {
        return i.needs(100);
    }
    illegal(cache.l2_eviction, "L2::evict_..")?;
    if bytes <= 16 && count < 8 {
        return Ok(());
    }
    Err(format!("no access has {count} times .{}, {bytes} bytes", ty.name()))
}

fn load(i: In) -> Decoded {
    let order = order(i, "acquire")?;
    let space = load_space(i)?;
    let operator = order == Order::Weak && i.one_of("ca cg cs lu cv");
    if i.flag("nc") && (order != Order::Weak || space != Space::Global) {
        return Err(".nc goes with .global only".into());
    }
    let cache = cache_modifiers(i, true, space)?;
    illegal(operator && cache.l2_eviction, "L2::evict_..")?;
    check_order(order, space, cache)?;
    let count = vector(i);
    let ty = i.ty(VALUES)?;
    check_vector(i, count, ty, space, cache)?;
    let (dst, reg_bytes) = i.destinations(count, ty, true)?;
    if matches!(i.operands.first(), Some(Operand::Address(Address { unified: true, .. }))) {
        return Err("not supported: .unified".into());
    }
    let (space, address) = i.address(space)?;
    cache_policy(i, cache.policy)?;
    if order == Order::Fenced {
        i.builder.after.push(Op::Fence);
    }
    Ok(Op::Load { space, ty, reg_bytes, dst, address, strong: order != Order::Weak })
}

/// The state space of a load or store, generic without one. `.param::func` is the parameter of a call or of a function:
/// the frame, which the address says as well.
fn load_space(i: In) -> Decoded<Space> {
    if i.flag("param::func") {
        return Ok(Space::Param);
    }
    let space = i.choice(space).unwrap_or(Space::Generic);
    needs_cluster(i, space)?;
    Ok(space)
}

fn ldu(i: In) -> Decoded {
    let space = i.choice(|name| (name == "global").then_some(Space::Global)).unwrap_or(Space::Generic);
    let count = vector(i);
    let ty = i.ty(VALUES)?;
    if count as u32 * ty.bytes() > 16 || count == 8 {
        return Err("at most 16 bytes are loaded".into());
    }
    let (dst, reg_bytes) = i.destinations(count, ty, true)?;
    let (space, address) = i.address(space)?;
    Ok(Op::Load { space, ty, reg_bytes, dst, address, strong: false })
}

fn store(i: In) -> Decoded {
    i.refuse("async bulk", " yet")?;
    let order = order(i, "release")?;
    let space = load_space(i)?;
    if space == Space::Const {
        return Err("constant memory is not written".into());
    }
    if order == Order::Weak {
        i.one_of("wb cg cs wt");
    }
    let cache = cache_modifiers(i, false, space)?;
    check_order(order, space, cache)?;
    let count = vector(i);
    let ty = i.ty(VALUES)?;
    check_vector(i, count, ty, space, cache)?;
    let (space, address) = i.address(space)?;
    if space == Space::Param {
        return Err("the parameters of a kernel are not written".into());
    }
    let src = i.sources(count, ty, true)?;
    cache_policy(i, cache.policy)?;
    if order == Order::Fenced {
        i.builder.emit(Op::Fence)?;
    }
    Ok(Op::Store { space, ty, src, address, strong: order != Order::Weak })
}

fn membar(i: In) -> Decoded {
    if i.flag("proxy") {
        i.need("alias")?;
        return Ok(Op::Fence);
    }
    if i.one_of("cta gl sys") { Ok(Op::Fence) } else { Err(i.missing(".cta, .gl or .sys")) }
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
    i.one_of("sc acq_rel acquire release");
    scope(i)?;
    Ok(Op::Fence)
}

/// There is one proxy here: a fence between proxies is a fence. The tensor map's also has an address and a size.
fn proxy(i: In) -> Decoded {
    if i.flag("alias") {
        return Ok(Op::Fence);
    }
    i.needs(90)?;
    if i.flag("async") {
        i.one_of("global shared::cta shared::cluster");
        return Ok(Op::Fence);
    }
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
            illegal(!matches!(space, Space::Generic | Space::Global | Space::Local), "this space")?;
            i.refuse("tensormap", " yet")?;
            if !i.one_of("L1 L2 L2::evict_last L2::evict_normal") {
                return Err(i.missing(".L1 or .L2"));
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
