//! Planted races in shared memory: each must be caught, and its clean twin must not be.

mod exec_support;

use exec_support::{Setup, block, kernel};
use kinglet_emulator::error::FaultKind::{Race, Uninitialised};
use kinglet_emulator::gpu::Checks;

/// Words of shared memory `s`; `%r6` is the thread's own word, `%r7` that of the thread `n` further on (around), `%r8` the
/// word of the block's first thread.
fn shared(body: &str) -> String {
    let text = format!(
        "mov.u32 %r8, s;
         add.u32 %r6, %r8, %r5;
         mov.u32 %r9, %ntid.x;
         add.u32 %r7, %r2, %r1;
         rem.u32 %r7, %r7, %r9;
         shl.b32 %r7, %r7, 2;
         add.u32 %r7, %r7, %r8;
         {body}"
    );
    kernel(".shared .align 16 .b8 s[4096];", &text)
}

/// Without the reads of what nobody wrote: which of two racing accesses comes first is the seed's choice.
fn racing(threads: u32) -> Setup {
    block(threads).n(32).checks(Checks { uninitialised: false, ..Checks::default() })
}

#[test]
fn a_removed_barrier() {
    // Store, load the neighbour's, store again: read after write, and write after read.
    let body = |first: &str, second: &str| {
        shared(&format!(
            "st.shared.u32 [%r6], %r2; // HERE
             {first}
             ld.shared.u32 %r10, [%r7]; // HERE
             {second}
             st.shared.u32 [%r6], %r10; // HERE"
        ))
    };
    let barrier = "bar.sync 0;";
    let words = ["shared memory (s + ", "by thread (", "at PTX line", "nothing that orders them"];
    racing(256).caught(Race, &body("", barrier), &words);
    racing(256).caught(Race, &body(barrier, ""), &words);
    racing(256).caught(Race, &body("", ""), &words);
    block(256).n(32).clean(&body(barrier, barrier));
    block(250).n(32).clean(&body(barrier, barrier));
    block(256).n(32).clean(&body("barrier.sync 3;", "barrier.cta.red.popc.u32 %r20, 1, %p0;"));
}

#[test]
fn write_after_write_across_warps() {
    let body = |barrier: &str| {
        shared(&format!(
            "setp.eq.u32 %p1, %r2, 0;
             @%p1 st.shared.u32 [%r8], 1; // HERE
             {barrier}
             setp.eq.u32 %p2, %r2, 33;
             @%p2 st.shared.u32 [%r8], 2; // HERE"
        ))
    };
    racing(64).caught(Race, &body(""), &["a store", "and before it a store", "(s + 0)"]);
    block(64).clean(&body("bar.sync 0;"));
}

#[test]
fn a_race_inside_a_warp() {
    let body = |sync: &str| {
        shared(&format!(
            "st.shared.u32 [%r6], %r2;
             {sync}
             ld.shared.u32 %r10, [%r7]; // HERE
             st.global.u32 [%rd4], %r10;"
        ))
    };
    let near = block(32).n(1);
    let fault = near.caught(Race, &body(""), &["thread (1, 0, 0)"]);
    assert_eq!(fault.thread, [0, 0, 0]);
    assert_eq!(
        near.clean(&body("bar.warp.sync 0xffffffff;")).words(32),
        (0..32).map(|i| (i + 1) % 32).collect::<Vec<_>>()
    );
    // A shuffle or a vote orders nothing: the ISA promises no memory order for them.
    near.caught(Race, &body("shfl.sync.idx.b32 %r20, %r2, 0, 31, 0xffffffff;"), &[]);
    // A thread that reads its own word races with nobody.
    block(32).n(0).clean(&body(""));
}

#[test]
fn a_warp_barrier_does_not_order_warps() {
    let body = |sync: &str| shared(&format!("st.shared.u32 [%r6], %r2;\n{sync}\nld.shared.u32 %r10, [%r7]; // HERE"));
    let shifted = |threads| racing(threads).n(31);
    shifted(128).caught(
        Race,
        &shared("st.shared.u32 [%r6], %r2; // HERE\nbar.warp.sync -1;\nld.shared.u32 %r10, [%r7]; // HERE"),
        &[],
    );
    block(128).n(31).clean(&body("bar.sync 0;"));
}

#[test]
fn half_a_warp_synchronised() {
    // Lanes 0-15 exchange among themselves; with the mask of only eight of them, the others race.
    let body = |mask: &str| {
        shared(&format!(
            "st.shared.u32 [%r6], %r2;
             setp.lt.u32 %p1, %r2, 16;
             @!%p1 ret;
             {mask}
             xor.b32 %r10, %r5, 36;
             add.u32 %r10, %r10, %r8;
             ld.shared.u32 %r11, [%r10]; // HERE"
        ))
    };
    block(32).clean(&body("bar.warp.sync 0xffff;"));
    let halves = "setp.lt.u32 %p2, %r2, 8; @%p2 bar.warp.sync 0xff; @!%p2 bar.warp.sync 0xff00;";
    block(32).caught(Race, &body(halves), &[]);
}

#[test]
fn lanes_of_one_store() {
    let body = |value: &str| shared(&format!("st.shared.u32 [%r8], {value}; // HERE"));
    let fault = block(32).caught(Race, &body("%r2"), &["in the same instruction", "thread (0, 0, 0)"]);
    assert_eq!(fault.thread, [1, 0, 0]);
    // Equal values: whichever stays is the same.
    block(32).clean(&body("7"));
    // Neighbouring halves of a word belong to different threads.
    let halves =
        shared("shl.b32 %r10, %r2, 1; add.u32 %r10, %r10, %r8; cvt.u16.u32 %h1, %r2; st.shared.u16 [%r10], %h1;");
    block(64).clean(&halves);
    // The same with a byte each, and a load of the word without a barrier.
    let bytes = "add.u32 %r10, %r2, %r8; cvt.u16.u32 %h1, %r2; st.shared.u8 [%r10], %h1;";
    block(64).clean(&shared(bytes));
    let load =
        |sync: &str| shared(&format!("{bytes}\n{sync}\nand.b32 %r10, %r10, -4; ld.shared.u32 %r11, [%r10]; // HERE"));
    block(32).caught(Race, &load(""), &[]);
    block(64).clean(&load("bar.sync 0;"));
}

#[test]
fn atomics_race_with_plain_accesses_only() {
    let body = |before: &str, after: &str| {
        shared(&format!(
            "setp.eq.u32 %p1, %r2, 0;
             @%p1 st.shared.u32 [%r8], 0; // HERE
             {before}
             atom.shared.add.u32 %r10, [%r8], 1; // HERE
             {after}
             @%p1 ld.shared.u32 %r11, [%r8]; // HERE
             @%p1 st.global.u32 [%rd2], %r11;"
        ))
    };
    let barrier = "bar.sync 0;";
    assert_eq!(block(256).clean(&body(barrier, barrier)).word(0), 256);
    racing(256).caught(Race, &body("", barrier), &["atomic"]);
    racing(256).caught(Race, &body(barrier, ""), &["atomic"]);
}

#[test]
fn a_double_buffer_is_clean() {
    // Two buffers, one barrier an iteration: the textbook loop. Without the barrier it races.
    let body = |barrier: &str| {
        shared(&format!(
            "mov.u32 %r20, 0;
             mov.u32 %r21, 0;
             mov.u32 %r23, 0;
             LOOP:
             add.u32 %r22, %r6, %r21;
             st.shared.u32 [%r22], %r20; // HERE
             {barrier}
             add.u32 %r22, %r7, %r21;
             ld.shared.u32 %r10, [%r22]; // HERE
             add.u32 %r23, %r23, %r10;
             xor.b32 %r21, %r21, 2048;
             add.u32 %r20, %r20, 1;
             setp.lt.u32 %p1, %r20, 20;
             @%p1 bra LOOP;
             st.global.u32 [%rd4], %r23;"
        ))
    };
    assert_eq!(block(512).n(32).clean(&body("bar.sync 0;")).words(512), vec![190; 512]);
    racing(512).caught(Race, &body(""), &[]);
    // One buffer with one barrier is not enough.
    racing(512).caught(Race, &body("bar.sync 0;").replace("2048", "0"), &[]);
}

#[test]
fn named_barriers_order_those_who_meet() {
    // Producer warp 0, consumer warp 1, by full and empty barriers as warp-specialised kernels have them.
    let body = |full: &str, empty: &str| {
        shared(&format!(
            "setp.ge.u32 %p1, %r2, 32;
             mov.u32 %r20, 0;
             and.b32 %r21, %r5, 127;
             add.u32 %r22, %r8, %r21;
             @%p1 bra CONSUME;
             PRODUCE:
             st.shared.u32 [%r22], %r20; // HERE
             bar.arrive 1, 64;
             {empty}
             add.u32 %r20, %r20, 1;
             setp.lt.u32 %p2, %r20, 8;
             @%p2 bra PRODUCE;
             ret;
             CONSUME:
             {full}
             ld.shared.u32 %r10, [%r22]; // HERE
             bar.arrive 2, 64;
             add.u32 %r23, %r23, %r10;
             add.u32 %r20, %r20, 1;
             setp.lt.u32 %p2, %r20, 8;
             @%p2 bra CONSUME;
             st.global.u32 [%rd4], %r23;"
        ))
        .replace("mov.u32 %r20, 0;", "mov.u32 %r20, 0; mov.u32 %r23, 0;")
    };
    let outcome = block(64).clean(&body("bar.sync 1, 64;", "bar.sync 2, 64;"));
    assert_eq!(outcome.word(32), 28);
    // The consumer's barrier has another number: nothing orders the two warps.
    let wrong =
        body("bar.sync 3, 32;", "bar.sync 4, 32;").replace("bar.arrive 1, 64;", "").replace("bar.arrive 2, 64;", "");
    racing(64).caught(Race, &wrong, &[]);
}

#[test]
fn fences_around_atomics_order_threads() {
    // Each thread stores its word, and the last to count itself reads them all: with fences on both sides nothing races.
    let body = |fence: &str| {
        shared(&format!(
            "setp.eq.u32 %p1, %r2, 0;
             @%p1 st.shared.u32 [%r8+2048], 0;
             bar.sync 0;
             st.shared.u32 [%r6], %r2; // HERE
             {fence}
             atom.shared.add.u32 %r10, [%r8+2048], 1;
             {fence}
             add.u32 %r10, %r10, 1;
             setp.ne.u32 %p2, %r10, %r9;
             @%p2 ret;
             mov.u32 %r11, 0;
             mov.u32 %r12, 0;
             SUM: ld.shared.u32 %r13, [%r8]; // HERE
             add.u32 %r11, %r11, %r13;
             add.u32 %r8, %r8, 4;
             add.u32 %r12, %r12, 1;
             setp.lt.u32 %p3, %r12, %r9;
             @%p3 bra SUM;
             st.global.u32 [%rd2], %r11;"
        ))
    };
    assert_eq!(block(128).clean(&body("membar.cta;")).word(0), 127 * 64);
    racing(128).caught(Race, &body(""), &[]);
}

#[test]
fn without_the_check_the_race_runs() {
    let body = shared("st.shared.u32 [%r6], %r2; ld.shared.u32 %r10, [%r7]; st.global.u32 [%rd4], %r10; // HERE");
    block(32).n(1).checks(Checks::none()).clean(&body);
    let only_races_off = Checks { races: false, ..Checks::default() };
    block(64).n(1).checks(only_races_off).run(&body);
    // What is read before anybody wrote is found still.
    let load = shared("ld.shared.u32 %r10, [%r7]; // HERE");
    block(64).n(1).checks(only_races_off).caught(Uninitialised, &load, &[]);
}
