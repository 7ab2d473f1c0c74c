//! Planted faults of single accesses: each must be caught, and its clean twin must not be.

mod exec_support;

use exec_support::{block, grid, kernel, module};
use kinglet_emulator::error::FaultKind::{IllegalInstruction, Misaligned, OutOfBounds, Uninitialised};

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
