//! Planted faults of threads that wait: barriers, warp instructions, endless loops.

mod exec_support;

use exec_support::{block, grid, kernel};
use kinglet_emulator::error::FaultKind::{BarrierDivergence, Deadlock, IllegalInstruction, InstructionLimit};
use kinglet_emulator::gpu::Checks;

#[test]
fn a_barrier_that_one_thread_skips() {
    let body = |first: u32| {
        kernel("", &format!("setp.eq.u32 %p1, %r2, {first};\n@%p1 bra SKIP;\nbar.sync 0; // HERE\nSKIP: ret;"))
    };
    // The thread exits while the others of its warp wait for it.
    let fault = block(128).caught(BarrierDivergence, &body(77), &["exited", "PTX line"]);
    assert_eq!(fault.thread, [if fault.thread[0] < 64 { 0 } else { 64 }, 0, 0]);
    block(128).clean(&body(1000));
    block(100).clean(&body(1000));
}

#[test]
fn a_barrier_that_a_warp_skips() {
    let body = |least: u32| kernel("", &format!("setp.ge.u32 %p1, %r2, {least};\n@%p1 ret;\nbar.sync 0; // HERE"));
    let fault = block(128).caught(BarrierDivergence, &body(96), &["96 of 128 threads", "exited"]);
    assert_eq!(fault.thread, [0, 0, 0]);
    block(128).clean(&body(128));
    // As GPUs since Volta do it.
    block(128).checks(Checks { exits_at_barriers: false, ..Checks::default() }).clean(&body(96));
    block(128).checks(Checks { exits_at_barriers: false, ..Checks::default() }).clean(&body(90));
}

#[test]
fn an_aligned_barrier_in_divergent_flow() {
    let body = |split: u32, aligned: &str| {
        kernel(
            "",
            &format!(
                "setp.lt.u32 %p1, %r2, {split};
                 @%p1 bra LEFT;
                 barrier.sync{aligned} 0; // HERE
                 bra JOIN;
                 LEFT:
                 barrier.sync{aligned} 0; // HERE
                 JOIN:
                 st.global.u32 [%rd4], %r2;"
            ),
        )
    };
    block(64).caught(BarrierDivergence, &body(16, ".aligned"), &["nobody can go on", "PTX line"]);
    // Whole warps may take different ways to the same barrier; and without `.aligned` single threads may.
    block(64).clean(&body(32, ".aligned"));
    block(64).clean(&body(16, ""));
}

#[test]
fn code_laid_out_behind_its_join_is_no_divergence() {
    // The lanes that take the far way come back to the barrier: nothing is wrong with that.
    let body = kernel(
        "",
        "setp.lt.u32 %p1, %r2, 16;
         @%p1 bra FAR;
         BACK: bar.sync 0;
         st.global.u32 [%rd4], %r2;
         ret;
         FAR: add.u32 %r6, %r2, 1;
         bra BACK;",
    );
    block(64).clean(&body);
}

#[test]
fn counts_that_do_not_agree() {
    let body = |count: &str| {
        kernel(
            "",
            &format!(
                "setp.lt.u32 %p1, %r2, 32;
                 @%p1 bra LEFT;
                 barrier.sync.aligned 1, 64; // HERE
                 ret;
                 LEFT: barrier.sync.aligned 1{count}; // HERE"
            ),
        )
    };
    block(64).caught(BarrierDivergence, &body(", 96"), &["96", "64", "PTX line"]);
    block(64).caught(BarrierDivergence, &body(""), &["all"]);
    block(64).clean(&body(", 64"));
    let odd = |count: u32| kernel("", &format!("mov.u32 %r6, {count};\nbarrier.sync 1, %r6; // HERE"));
    block(64).caught(IllegalInstruction, &odd(48), &["48"]);
    block(64).clean(&odd(64));
    let number = |id: u32| kernel("", &format!("mov.u32 %r6, {id};\nbarrier.sync %r6; // HERE"));
    block(64).caught(IllegalInstruction, &number(16), &["barrier 16"]);
    block(64).clean(&number(15));
}

#[test]
fn a_count_that_is_never_reached() {
    let body = |count: u32| kernel("", &format!("setp.ge.u32 %p1, %r2, 32;\n@%p1 ret;\nbar.sync 1, {count}; // HERE"));
    block(64).caught(BarrierDivergence, &body(64), &["32 of 64 threads"]);
    block(64).clean(&body(32));
}

#[test]
fn a_thread_that_comes_twice() {
    let body = |second: u32| {
        kernel(
            "",
            &format!(
                "setp.ge.u32 %p1, %r2, 32;\n@%p1 bra B;\nbar.arrive 1, 64;\nbar.sync {second}, 64; // HERE\nret;\nB: bar.sync 1, 64;\n bar.sync 2, 64;"
            ),
        )
    };
    block(64).clean(&body(2));
    let twice = kernel(
        "",
        "setp.ge.u32 %p1, %r2, 32;\n@%p1 bra B;\nbar.arrive 1, 64;\nbar.arrive 1, 64; // HERE\nret;\nB: bar.sync 0, 32;",
    );
    block(64).caught(BarrierDivergence, &twice, &["already"]);
}

#[test]
fn two_barriers_in_two_orders() {
    let body = |first: u32, second: u32| {
        kernel(
            "",
            &format!(
                "setp.lt.u32 %p1, %r2, 32;
                 @%p1 bra LEFT;
                 bar.sync 1, 64; // HERE
                 bar.sync 2, 64;
                 ret;
                 LEFT:
                 bar.sync {first}, 64; // HERE
                 bar.sync {second}, 64;"
            ),
        )
    };
    let fault = block(64).caught(Deadlock, &body(2, 1), &["barrier 1, 32 of 64", "barrier 2, 32 of 64", "PTX line"]);
    assert_eq!(fault.thread, [0, 0, 0]);
    block(64).clean(&body(1, 2));
}

#[test]
fn a_warp_instruction_that_a_lane_never_reaches() {
    let body = |mask: &str| {
        kernel(
            "",
            &format!(
                "setp.lt.u32 %p1, %r2, 16;
                 @%p1 bra LEFT;
                 bar.warp.sync {mask}; // HERE
                 ret;
                 LEFT:
                 shfl.sync.idx.b32 %r6, %r2, 0, 31, 0xffff; // HERE"
            ),
        )
    };
    // The upper lanes wait for the lower, who shuffle and exit: then only those who are left count.
    block(32).clean(&body("0xffffffff"));
    block(32).clean(&body("0xffff0000"));
    let stuck = body("0xffffffff").replace("0xffff; // HERE", "-1; // HERE");
    let fault = block(32).caught(Deadlock, &stuck, &["bar.warp.sync", "shfl.sync", "15 others"]);
    assert!(fault.thread == [16, 0, 0] || fault.thread == [0, 0, 0]);
}

#[test]
fn the_same_shuffle_at_two_places_meets() {
    let body = kernel(
        "",
        "setp.lt.u32 %p1, %r2, 16;
         @%p1 bra LEFT;
         shfl.sync.bfly.b32 %r6, %r2, 16, 31, -1;
         bra JOIN;
         LEFT:
         shfl.sync.bfly.b32 %r6, %r2, 16, 31, -1;
         JOIN:
         st.global.u32 [%rd4], %r6;",
    );
    assert_eq!(block(32).clean(&body).words(32), (0..32).map(|lane| lane ^ 16).collect::<Vec<_>>());
}

#[test]
fn a_lane_that_its_mask_does_not_name() {
    let body = |mask: &str| kernel("", &format!("shfl.sync.idx.b32 %r6, %r2, 0, 31, {mask}; // HERE"));
    let fault = block(32).caught(IllegalInstruction, &body("0x7fffffff"), &["lacks the lane itself (31)"]);
    assert_eq!(fault.thread, [31, 0, 0]);
    block(32).clean(&body("0xffffffff"));
    let vote = |mask: &str| kernel("", &format!("vote.sync.ballot.b32 %r6, %p1, {mask}; // HERE"));
    block(32).caught(IllegalInstruction, &vote("0xfffffffe"), &["(0)"]);
    // Lanes that the block does not have may be named.
    block(20).clean(&body("0xffffffff"));
}

#[test]
fn a_shuffle_from_a_lane_that_is_not_there() {
    let body = |from: u32| {
        kernel(
            "",
            &format!("setp.ge.u32 %p1, %r2, 24;\n@%p1 ret;\nshfl.sync.idx.b32 %r6, %r2, {from}, 31, 0xffffff; // HERE"),
        )
    };
    block(32).caught(IllegalInstruction, &body(24), &["reads lane 24", "not defined"]);
    block(32).clean(&body(23));
}

#[test]
fn an_endless_loop_ends() {
    let body = |step: u32| {
        kernel(
            "",
            &format!(
                "mov.u32 %r6, 0;\nL: add.u32 %r6, %r6, {step}; // HERE\nsetp.lt.u32 %p1, %r6, 100; // HERE\n@%p1 bra L; // HERE"
            ),
        )
    };
    grid(3, 64).limit(100_000).caught(InstructionLimit, &body(0), &["100000 warp instructions"]);
    grid(3, 64).limit(100_000).clean(&body(1));
}

#[test]
fn lanes_that_wait_for_each_other_in_a_loop() {
    // A lock for each lane in turn: the lane that spins stands before the one that must release.
    let body = kernel(
        "",
        "setp.eq.u32 %p1, %r2, 0;
         @%p1 st.global.u32 [%rd2], 0;
         @%p1 st.global.u32 [%rd2+4], 0;
         bar.sync 0;
         SPIN:
         atom.global.cas.b32 %r6, [%rd2], 0, 1;
         setp.ne.u32 %p2, %r6, 0;
         @%p2 bra SPIN;
         ld.global.u32 %r7, [%rd2+4];
         add.u32 %r7, %r7, 1;
         st.global.u32 [%rd2+4], %r7;
         membar.gl;
         atom.global.exch.b32 %r6, [%rd2], 0;",
    );
    assert_eq!(block(64).clean(&body).word(1), 64);
}
