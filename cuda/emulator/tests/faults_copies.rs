//! Planted faults of asynchronous copies: each must be caught, and its clean twin must not be.

mod exec_support;

use exec_support::{Setup, block, kernel};
use kinglet_emulator::error::FaultKind::{AsyncCopy, IllegalInstruction, Misaligned, OutOfBounds, Race, Uninitialised};

/// `s` is shared memory; `%r6` is the thread's own 16 bytes, `%r7` those of the next thread, `%rd6` its 16 bytes of the first
/// buffer.
fn shared(body: &str) -> String {
    let text = format!(
        "mov.u32 %r8, s;
         shl.b32 %r6, %r2, 4;
         cvt.u64.u32 %rd6, %r6;
         add.s64 %rd6, %rd1, %rd6;
         add.u32 %r6, %r6, %r8;
         mov.u32 %r9, %ntid.x;
         add.u32 %r7, %r2, %r1;
         rem.u32 %r7, %r7, %r9;
         shl.b32 %r7, %r7, 4;
         add.u32 %r7, %r7, %r8;
         {body}"
    );
    kernel(".shared .align 16 .b8 s[8192];", &text)
}

fn next(threads: u32, distance: u32) -> Setup {
    block(threads).n(distance)
}

const COPY: &str = "cp.async.cg.shared.global [%r6], [%rd6], 16;";

#[test]
fn a_copy_without_a_wait() {
    let body = |wait: &str| {
        shared(&format!(
            "{COPY}\ncp.async.commit_group;\n{wait}\nld.shared.u32 %r10, [%r6+4]; // HERE\nst.global.u32 [%rd4], %r10;"
        ))
    };
    let fault = block(32).caught(AsyncCopy, &body(""), &["an asynchronous copy by thread (0, 0, 0)", "at PTX line"]);
    assert_eq!(fault.thread, [0, 0, 0]);
    assert_eq!(block(32).clean(&body("cp.async.wait_group 0;")).words(3), [1, 5, 9]);
    block(32).clean(&body("cp.async.wait_all;"));
    // A barrier waits for threads, not for their copies.
    block(32).caught(AsyncCopy, &body("bar.sync 0;"), &[]);
}

#[test]
fn a_copy_that_is_in_no_group() {
    let body =
        |commit: &str, wait: &str| shared(&format!("{COPY}\n{commit}\n{wait}\nld.shared.u32 %r10, [%r6]; // HERE"));
    block(32).caught(AsyncCopy, &body("", "cp.async.wait_group 0;"), &[]);
    block(32).clean(&body("cp.async.commit_group;", "cp.async.wait_group 0;"));
    block(32).clean(&body("", "cp.async.wait_all;"));
}

#[test]
fn a_wait_that_leaves_one_group_too_many() {
    let body = |left: u32| {
        shared(&format!(
            "{COPY}
             cp.async.commit_group;
             cp.async.cg.shared.global [%r6+4096], [%rd6], 16;
             cp.async.commit_group;
             cp.async.wait_group {left};
             ld.shared.u32 %r10, [%r6]; // HERE"
        ))
    };
    block(32).caught(AsyncCopy, &body(2), &[]);
    block(32).clean(&body(1));
    block(32).clean(&body(0));
}

#[test]
fn another_thread_reads_without_a_barrier() {
    let body = |barrier: &str| {
        shared(&format!(
            "{COPY}
             cp.async.commit_group;
             cp.async.wait_group 0;
             {barrier}
             ld.shared.u32 %r10, [%r7]; // HERE
             st.global.u32 [%rd4], %r10;"
        ))
    };
    // Inside a warp the copies of all lanes are waited for, and still nothing orders one lane's behind another's.
    next(32, 1).caught(AsyncCopy, &body(""), &["an asynchronous copy by thread (1, 0, 0)"]);
    next(32, 1).clean(&body("bar.warp.sync -1;"));
    assert_eq!(next(128, 32).clean(&body("bar.sync 0;")).word(1), 132);
}

#[test]
fn a_store_into_a_copy() {
    let body = |wait: &str| shared(&format!("{COPY}\n{wait}\nst.shared.u32 [%r6], 1; // HERE"));
    block(32).caught(AsyncCopy, &body(""), &["a store"]);
    block(32).clean(&body("cp.async.wait_all;"));
}

#[test]
fn a_copy_over_what_others_read() {
    let body = |barrier: &str| {
        shared(&format!(
            "st.shared.u32 [%r6], %r2;
             bar.sync 0;
             ld.shared.u32 %r10, [%r7]; // HERE
             {barrier}
             {COPY} // HERE
             cp.async.wait_all;"
        ))
    };
    next(64, 1).caught(Race, &body(""), &[]);
    next(64, 1).clean(&body("bar.sync 0;"));
}

#[test]
fn the_pipeline_of_a_matrix_product_is_clean() {
    // Three stages: wait for the oldest, barrier, compute, copy into the stage that was used last.
    let body = |left: u32, barrier: &str| {
        let issue = "cp.async.cg.shared.global [%r20], [%rd6], 16;\ncp.async.commit_group;";
        shared(&format!(
            "mov.u32 %r20, %r6; {issue}
             add.u32 %r20, %r6, 2048; {issue}
             mov.u32 %r21, 0;
             mov.u32 %r23, 0;
             LOOP:
             cp.async.wait_group {left};
             {barrier}
             rem.u32 %r22, %r21, 3;
             shl.b32 %r22, %r22, 11;
             add.u32 %r24, %r7, %r22;
             ld.shared.v4.u32 {{%r25, %r26, %r27, %r28}}, [%r24]; // HERE
             add.u32 %r23, %r23, %r25;
             add.u32 %r20, %r21, 2;
             rem.u32 %r20, %r20, 3;
             shl.b32 %r20, %r20, 11;
             add.u32 %r20, %r20, %r6;
             cp.async.cg.shared.global [%r20], [%rd6], 16; // HERE
             cp.async.commit_group;
             add.u32 %r21, %r21, 1;
             setp.lt.u32 %p1, %r21, 10;
             @%p1 bra LOOP;
             st.global.u32 [%rd4], %r23;"
        ))
    };
    let good = next(128, 40).clean(&body(1, "bar.sync 0;"));
    assert_eq!(good.words(128), (0..128).map(|i| 40 * ((i + 40) % 128)).collect::<Vec<_>>());
    assert_eq!(good.report().counters.async_bytes, 12 * 128 * 16);
    next(128, 40).caught(AsyncCopy, &body(2, "bar.sync 0;"), &[]);
    let fault = next(128, 40).seed(0).run(&body(1, ""));
    assert!(matches!(fault.fault().kind, AsyncCopy | Race | Uninitialised));
}

#[test]
fn sizes_and_addresses_of_copies() {
    let body = |copy: &str| {
        shared(&format!(
            "{copy} // HERE\ncp.async.wait_all;\nld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r6];\nst.global.v4.u32 [%rd2], {{%r10, %r11, %r12, %r13}};"
        ))
    };
    // Fewer bytes of source: the rest is zeros.
    assert_eq!(block(1).clean(&body("cp.async.cg.shared.global [%r6], [%rd6+16], 16, 8;")).words(4), [4, 5, 0, 0]);
    assert_eq!(
        block(1).clean(&body("mov.u32 %r30, 0; cp.async.cg.shared.global [%r6], [%rd6+4096], 16, %r30;")).words(4),
        [0; 4]
    );
    block(1).caught(OutOfBounds, &body("cp.async.cg.shared.global [%r6], [%rd6+4096], 16;"), &["behind the end"]);
    block(1).caught(Misaligned, &body("cp.async.cg.shared.global [%r6], [%rd6+8], 16;"), &["16 bytes"]);
    block(1).caught(Misaligned, &body("cp.async.cg.shared.global [%r6+8], [%rd6], 16;"), &["16 bytes"]);
    block(1).caught(OutOfBounds, &body("cp.async.cg.shared.global [%r6+8192], [%rd6], 16;"), &["shared"]);
    block(1).caught(Uninitialised, &body("cp.async.cg.shared.global [%r6], [%rd2], 16;"), &["nobody wrote byte 0"]);
    block(1).caught(
        IllegalInstruction,
        &body("mov.u32 %r30, 17; cp.async.cg.shared.global [%r6], [%rd6], 16, %r30;"),
        &["17"],
    );
}
