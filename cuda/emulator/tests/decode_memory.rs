//! Loads, stores, atomics, fences, copies, and what only advises the caches.

mod common;

use common::{d, error_for, f, h, imm, op, p, parse_for, r, refused, reg};
use kinglet_emulator::program::{Address, AtomicOp, Op, Space, Src, Type};

use Type::{B32, F32, S8, U8, U32};

fn at(base: Src, offset: i64) -> Address {
    Address { base, offset }
}

fn load(space: Space, ty: Type, reg_bytes: u32, dst: &[u32], address: Address) -> Op {
    Op::Load { space, ty, reg_bytes, dst: dst.iter().copied().map(Some).collect(), address, strong: false }
}

#[test]
fn address_forms() {
    let table = [
        ("ld.global.u32 r0, [d1];", Space::Global, at(reg(d(1)), 0)),
        ("ld.global.u32 r0, [d1+16];", Space::Global, at(reg(d(1)), 16)),
        ("ld.global.u32 r0, [d1+-16];", Space::Global, at(reg(d(1)), -16)),
        ("ld.global.u32 r0, [d1-16];", Space::Global, at(reg(d(1)), -16)),
        ("ld.global.u32 r0, [d1+4*(2+1)];", Space::Global, at(reg(d(1)), 12)),
        ("ld.global.u32 r0, [gv];", Space::Global, at(Src::Variable(0, 0), 0)),
        ("ld.global.u32 r0, [gv+8];", Space::Global, at(Src::Variable(0, 0), 8)),
        ("ld.const.u32 r0, [cv+4];", Space::Const, at(Src::Variable(1, 0), 4)),
        ("ld.shared.u32 r0, [r1+4];", Space::Shared, at(reg(r(1)), 4)),
        ("ld.shared.u32 r0, [sv+4];", Space::Shared, at(imm(0), 4)),
        ("ld.shared.u32 r0, [dyn+12];", Space::Shared, at(Src::DynamicShared(0), 12)),
        ("ld.shared.u32 r0, [0x40];", Space::Shared, at(imm(0x40), 0)),
        ("ld.shared::cluster.u32 r0, [r1];", Space::SharedCluster, at(reg(r(1)), 0)),
        ("ld.local.u32 r0, [lv+4];", Space::Local, at(imm(0), 4)),
        ("ld.param.u32 r0, [kp];", Space::Param, at(imm(0), 0)),
        ("ld.param.u32 r0, [ks+4];", Space::Param, at(imm(8), 4)),
        ("ld.param.u32 r0, [d1+4];", Space::Param, at(reg(d(1)), 4)),
        ("ld.u32 r0, [d1];", Space::Generic, at(reg(d(1)), 0)),
        ("ld.u32 r0, [gv];", Space::Generic, at(Src::Variable(0, 0), 0)),
    ];
    for (text, space, address) in table {
        assert_eq!(op(text), load(space, U32, 4, &[r(0)], address), "{text}");
    }
}

#[test]
fn types_and_vectors() {
    let a = at(reg(d(1)), 0);
    assert_eq!(op("ld.global.s8 r0, [d1];"), load(Space::Global, S8, 4, &[r(0)], a));
    assert_eq!(op("ld.global.u8 h0, [d1];"), load(Space::Global, U8, 2, &[h(0)], a));
    assert_eq!(op("ld.global.f32 f0, [d1];"), load(Space::Global, F32, 4, &[f(0)], a));
    assert_eq!(op("ld.global.v2.f32 {f0, f1}, [d1];"), load(Space::Global, F32, 4, &[f(0), f(1)], a));
    assert_eq!(
        op("ld.global.v4.b32 {r0, r1, r2, r3}, [d1];"),
        load(Space::Global, B32, 4, &[r(0), r(1), r(2), r(3)], a)
    );
    assert_eq!(op("ld.global.v4.u8 {h0, h1, h2, h3}, [d1];"), load(Space::Global, U8, 2, &[h(0), h(1), h(2), h(3)], a));
    let dst = vec![None, Some(r(1))];
    let sink = Op::Load { space: Space::Global, ty: B32, reg_bytes: 4, dst, address: a, strong: false };
    assert_eq!(op("ld.global.v2.b32 {_, r1}, [d1];"), sink);
    let store = |ty, src: &[Src]| Op::Store { space: Space::Global, ty, src: src.to_vec(), address: a, strong: false };
    assert_eq!(op("st.global.u8 [d1], r2;"), store(U8, &[reg(r(2))]));
    assert_eq!(op("st.global.u32 [d1], -1;"), store(U32, &[imm(0xffff_ffff)]));
    assert_eq!(op("st.global.f32 [d1], 1.0;"), store(F32, &[imm(0x3f80_0000)]));
    assert_eq!(op("st.global.v2.b32 [d1], {r2, 7};"), store(B32, &[reg(r(2)), imm(7)]));
    let wide = "ld.global.v8.b32 {r0, r1, r2, r3, r4, r5, r6, r7}, [d1];";
    assert!(error_for("sm_90", wide).contains("sm_100"));
    assert!(parse_for("sm_100", wide).is_ok());
}

/// Cache modifiers change nothing; there is one kind of fence.
#[test]
fn modifiers_that_are_only_checked() {
    let expected = op("ld.global.u32 r0, [d1];");
    let loads = [
        "ld.weak.global.u32 r0, [d1];",
        "ld.global.ca.u32 r0, [d1];",
        "ld.global.cg.L2::128B.u32 r0, [d1];",
        "ld.global.nc.u32 r0, [d1];",
        "ld.global.nc.L1::no_allocate.L2::256B.u32 r0, [d1];",
        "ld.global.L1::evict_last.L2::cache_hint.u32 r0, [d1], d2;",
        "ldu.global.u32 r0, [d1];",
    ];
    for text in loads {
        assert_eq!(op(text), expected, "{text}");
    }
    let expected = op("st.global.u32 [d1], r0;");
    let stores = [
        "st.global.wt.u32 [d1], r0;",
        "st.global.cs.u32 [d1], r0;",
        "st.global.L1::no_allocate.u32 [d1], r0;",
        "st.global.L2::cache_hint.u32 [d1], r0, d2;",
    ];
    for text in stores {
        assert_eq!(op(text), expected, "{text}");
    }
    let fences = [
        "membar.cta;",
        "membar.gl;",
        "membar.sys;",
        "fence.sc.gpu;",
        "fence.acq_rel.cta;",
        "fence.acquire.cluster;",
        "fence.proxy.async;",
        "fence.proxy.async.shared::cta;",
        "fence.proxy.alias;",
        "fence.proxy.tensormap::generic.acquire.gpu [d1], 128;",
        "fence.mbarrier_init.release.cluster;",
    ];
    for text in fences {
        assert_eq!(op(text), Op::Fence, "{text}");
    }
    let hints = [
        "prefetch.global.L1 [d1];",
        "prefetch.global.L2::evict_last [d1];",
        "prefetchu.L1 [d1];",
        "applypriority.global.L2::evict_normal [d1], 128;",
        "discard.global.L2 [d1], 128;",
        "griddepcontrol.wait;",
        "griddepcontrol.launch_dependents;",
    ];
    for text in hints {
        assert_eq!(op(text), Op::Hint, "{text}");
    }
    let policies = [
        "createpolicy.fractional.L2::evict_last.b64 d0, 1.0;",
        "createpolicy.fractional.L2::evict_first.b64 d0;",
        "createpolicy.range.global.L2::evict_last.L2::evict_first.b64 d0, [d1], r1, r2;",
        "createpolicy.cvt.L2.b64 d0, d1;",
    ];
    for text in policies {
        assert_eq!(op(text), op("mov.b64 d0, 0;"), "{text}");
    }
}

#[test]
fn atomics() {
    let address = at(reg(d(1)), 0);
    let atomic = |space, op, ty, dst: Option<u32>, b, c| Op::Atomic {
        space,
        op,
        ty,
        dst: dst.map(|dst| vec![Some(dst)]),
        address,
        b: vec![b],
        c,
    };
    use AtomicOp::{Add, And, Cas, Dec, Exch, Inc, Max, Min, Or, Xor};
    let table = [
        ("and.b32", And, B32),
        ("or.b32", Or, B32),
        ("xor.b32", Xor, B32),
        ("add.u32", Add, U32),
        ("add.s32", Add, Type::S32),
        ("inc.u32", Inc, U32),
        ("dec.u32", Dec, U32),
        ("min.s32", Min, Type::S32),
        ("max.u32", Max, U32),
        ("add.noftz.f16x2", Add, Type::F16x2),
    ];
    for (name, operation, ty) in table {
        let expected = |dst| atomic(Space::Global, operation, ty, dst, reg(r(2)), imm(0));
        assert_eq!(op(&format!("atom.global.{name} r0, [d1], r2;")), expected(Some(r(0))), "{name}");
        assert_eq!(op(&format!("red.relaxed.gpu.global.{name} [d1], r2;")), expected(None), "{name}");
    }
    let exchange = atomic(Space::Generic, Exch, Type::B64, Some(d(0)), reg(d(2)), imm(0));
    assert_eq!(op("atom.relaxed.sys.exch.b64 d0, [d1], d2;"), exchange);
    let cas = atomic(Space::Global, Cas, Type::B16, Some(h(0)), reg(h(1)), reg(h(2)));
    assert_eq!(op("atom.global.gpu.relaxed.cas.b16 h0, [d1], h1, h2;"), cas);
    let float = atomic(Space::Global, Add, F32, Some(f(0)), imm(0x3f80_0000), imm(0));
    assert_eq!(op("atom.global.add.f32 f0, [d1], 0f3F800000;"), float);
    let hinted = atomic(Space::Global, Add, U32, Some(r(0)), reg(r(2)), imm(0));
    assert_eq!(op("atom.global.add.L2::cache_hint.u32 r0, [d1], r2, d3;"), hinted);
    let Op::Atomic { dst, b, .. } = op("atom.global.add.v4.f32 {f0, f1, f2, f3}, [d1], {f4, f5, f6, f7};") else {
        panic!("no atomic")
    };
    assert_eq!((dst.unwrap().len(), b.len()), (4, 4));
    let Op::Atomic { dst, .. } = op("atom.global.add.u32 _, [d1], r2;") else { panic!("no atomic") };
    assert_eq!(dst, Some(vec![None]));
}

#[test]
fn asynchronous_copies() {
    let (dst, src) = (at(reg(r(1)), 16), at(reg(d(1)), 0));
    let copy = |bytes, src_bytes, ignore| Op::CopyAsync { dst, src, bytes, src_bytes, ignore };
    let table = [
        ("cp.async.ca.shared.global [r1+16], [d1], 4;", copy(4, imm(4), None)),
        ("cp.async.ca.shared.global [r1+16], [d1], 8, 6;", copy(8, imm(6), None)),
        ("cp.async.cg.shared.global [r1+16], [d1], 16, r2;", copy(16, reg(r(2)), None)),
        ("cp.async.cg.shared::cta.global.L2::128B [r1+16], [d1], 16;", copy(16, imm(16), None)),
        ("cp.async.cg.shared.global [r1+16], [d1], 16, p1;", copy(16, imm(16), Some(reg(p(1))))),
        ("cp.async.cg.shared.global [r1+16], [d1], 16, !p1;", copy(16, imm(16), Some(Src::NotReg(p(1))))),
        ("cp.async.cg.shared.global.L2::cache_hint [r1+16], [d1], 16, r2, d3;", copy(16, reg(r(2)), None)),
        ("cp.async.cg.shared.global.L2::cache_hint [r1+16], [d1], 16, d3;", copy(16, imm(16), None)),
        ("cp.async.commit_group;", Op::CommitGroup),
        ("cp.async.wait_group 3;", Op::WaitGroup(Some(3))),
        ("cp.async.wait_all;", Op::WaitGroup(None)),
    ];
    for (text, expected) in table {
        assert_eq!(op(text), expected, "{text}");
    }
}

#[test]
fn what_is_illegal_is_refused() {
    refused(&[
        ("ld.global.f16 h0, [d1];", "f16"),
        ("ld.global.v3.u32 {r0, r1, r2}, [d1];", "v3"),
        ("ld.global.v4.u64 {d0, d1, d2, d3}, [d1];", "sm_100"),
        ("ld.shared.v8.u16 {h0, h1, h2, h3, h0, h1, h2, h3}, [r1];", "8 times"),
        ("ld.global.v2.u32 {r0, h1}, [d1];", "h1"),
        ("ld.global.v2.u32 r0, [d1];", "2 elements"),
        ("ld.global.u64 r0, [d1];", "r0"),
        ("ld.global.u32 r0, [r1];", "address"),
        ("ld.global.u32 r0, [sv];", "space"),
        ("ld.shared.u32 r0, [gv];", "space"),
        ("ld.u32 r0, [sv];", "space"),
        ("ld.global.u32 r0, [f1];", "f1"),
        ("ld.global.u32 r0, d1;", "address"),
        ("ld.relaxed.global.u32 r0, [d1];", "scope"),
        ("ld.acquire.gpu.const.u32 r0, [d1];", "relaxed"),
        ("ld.shared.nc.u32 r0, [r1];", ".nc"),
        ("ld.shared.L1::evict_last.u32 r0, [r1];", "global memory"),
        ("ld.global.wt.u32 r0, [d1];", "wt"),
        ("ld.global.L2::evict_last.u32 r0, [d1];", "L2"),
        ("ld.global.u32 r0, [d1, {r1, r2}];", "plain address"),
        ("st.const.u32 [cv], r0;", "constant"),
        ("st.param.u32 [kp], r0;", "parameters"),
        ("st.global.L2::128B.u32 [d1], r0;", "L2::128B"),
        ("st.acquire.gpu.global.u32 [d1], r0;", "acquire"),
        ("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [r1], r0, [r2];", "not supported yet"),
        ("atom.global.add.f16 h0, [d1], h2;", "noftz"),
        ("atom.global.and.u32 r0, [d1], r2;", "u32"),
        ("atom.global.inc.s32 r0, [d1], r2;", "s32"),
        ("atom.global.cas.b32 r0, [d1], r2;", "missing"),
        ("atom.local.add.u32 r0, [r1], r2;", "local"),
        ("red.global.exch.b32 [d1], r2;", "exch"),
        ("atom.global.exch.b128 d0, [d1], d2;", "128"),
        ("cp.async.cg.shared.global [r1], [d1], 8;", "8 bytes"),
        ("cp.async.ca.shared.global [r1], [d1], 4, 8;", "more bytes"),
        (
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r1], [d1], 16, [r2];",
            "not supported yet",
        ),
        ("cp.async.mbarrier.arrive.shared.b64 [r1];", "not supported yet"),
        ("membar.gpu;", "cta"),
        ("fence.acq_rel;", "scope"),
        ("discard.global.L2 [d1], 64;", "128"),
    ]);
    assert!(error_for("sm_80", "ld.shared::cluster.u32 r0, [r1];").contains("sm_90"));
    assert!(error_for("sm_80", "fence.acq_rel.cluster;").contains("sm_90"));
}

/// What an instruction under the guard `p1` becomes: its operations, all of them guarded.
fn guarded(text: &str) -> Vec<Op> {
    let program = common::parse(&format!("@p1 {text}")).expect("it parses");
    let code = &program.kernels[0].code;
    let (ret, code) = code.split_last().expect("the closing ret");
    assert_eq!((&ret.op, ret.guard), (&Op::Return, None));
    assert!(code.iter().all(|instruction| instruction.guard == Some((p(1), false))), "{text}");
    assert!(program.kernels[0].lines[..code.len()].iter().all(|line| line.ptx == common::FIRST_LINE), "{text}");
    code.iter().map(|instruction| instruction.op.clone()).collect()
}

#[test]
fn orders_are_fences_and_strong_accesses() {
    let strong = |text: &str| match op(text) {
        Op::Load { space, ty, reg_bytes, dst, address, .. } => {
            Op::Load { space, ty, reg_bytes, dst, address, strong: true }
        }
        Op::Store { space, ty, src, address, .. } => Op::Store { space, ty, src, address, strong: true },
        op => op,
    };
    let (load, store) = (strong("ld.u32 r0, [d1];"), strong("st.u32 [d1], r0;"));
    let (atom, red) = (op("atom.add.u32 r0, [d1], r2;"), op("red.add.u32 [d1], r2;"));
    let fence = Op::Fence;
    let table: &[(&str, &[&Op])] = &[
        ("ld.volatile.u32 r0, [d1];", &[&load]),
        ("ld.relaxed.gpu.u32 r0, [d1];", &[&load]),
        ("ld.mmio.relaxed.sys.u32 r0, [d1];", &[&load]),
        ("ld.acquire.sys.u32 r0, [d1];", &[&load, &fence]),
        ("st.volatile.u32 [d1], r0;", &[&store]),
        ("st.relaxed.cta.u32 [d1], r0;", &[&store]),
        ("st.release.gpu.u32 [d1], r0;", &[&fence, &store]),
        ("atom.relaxed.cta.add.u32 r0, [d1], r2;", &[&atom]),
        ("atom.acquire.cta.add.u32 r0, [d1], r2;", &[&atom, &fence]),
        ("atom.release.cta.add.u32 r0, [d1], r2;", &[&fence, &atom]),
        ("atom.acq_rel.cta.add.u32 r0, [d1], r2;", &[&fence, &atom, &fence]),
        ("red.relaxed.cta.add.u32 [d1], r2;", &[&red]),
        ("red.release.cta.add.u32 [d1], r2;", &[&fence, &red]),
    ];
    for (text, expected) in table {
        assert_eq!(guarded(text).iter().collect::<Vec<_>>(), *expected, "{text}");
    }
}
