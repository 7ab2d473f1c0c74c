//! Planted faults of single accesses: each must be caught, and its clean twin must not be.

mod exec_support;

use exec_support::{block, grid, kernel, module};
use kinglet_emulator::error::FaultKind::{IllegalInstruction, Misaligned, OutOfBounds, Uninitialised};
use kinglet_emulator::program::Program;

#[test]
fn a_store_behind_the_end() {
    let body = |limit: &str| {
        kernel(
            "",
            &format!(
                "setp.ge.u32 %p1, %r2, {limit};
                 @%p1 ret;
                 mad.lo.u32 %r6, %r3, 1024, %r2;
                 mul.wide.u32 %rd6, %r6, 4;
                 add.s64 %rd6, %rd2, %rd6;
                 st.global.u32 [%rd6], %r6; // HERE"
            ),
        )
    };
    let fault = grid(2, 512).caught(
        OutOfBounds,
        &body("512"),
        &["a store of 4 bytes", "bytes behind the end of the allocation", "of 4096 bytes", "kernel k"],
    );
    assert_eq!(fault.block, [1, 0, 0]);
    grid(1, 512).clean(&body("512"));
}

#[test]
fn an_off_by_one_at_the_end_and_before_the_start() {
    let load = |offset: i32| kernel("", &format!("ld.global.u32 %r6, [%rd3+{offset}]; // HERE"));
    let fault = block(1024).caught(OutOfBounds, &load(4), &["0 bytes behind the end"]);
    assert_eq!(fault.thread, [1023, 0, 0]);
    let fault = block(64).caught(OutOfBounds, &load(-4), &["4 bytes before the allocation"]);
    assert_eq!(fault.thread, [0, 0, 0]);
    block(1024).clean(&load(0));
}

#[test]
fn an_access_over_the_end() {
    let store = |offset: u32| kernel("", &format!("@%p1 ret; st.global.v2.u32 [%rd2+{offset}], {{%r2, %r2}}; // HERE"));
    let split = module("", "", "st.global.u64 [%rd2+4092], %rd1; // HERE");
    block(1).caught(Misaligned, &split, &["8 bytes"]);
    block(1).clean(&store(4088));
    block(1).caught(OutOfBounds, &store(4096), &["8 bytes"]);
}

#[test]
fn a_null_pointer() {
    let load = |base: &str| kernel("", &format!("mov.u64 %rd6, {base}; ld.global.u32 %r6, [%rd6+8]; // HERE"));
    block(32).caught(OutOfBounds, &load("0"), &["null pointer", "0x8"]);
    block(32).clean(&load("%rd1"));
    // The generic form too.
    let generic = kernel("", "mov.u64 %rd6, 0; st.u32 [%rd6], %r2; // HERE");
    block(32).caught(OutOfBounds, &generic, &["null pointer"]);
}

#[test]
fn misaligned_accesses() {
    let load = |what: &str, offset: u32| kernel("", &format!("ld.global.{what}, [%rd1+{offset}]; // HERE"));
    for (what, size) in [("u16 %h1", 2), ("u32 %r6", 4), ("u64 %rd6", 8), ("v4.u32 {%r6, %r7, %r8, %r9}", 16)] {
        block(32).caught(Misaligned, &load(what, size / 2), &[&format!("{size} bytes")]);
        block(32).clean(&load(what, size));
    }
    let shared = |offset: u32| {
        kernel(".shared .align 16 .b8 s[64];", &format!("st.shared.v2.u32 [s+{offset}], {{%r1, %r1}}; // HERE"))
    };
    block(1).caught(Misaligned, &shared(4), &["shared memory"]);
    block(1).clean(&shared(8));
}

#[test]
fn uninitialised_global_memory() {
    let body = |first: &str| kernel("", &format!("{first} ld.global.u32 %r6, [%rd4]; // HERE\n"));
    let fault = block(64).caught(Uninitialised, &body(""), &["nobody wrote byte 0", "of 4096 bytes"]);
    assert_eq!(fault.thread, [0, 0, 0]);
    block(64).clean(&body("st.global.u32 [%rd4], %r2;"));
    // Only half of it is written.
    let half = body("cvt.u16.u32 %h1, %r2; st.global.u16 [%rd4], %h1;");
    block(64).caught(Uninitialised, &half, &["nobody wrote byte 2"]);
    // Atomics read too.
    let atomic = |first: &str| kernel("", &format!("{first} red.global.add.u32 [%rd4], 1; // HERE"));
    block(64).caught(Uninitialised, &atomic(""), &["an atomic"]);
    block(64).clean(&atomic("st.global.u32 [%rd4], 0;"));
}

#[test]
fn uninitialised_shared_memory() {
    let body = |first: &str| {
        let load = "mov.u32 %r6, s; add.u32 %r6, %r6, %r5; ld.shared.f32 %f1, [%r6]; // HERE";
        kernel(".shared .align 4 .b8 s[256];", &format!("{first}\n{load}"))
    };
    block(64).caught(Uninitialised, &body(""), &["(s + "]);
    block(64).clean(&body("mov.u32 %r7, s; add.u32 %r7, %r7, %r5; st.shared.u32 [%r7], %r2;"));
    // Blocks do not inherit each other's bytes.
    let second =
        body("mov.u32 %r7, s; add.u32 %r7, %r7, %r5; setp.ne.u32 %p1, %r3, 0; @!%p1 st.shared.u32 [%r7], %r2;");
    let fault = grid(4, 64).caught(Uninitialised, &second, &[]);
    assert_eq!(fault.block, [1, 0, 0]);
}

#[test]
fn uninitialised_local_memory() {
    let body = |first: &str| {
        let text = format!(
            "mov.u64 %rd6, l; cvta.local.u64 %rd7, %rd6; {first}
             ld.local.u32 %r6, [%rd6+4]; // HERE"
        );
        kernel(".local .align 8 .b8 l[16];", &text)
    };
    block(32).caught(Uninitialised, &body("st.local.u32 [%rd6], %r2;"), &["local memory"]);
    block(32).clean(&body("st.u32 [%rd7+4], %r2;"));
}

#[test]
fn out_of_bounds_in_the_small_spaces() {
    let shared =
        |offset: u32| kernel(".shared .align 4 .b8 tile[128];", &format!("st.shared.u32 [tile+{offset}], 1; // HERE"));
    block(1).caught(OutOfBounds, &shared(128), &["0 bytes behind tile"]);
    block(1).clean(&shared(124));
    let dynamic = |offset: u32| {
        module(".extern .shared .align 16 .b8 dyn[];", "", &format!("st.shared.u32 [dyn+{offset}], 1; // HERE"))
    };
    block(1).dynamic(64).caught(OutOfBounds, &dynamic(64), &["64 bytes"]);
    block(1).dynamic(64).clean(&dynamic(60));
    let local = |offset: u32| {
        kernel(".local .align 4 .b8 l[16];", &format!("mov.u32 %r6, l; st.local.u32 [%r6+{offset}], 1; // HERE"))
    };
    block(1).caught(OutOfBounds, &local(512), &["local memory"]);
    block(1).clean(&local(12));
    // A generic address where a shared one is asked for.
    let generic = kernel(
        ".shared .align 4 .b8 s[64];",
        "mov.u64 %rd6, s; cvta.shared.u64 %rd6, %rd6; st.shared.u32 [%rd6], 1; // HERE",
    );
    block(1).caught(OutOfBounds, &generic, &["generic"]);
    let converted = generic.replace("st.shared.u32", "st.u32");
    block(1).clean(&converted);
}

#[test]
fn stores_to_what_is_read_only() {
    let constant = |space: &str, variable: &str| {
        module(
            ".const .align 4 .u32 v[4] = {1, 2, 3, 4};\n.global .align 4 .u32 w[4];",
            "",
            &format!("mov.u64 %rd6, {variable}; cvta.{space}.u64 %rd6, %rd6; st.u32 [%rd6], 5; // HERE"),
        )
    };
    block(1).caught(IllegalInstruction, &constant("const", "v"), &["read-only"]);
    block(1).clean(&constant("global", "w"));
    // A kernel's parameters by a generic address; the copy of a parameter in local memory may be written.
    let param = |space: &str, variable: &str| {
        let text = format!("mov.u64 %rd6, {variable}; cvta.{space}.u64 %rd6, %rd6; st.u32 [%rd6], 5; // HERE");
        kernel(".local .align 8 .b8 l[8];", &text)
    };
    block(1).caught(IllegalInstruction, &param("param", "n"), &["a store", "Param memory", "read-only"]);
    block(1).clean(&param("local", "l"));
    // By name it is refused before it runs.
    let refused = Program::parse(&kernel("", "st.param.u32 [n], 5;")).expect_err("it is refused");
    assert!(refused.to_string().contains("the parameters of a kernel are not written"), "{refused}");
}

#[test]
fn misaligned_in_the_other_spaces() {
    let outside = ".const .align 8 .b8 v[32] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};";
    let inside = ".local .align 8 .b8 l[32];\n.shared .align 8 .b8 s[32];";
    let body = |text: &str, offset: u32| module(outside, inside, &text.replace('@', &offset.to_string()));
    let local = "mov.u64 %rd6, l; st.local.v2.u64 [%rd6], {%rd1, %rd2}; ";
    let shared = "st.shared.u64 [s], %rd1;\nst.shared.u64 [s+8], %rd1;\nmov.u64 %rd6, s; cvta.shared.u64 %rd7, %rd6; ";
    let cases: &[(&str, String, &str)] = &[
        ("a store of 8 bytes at", "mov.u64 %rd6, l; st.local.u64 [%rd6+@], %rd1; // HERE".into(), "local memory"),
        ("a load of 8 bytes at", format!("{local}\nld.local.u64 %rd7, [%rd6+@]; // HERE"), "local memory"),
        ("a load of 8 bytes at", "ld.param.u64 %rd7, [a+@]; // HERE".into(), "parameters"),
        (
            "a load of 8 bytes at",
            "mov.u64 %rd6, a; cvta.param.u64 %rd6, %rd6; ld.u64 %rd7, [%rd6+@]; // HERE".into(),
            "",
        ),
        ("a load of 8 bytes at", "ld.const.u64 %rd7, [v+@]; // HERE".into(), ""),
        (
            "a load of 8 bytes at",
            "mov.u64 %rd6, v; cvta.const.u64 %rd6, %rd6; ld.u64 %rd7, [%rd6+@]; // HERE".into(),
            "",
        ),
        ("an atomic of 8 bytes at", "atom.global.add.u64 %rd7, [%rd1+@], 1; // HERE".into(), ""),
        ("an atomic of 8 bytes at", "red.global.max.u64 [%rd1+@], 1; // HERE".into(), ""),
        ("an atomic of 8 bytes at", format!("{shared}\natom.shared.exch.b64 %rd8, [s+@], 1; // HERE"), "shared memory"),
        ("an atomic of 8 bytes at", format!("{shared}\nred.add.u64 [%rd7+@], 1; // HERE"), "shared memory"),
    ];
    for (what, text, place) in cases {
        block(1).caught(Misaligned, &body(text, 4), &[what, place]);
        block(1).clean(&body(text, 8));
    }
    let half = |offset: u32| body("mov.u16 %h1, 0; atom.global.cas.b16 %h2, [%rd1+@], %h1, %h1; // HERE", offset);
    block(1).caught(Misaligned, &half(1), &["an atomic of 2 bytes"]);
    block(1).clean(&half(2));
}

#[test]
fn uniform_branches_that_diverge() {
    let branch = |way: &str, split: u32| {
        kernel("", &format!("setp.lt.u32 %p1, %r2, {split};\n@%p1 bra{way} L; // HERE\nst.global.u32 [%rd4], 1;\nL:"))
    };
    let fault = block(64).caught(IllegalInstruction, &branch(".uni", 40), &["bra.uni", "different ways"]);
    assert_eq!(fault.thread, [32, 0, 0]);
    block(64).clean(&branch(".uni", 32));
    block(64).clean(&branch(".uni", 0));
    block(64).clean(&branch("", 40));
    let indexed = |way: &str, split: u32| {
        let table = "ts: .branchtargets L0, L1;";
        let text = format!(
            "setp.ge.u32 %p1, %r2, {split};\nselp.u32 %r6, 1, 0, %p1;\n{table}\nbrx.idx{way} %r6, ts; // HERE
             L0: st.global.u32 [%rd4], 10;\nret;\nL1: st.global.u32 [%rd4], 11;"
        );
        kernel("", &text)
    };
    block(64).caught(IllegalInstruction, &indexed(".uni", 40), &["brx.idx.uni", "different ways"]);
    let outcome = block(64).clean(&indexed(".uni", 32));
    assert_eq!([0, 31, 32, 63].map(|at| outcome.word(at)), [10, 10, 11, 11]);
    let outcome = block(64).clean(&indexed("", 40));
    assert_eq!([0, 39, 40, 63].map(|at| outcome.word(at)), [10, 10, 11, 11]);
}

#[test]
fn a_table_index_out_of_range() {
    let body = |index: u32| {
        kernel(
            "",
            &format!(
                "mov.u32 %r6, {index};
                 ts: .branchtargets L0, L1;
                 brx.idx %r6, ts; // HERE
                 L0: st.global.u32 [%rd4], 10;
                 ret;
                 L1: st.global.u32 [%rd4], 11;"
            ),
        )
    };
    block(1).caught(IllegalInstruction, &body(2), &["index 2, of 2 targets"]);
    assert_eq!(block(1).clean(&body(0)).word(0), 10);
    assert_eq!(block(1).clean(&body(1)).word(0), 11);
}
