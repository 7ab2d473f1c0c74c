//! Exchange between lanes, barriers, tensor cores.

mod common;

use common::{d, e, error, error_for, f, imm, op, p, r, refused, reg, regs};
use kinglet_emulator::program::{Address, BarrierKind, Mma, Op, ReduxOp, Shuffle, Space, Src, Type, Vote};

const FULL: Src = Src::Imm(0xffff_ffff);

#[test]
fn shuffles() {
    let modes = [("up", Shuffle::Up), ("down", Shuffle::Down), ("bfly", Shuffle::Bfly), ("idx", Shuffle::Idx)];
    for (name, mode) in modes {
        let expected = |in_range, mask| Op::Shuffle {
            mode,
            dst: Some(r(0)),
            in_range,
            a: reg(r(1)),
            b: reg(r(2)),
            c: imm(31),
            mask,
        };
        assert_eq!(op(&format!("shfl.sync.{name}.b32 r0, r1, r2, 31, -1;")), expected(None, FULL));
        assert_eq!(op(&format!("shfl.sync.{name}.b32 r0|p0, r1, r2, 31, r3;")), expected(Some(p(0)), reg(r(3))));
    }
}

#[test]
fn votes_and_matches() {
    for (name, vote) in [("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uni)] {
        let expected = Op::Vote { vote, dst: p(0), predicate: Src::NotReg(p(1)), mask: FULL };
        assert_eq!(op(&format!("vote.sync.{name}.pred p0, !p1, 0xffffffff;")), expected);
    }
    let ballot = Op::Vote { vote: Vote::Ballot, dst: r(0), predicate: reg(p(1)), mask: reg(r(1)) };
    assert_eq!(op("vote.sync.ballot.b32 r0, p1, r1;"), ballot);
    let matched = |all, ty, dst, equal, a| Op::Match { all, ty, dst, equal, a, mask: FULL };
    assert_eq!(op("match.any.sync.b32 r0, r1, -1;"), matched(false, Type::B32, Some(r(0)), None, reg(r(1))));
    let both = matched(true, Type::B64, Some(r(0)), Some(p(0)), reg(d(1)));
    assert_eq!(op("match.all.sync.b64 r0|p0, d1, -1;"), both);
    assert_eq!(op("activemask.b32 r0;"), Op::ActiveMask { dst: r(0) });
    assert_eq!(op("elect.sync r0|p0, -1;"), Op::Elect { dst: Some(r(0)), elected: p(0), mask: FULL });
    assert_eq!(op("elect.sync _|p0, -1;"), Op::Elect { dst: None, elected: p(0), mask: FULL });
}

#[test]
fn reductions() {
    let table = [
        ("add.u32", ReduxOp::Add, Type::U32),
        ("add.s32", ReduxOp::Add, Type::S32),
        ("min.s32", ReduxOp::Min, Type::S32),
        ("max.u32", ReduxOp::Max, Type::U32),
        ("and.b32", ReduxOp::And, Type::B32),
        ("or.b32", ReduxOp::Or, Type::B32),
        ("xor.b32", ReduxOp::Xor, Type::B32),
    ];
    for (name, operation, ty) in table {
        let expected = Op::Redux { op: operation, ty, dst: r(0), a: reg(r(1)), mask: FULL };
        assert_eq!(op(&format!("redux.sync.{name} r0, r1, -1;")), expected);
    }
}

#[test]
fn barriers() {
    let barrier = |kind, id, threads, aligned| Op::Barrier { kind, id, threads, aligned, dst: None, predicate: imm(0) };
    use BarrierKind::{Arrive, RedAnd, RedOr, RedPopc, Sync};
    let table = [
        ("bar.sync 0;", barrier(Sync, imm(0), None, true)),
        ("bar.cta.sync 1, 64;", barrier(Sync, imm(1), Some(imm(64)), true)),
        ("bar.sync r1, r2;", barrier(Sync, reg(r(1)), Some(reg(r(2))), true)),
        ("bar.arrive 15, 96;", barrier(Arrive, imm(15), Some(imm(96)), true)),
        ("barrier.sync 0;", barrier(Sync, imm(0), None, false)),
        ("barrier.cta.sync.aligned 0;", barrier(Sync, imm(0), None, true)),
        ("barrier.arrive 2, 64;", barrier(Arrive, imm(2), Some(imm(64)), false)),
        ("bar.warp.sync -1;", Op::WarpSync { mask: FULL }),
        ("nanosleep.u32 20;", Op::Yield),
        ("pmevent 3;", Op::Yield),
    ];
    for (text, expected) in table {
        assert_eq!(op(text), expected, "{text}");
    }
    let reduce = |kind, threads, dst, predicate, aligned| Op::Barrier {
        kind,
        id: imm(0),
        threads,
        aligned,
        dst: Some(dst),
        predicate,
    };
    assert_eq!(op("bar.red.popc.u32 r0, 0, p1;"), reduce(RedPopc, None, r(0), reg(p(1)), true));
    assert_eq!(op("bar.red.and.pred p0, 0, 64, !p1;"), reduce(RedAnd, Some(imm(64)), p(0), Src::NotReg(p(1)), true));
    assert_eq!(op("barrier.red.or.pred p0, 0, p1;"), reduce(RedOr, None, p(0), reg(p(1)), false));
}

#[test]
fn matrices_of_shared_memory() {
    let address = Address { base: reg(r(1)), offset: 32 };
    let load = |transpose, dst: &[u32]| Op::LoadMatrix { space: Space::Shared, transpose, dst: dst.to_vec(), address };
    assert_eq!(op("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r4}, [r1+32];"), load(false, &[r(4)]));
    let two = load(true, &[r(4), r(5)]);
    assert_eq!(op("ldmatrix.sync.aligned.m8n8.x2.trans.shared::cta.b16 {r4, r5}, [r1+32];"), two);
    let four = load(false, &[r(4), r(5), r(6), r(7)]);
    assert_eq!(op("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r4, r5, r6, r7}, [r1+32];"), four);
    let store = Op::StoreMatrix { space: Space::Shared, transpose: true, src: regs([r(4), r(5)]).to_vec(), address };
    assert_eq!(op("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [r1+32], {r4, r5};"), store);
    let moved = Op::MoveMatrix { dst: r(0), src: reg(r(1)) };
    assert_eq!(op("movmatrix.sync.aligned.m8n8.trans.b16 r0, r1;"), moved);
}

/// The shape, the types (d, a, b, c) and how many registers each has.
#[test]
fn products_of_matrices() {
    let table = [
        ("m8n8k4.row.col.f16.f16.f16.f16", [4, 2, 2, 4]),
        ("m8n8k4.col.row.f32.f16.f16.f32", [8, 2, 2, 8]),
        ("m16n8k8.row.col.f16.f16.f16.f16", [2, 2, 1, 2]),
        ("m16n8k8.row.col.f32.bf16.bf16.f32", [4, 2, 1, 4]),
        ("m16n8k16.row.col.f32.f16.f16.f32", [4, 4, 2, 4]),
        ("m16n8k16.row.col.f16.f16.f16.f16", [2, 4, 2, 2]),
        ("m16n8k4.row.col.f32.tf32.tf32.f32", [4, 2, 1, 4]),
        ("m16n8k8.row.col.f32.tf32.tf32.f32", [4, 4, 2, 4]),
        ("m8n8k4.row.col.f64.f64.f64.f64", [2, 1, 1, 2]),
        ("m16n8k4.row.col.f64.f64.f64.f64", [4, 2, 1, 4]),
        ("m16n8k8.row.col.f64.f64.f64.f64", [4, 4, 2, 4]),
        ("m16n8k16.row.col.f64.f64.f64.f64", [4, 8, 4, 4]),
        ("m8n8k16.row.col.s32.s8.u8.s32", [2, 1, 1, 2]),
        ("m16n8k16.row.col.satfinite.s32.u8.s8.s32", [4, 2, 1, 4]),
        ("m16n8k32.row.col.s32.s8.s8.s32", [4, 4, 2, 4]),
        ("m16n8k32.row.col.f32.e4m3.e5m2.f32", [4, 4, 2, 4]),
        ("m16n8k16.row.col.f16.e5m2.e5m2.f16", [2, 2, 1, 2]),
    ];
    for (name, counts) in table {
        let types: Vec<Type> = name.split('.').filter_map(Type::from_name).collect();
        let register = |ty: Type, n: usize| match ty {
            Type::F32 => (format!("f{}", n % 8), f(n as u32 % 8)),
            Type::F64 => (format!("e{}", n % 4), e(n as u32 % 4)),
            _ => (format!("r{}", n % 8), r(n as u32 % 8)),
        };
        let vector = |operand: usize| {
            let names: Vec<String> = (0..counts[operand]).map(|n| register(types[operand], n).0).collect();
            format!("{{{}}}", names.join(", "))
        };
        let numbers = |operand: usize| (0..counts[operand]).map(|n| register(types[operand], n).1).collect::<Vec<_>>();
        let sources = |operand: usize| numbers(operand).into_iter().map(Src::Reg).collect::<Vec<_>>();
        let text = format!("mma.sync.aligned.{name} {}, {}, {}, {};", vector(0), vector(1), vector(2), vector(3));
        let shape: Vec<u8> =
            name.split('.').next().unwrap()[1..].split(['n', 'k']).map(|n| n.parse().unwrap()).collect();
        let mma = Mma {
            m: shape[0],
            n: shape[1],
            k: shape[2],
            a: types[1],
            b: types[2],
            c: types[3],
            d: types[0],
            satfinite: name.contains("satfinite"),
            a_col: name.contains("col.row"),
            b_row: name.contains("col.row"),
        };
        assert_eq!(op(&text), Op::Mma { mma, d: numbers(0), a: sources(1), b: sources(2), c: sources(3) }, "{text}");
    }
}

#[test]
fn what_is_illegal_is_refused() {
    refused(&[
        ("shfl.up.b32 r0, r1, r2, r3;", ".sync"),
        ("shfl.sync.up.u32 r0, r1, r2, 31, -1;", "u32"),
        ("shfl.sync.b32 r0, r1, r2, 31, -1;", ".up"),
        ("shfl.sync.up.b32 r0, r1, r2, 31;", "missing"),
        ("vote.all.pred p0, p1;", ".sync"),
        ("vote.sync.all.b32 r0, p1, -1;", "b32"),
        ("match.any.sync.b32 r0|p0, r1, -1;", "predicate"),
        ("redux.sync.add.b32 r0, r1, -1;", "b32"),
        ("redux.sync.and.u32 r0, r1, -1;", "u32"),
        ("bar.sync 16;", "no barrier 16"),
        ("bar.sync 0, 33;", "whole warps"),
        ("bar.arrive 0;", "missing"),
        ("bar.sync.aligned 0;", "aligned"),
        ("bar.red.popc.pred p0, 0, p1;", "pred"),
        ("barrier.cluster.arrive.aligned;", "not supported yet"),
        ("ldmatrix.sync.aligned.m8n8.x3.shared.b16 {r0, r1, r2}, [r3];", "x1"),
        ("ldmatrix.sync.aligned.m8n8.x2.global.b16 {r0, r1}, [d3];", "space"),
        ("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {r0}, [r3];", "2 elements"),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {f0, f1, f2, f3}, {r0, r1, r2, r3}, {r4, r5}, {f0, f1, f2, f3};",
            "there is no",
        ),
        (
            "mma.sync.aligned.m16n8k16.col.col.f32.f16.f16.f32 {f0, f1, f2, f3}, {r0, r1, r2, r3}, {r4, r5}, {f0, f1, f2, f3};",
            "layout",
        ),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {f0, f1, f2, f3}, {r0, r1}, {r4, r5}, {f0, f1, f2, f3};",
            "4 elements",
        ),
        (
            "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {r0, r1, r2, r3}, {r0, r1, r2, r3}, {r4, r5}, {r0, r1, r2, r3};",
            "not supported: .s4",
        ),
        (
            "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {f0, f1, f2, f3}, {r0, r1, r2, r3}, {r4, r5, r6, r7}, {f0, f1, f2, f3}, r0, 0;",
            "sparse",
        ),
        ("wgmma.fence.sync.aligned;", "not supported yet: wgmma (needs sm_90a)"),
        ("setmaxnreg.inc.sync.aligned.u32 240;", "not supported yet: setmaxnreg"),
        ("mbarrier.init.shared.b64 [r1], 1;", "not supported yet: mbarrier"),
        ("mapa.shared::cluster.u32 r0, r1, r2;", "not supported yet: mapa"),
        ("wmma.load.a.sync.aligned.m16n16k16.row.f16 {r0}, [d1];", "not supported: wmma"),
        ("tex.1d.v4.f32.s32 {f0, f1, f2, f3}, [gv, {r0}];", "textures"),
        ("vadd.s32.s32.s32 r0, r1, r2;", "video"),
        ("frobnicate.u32 r0;", "unknown instruction"),
    ]);
    assert_eq!(error("frobnicate.u32 r0;"), "frobnicate.u32: unknown instruction");
    assert!(error_for("sm_80", "elect.sync _|p0, -1;").contains("sm_90"));
    assert!(error_for("sm_80", "stmatrix.sync.aligned.m8n8.x1.shared.b16 [r1], {r2};").contains("sm_90"));
}
