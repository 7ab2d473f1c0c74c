//! Planted faults of `ldmatrix` and `stmatrix`: each must be caught, and its clean twin must not be.

mod exec_support;

use exec_support::{Setup, block, kernel};
use kinglet_emulator::error::FaultKind::{AsyncCopy, Misaligned, OutOfBounds, Race, Uninitialised};
use kinglet_emulator::gpu::Checks;

const LOAD: &str = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r7]; // HERE";
const STORE: &str = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r7], {%r2, %r2, %r2, %r2}; // HERE";

/// `s` is shared memory of 1024 bytes; `%r6` is the lane's own 16 bytes of its first half, `%r7` that plus `offset`, `%p1`
/// holds for the first warp.
fn shared(offset: i32, body: &str) -> String {
    let text = format!(
        "mov.u32 %r8, s;
         shl.b32 %r6, %r4, 4;
         add.u32 %r6, %r6, %r8;
         add.s32 %r7, %r6, {offset};
         setp.lt.u32 %p1, %r2, 32;
         {body}"
    );
    kernel(".shared .align 16 .b8 s[1024];", &text).replace("sm_80", "sm_90")
}

fn hopper(threads: u32) -> Setup {
    let mut setup = block(threads);
    setup.options.target = 90;
    setup
}

/// Without the reads of what nobody wrote: which of two racing accesses comes first is the seed's choice.
fn racing(threads: u32) -> Setup {
    hopper(threads).checks(Checks { uninitialised: false, ..Checks::default() })
}

/// Each lane writes its 16 bytes of both halves.
const WRITTEN: &str =
    "st.shared.v4.u32 [%r6], {%r2, %r2, %r2, %r2};\nst.shared.v4.u32 [%r6+512], {%r2, %r2, %r2, %r2};\nbar.sync 0;\n";

#[test]
fn rows_out_of_bounds() {
    for (instruction, what) in [(LOAD, "a load of 16 bytes at 0x400"), (STORE, "a store of 16 bytes at 0x400")] {
        let body = |offset: i32| shared(offset, &format!("{WRITTEN}{instruction}"));
        let fault = hopper(32).caught(OutOfBounds, &body(528), &[what, "shared memory", "0 bytes behind s"]);
        assert_eq!(fault.thread, [31, 0, 0]);
        hopper(32).clean(&body(512));
        // The same by a generic address, and by one that lies elsewhere.
        let generic = |address: &str| {
            let instruction = instruction.replace(".shared.b16", ".b16").replace("[%r7]", "[%rd6]");
            shared(0, &format!("{WRITTEN}{address}\n{instruction}"))
        };
        let own = "cvt.u64.u32 %rd6, %r6; cvta.shared.u64 %rd6, %rd6;";
        hopper(32).clean(&generic(own));
        hopper(32).caught(OutOfBounds, &generic(&format!("{own} add.s64 %rd6, %rd6, 1024;")), &["16 bytes"]);
        hopper(32).caught(OutOfBounds, &generic("mov.u64 %rd6, %rd1;"), &["a matrix row", "not in shared memory"]);
    }
}

#[test]
fn misaligned_rows() {
    for (instruction, what) in [(LOAD, "a load of 16 bytes"), (STORE, "a store of 16 bytes")] {
        let body = |offset: i32| shared(offset, &format!("{WRITTEN}{instruction}"));
        for offset in [2, 8] {
            hopper(32).caught(Misaligned, &body(offset), &[what, "shared memory"]);
        }
        hopper(32).clean(&body(16));
    }
}

#[test]
fn rows_that_nobody_wrote() {
    let body = |first: &str| shared(0, &format!("{first}\nbar.warp.sync -1;\n{LOAD}"));
    let fault = hopper(32).caught(Uninitialised, &body(""), &["a load of 16 bytes", "nobody wrote byte 0", "(s + 0)"]);
    assert_eq!(fault.thread, [0, 0, 0]);
    hopper(32).caught(Uninitialised, &body("st.shared.v2.u32 [%r6], {%r2, %r2};"), &["nobody wrote byte 8"]);
    hopper(32).clean(&body("st.shared.v4.u32 [%r6], {%r2, %r2, %r2, %r2};"));
    // What `stmatrix` stores is written, and nothing else.
    hopper(32).clean(&body(STORE));
    let half = STORE.replace(".x4", ".x2").replace("{%r2, %r2, %r2, %r2}", "{%r2, %r2}");
    hopper(32).caught(Uninitialised, &body(&half.replace(" // HERE", "")), &["(s + 256)"]);
}

#[test]
fn rows_that_race() {
    // Inside a warp, and from warp to warp.
    let after_store = |barrier: &str| {
        shared(0, &format!("st.shared.v4.u32 [%r6], {{%r2, %r2, %r2, %r2}}; // HERE\n{barrier}\n{LOAD}"))
    };
    hopper(32).clean(&after_store("bar.warp.sync -1;"));
    let shifted = |barrier: &str| after_store(barrier).replace("add.s32 %r7, %r6, 0;", "xor.b32 %r7, %r6, 16;");
    hopper(32).caught(Race, &shifted(""), &["a load of 16 bytes", "before it a store by thread"]);
    hopper(32).clean(&shifted("bar.warp.sync -1;"));
    let warps = |first: &str, barrier: &str, second: &str| {
        let guard = "@!%p1 bra SECOND;";
        shared(0, &format!("{WRITTEN}{guard}\n{first}\n{barrier}\nret;\nSECOND:\n{barrier}\n{second}"))
            .replace("st.shared.v4", "@%p1 st.shared.v4")
    };
    let plain = "ld.shared.u32 %r20, [%r6]; // HERE";
    for (first, second) in [(STORE, LOAD), (LOAD, STORE), (STORE, STORE), (STORE, plain), (plain, STORE)] {
        racing(64).caught(Race, &warps(first, "", second), &["shared memory (s + ", "nothing that orders them"]);
        hopper(64).clean(&warps(first, "bar.sync 1, 64;", second));
    }
    hopper(64).clean(&warps(LOAD, "", LOAD));
}

#[test]
fn rows_of_a_copy_on_its_way() {
    let body = |wait: &str, instruction: &str| {
        let source = "shl.b32 %r9, %r4, 4; cvt.u64.u32 %rd6, %r9; add.s64 %rd6, %rd1, %rd6;";
        let copy = "cp.async.cg.shared.global [%r6], [%rd6], 16;\ncp.async.commit_group;";
        shared(0, &format!("{source}\n{copy}\n{wait}\n{instruction}"))
    };
    for instruction in [LOAD, STORE] {
        let words = ["16 bytes at 0x0", "before it an asynchronous copy by thread (0, 0, 0)"];
        hopper(32).caught(AsyncCopy, &body("", instruction), &words);
        hopper(32).caught(AsyncCopy, &body("bar.sync 0;", instruction), &words);
        hopper(32).clean(&body("cp.async.wait_group 0;\nbar.sync 0;", instruction));
        hopper(32).clean(&body("cp.async.wait_all;\nbar.warp.sync -1;", instruction));
    }
}
