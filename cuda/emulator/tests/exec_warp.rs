//! What lanes of a warp do together.

mod exec_support;

use exec_support::{block, kernel};

/// The first words of the second buffer after each thread stored `%r6`.
fn stored(threads: u32, body: &str) -> Vec<u32> {
    block(threads).clean(&kernel("", &format!("{body}\nst.global.u32 [%rd4], %r6;"))).words(threads.into())
}

fn lanes(value: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(value).collect()
}

#[test]
fn shuffles() {
    let shfl = |text: &str| stored(32, &format!("shfl.sync.{text}, 0xffffffff;"));
    assert_eq!(shfl("idx.b32 %r6, %r2, 5, 31"), lanes(|_| 5));
    assert_eq!(shfl("idx.b32 %r6, %r2, 37, 31"), lanes(|_| 5));
    assert_eq!(shfl("bfly.b32 %r6, %r2, 3, 31"), lanes(|lane| lane ^ 3));
    assert_eq!(shfl("up.b32 %r6, %r2, 4, 0"), lanes(|lane| if lane < 4 { lane } else { lane - 4 }));
    assert_eq!(shfl("down.b32 %r6, %r2, 4, 31"), lanes(|lane| if lane > 27 { lane } else { lane + 4 }));
    // Segments of 8 lanes: the mask of segments is 0x18, the clamp of down 7 beside it.
    assert_eq!(shfl("down.b32 %r6, %r2, 2, 0x181f"), lanes(|lane| if lane % 8 > 5 { lane } else { lane + 2 }));
    assert_eq!(shfl("up.b32 %r6, %r2, 2, 0x1800"), lanes(|lane| if lane % 8 < 2 { lane } else { lane - 2 }));
    assert_eq!(shfl("idx.b32 %r6, %r2, 3, 0x181f"), lanes(|lane| lane / 8 * 8 + 3));
    // The predicate says whether the lane was in range.
    let predicate = stored(32, "shfl.sync.up.b32 %r7|%p1, %r2, 4, 0, -1;\nselp.u32 %r6, 1, 0, %p1;");
    assert_eq!(predicate, lanes(|lane| u32::from(lane >= 4)));
}

#[test]
fn a_warp_sum_by_butterflies() {
    let step = |distance: u32| format!("shfl.sync.bfly.b32 %r7, %r6, {distance}, 31, -1;\nadd.u32 %r6, %r6, %r7;\n");
    let body: String = [16, 8, 4, 2, 1].map(step).concat();
    assert_eq!(stored(32, &format!("mov.u32 %r6, %r2;\n{body}")), lanes(|_| 31 * 16));
}

#[test]
fn votes() {
    let vote = |text: &str| stored(32, &format!("setp.lt.u32 %p1, %r2, 8;\nsetp.lt.u32 %p3, %r2, 99;\n{text}"));
    let yes = |mode: &str, predicate: &str| {
        vote(&format!("vote.sync.{mode}.pred %p2, {predicate}, -1;\nselp.u32 %r6, 1, 0, %p2;"))[7]
    };
    assert_eq!([yes("any", "%p1"), yes("all", "%p1"), yes("uni", "%p1")], [1, 0, 0]);
    assert_eq!([yes("any", "%p3"), yes("all", "%p3"), yes("uni", "%p3")], [1, 1, 1]);
    assert_eq!([yes("any", "!%p3"), yes("all", "!%p3"), yes("uni", "!%p3")], [0, 0, 1]);
    assert_eq!(vote("vote.sync.ballot.b32 %r6, %p1, -1;"), lanes(|_| 0xff));
    assert_eq!(vote("vote.sync.ballot.b32 %r6, !%p1, -1;"), lanes(|_| 0xffff_ff00));
    // Only those that take part are counted.
    assert_eq!(
        vote("mov.u32 %r6, 9; @%p1 vote.sync.ballot.b32 %r6, %p3, 0xff;"),
        lanes(|lane| if lane < 8 { 0xff } else { 9 })
    );
}

#[test]
fn matches_reductions_and_masks() {
    assert_eq!(
        stored(32, "and.b32 %r7, %r2, 3;\nmatch.any.sync.b32 %r6, %r7, -1;"),
        lanes(|lane| 0x1111_1111 << (lane % 4))
    );
    let all =
        |value: &str| stored(32, &format!("{value}\nmatch.all.sync.b32 %r6|%p1, %r7, -1;\n@!%p1 add.u32 %r6, %r6, 7;"));
    assert_eq!(all("mov.u32 %r7, 5;"), lanes(|_| u32::MAX));
    assert_eq!(all("and.b32 %r7, %r2, 1;"), lanes(|_| 7));
    let redux = |text: &str| stored(32, &format!("sub.u32 %r7, %r2, 3;\nredux.sync.{text} %r6, %r7, -1;"))[0];
    assert_eq!(redux("add.u32"), (0..32u32).map(|lane| lane.wrapping_sub(3)).fold(0, u32::wrapping_add));
    assert_eq!([redux("min.s32"), redux("max.s32")], [-3i32 as u32, 28]);
    assert_eq!([redux("min.u32"), redux("max.u32")], [0, u32::MAX]);
    assert_eq!([redux("and.b32"), redux("or.b32")], [0, u32::MAX]);
    let body = "mov.u32 %r6, 0;\nsetp.ge.u32 %p1, %r2, 12;\n@%p1 bra ON;\nactivemask.b32 %r6;\nON:";
    assert_eq!(stored(32, body), lanes(|lane| if lane < 12 { 0xfff } else { 0 }));
}

#[test]
fn special_registers_of_lanes() {
    let special = |name: &str| stored(64, &format!("mov.u32 %r6, %{name};"));
    let expect = |value: fn(u32) -> u32| (0..64).map(|thread| value(thread % 32)).collect::<Vec<_>>();
    assert_eq!(special("laneid"), expect(|lane| lane));
    assert_eq!(special("lanemask_eq"), expect(|lane| 1 << lane));
    assert_eq!(special("lanemask_lt"), expect(|lane| (1 << lane) - 1));
    assert_eq!(special("lanemask_le"), expect(|lane| u32::MAX >> (31 - lane)));
    assert_eq!(special("lanemask_gt"), expect(|lane| ((u64::from(u32::MAX) << 1) << lane) as u32));
    assert_eq!(special("lanemask_ge"), expect(|lane| u32::MAX << lane));
    assert_eq!(special("warpid"), (0..64).map(|thread| thread / 32).collect::<Vec<_>>());
    assert_eq!(special("nwarpid"), vec![2; 64]);
}

#[test]
fn the_clock_counts_instructions() {
    let body = "mov.u32 %r7, %clock;\nadd.u32 %r8, %r2, 1;\nadd.u32 %r8, %r2, 2;\nmov.u32 %r9, %clock;\nsub.u32 %r6, %r9, %r7;";
    assert_eq!(stored(32, body), lanes(|_| 3));
}

#[test]
fn matrices_in_shared_memory() {
    // Each row of an 8x8 matrix has the numbers 8 i ..; lane l gets row l / 4, columns 2 (l % 4) and the next.
    let body = |modifier: &str| {
        kernel(
            ".shared .align 16 .b8 s[512];",
            &format!(
                "mov.u32 %r8, s;
                 mad.lo.u32 %r9, %r2, 4, %r8;
                 shl.b32 %r10, %r2, 1;
                 shl.b32 %r11, %r2, 17;
                 add.u32 %r11, %r11, 65536;
                 add.u32 %r10, %r10, %r11;
                 st.shared.u32 [%r9], %r10;
                 bar.sync 0;
                 and.b32 %r12, %r2, 7;
                 mad.lo.u32 %r12, %r12, 16, %r8;
                 ldmatrix.sync.aligned.m8n8.x1{modifier}.shared.b16 {{%r6}}, [%r12];
                 st.global.u32 [%rd4], %r6;"
            ),
        )
    };
    assert_eq!(block(32).clean(&body("")).words(32), lanes(|lane| (2 * lane) | ((2 * lane + 1) << 16)));
    let transposed = block(32).clean(&body(".trans")).words(32);
    let element = |row: u32, column: u32| 8 * row + column;
    assert_eq!(
        transposed,
        lanes(|lane| element(2 * (lane % 4), lane / 4) | (element(2 * (lane % 4) + 1, lane / 4) << 16))
    );
}

#[test]
fn a_tensor_core_product_and_its_flops() {
    // A and B are all ones in bf16: each of the 16 products is 1.
    let body = "mov.u32 %r10, 0x3f803f80;
         mov.f32 %f1, 0f3f000000;
         mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2, %f3, %f4, %f5}, {%r10, %r10, %r10, %r10}, {%r10, %r10}, {%f1, %f1, %f1, %f1};
         mov.b32 %r6, %f4;";
    let outcome = block(64).clean(&kernel("", &format!("{body}\nst.global.u32 [%rd4], %r6;")));
    assert_eq!(outcome.words(64), vec![16.5f32.to_bits(); 64]);
    assert_eq!(outcome.report().counters.tensor_flops, 2 * 2 * 16 * 8 * 16);
}

#[test]
fn the_flops_of_each_shape() {
    let flops = |shape: &str, d: &str, a: &str, b: &str, c: &str| {
        let text = format!("mma.sync.aligned.{shape} {{{d}}}, {{{a}}}, {{{b}}}, {{{c}}};");
        let zeros = "mov.u32 %r10, 0; mov.f32 %f1, 0f00000000; mov.f64 %d1, 0d0000000000000000;";
        block(96).clean(&kernel("", &format!("{zeros}\n{text}"))).report().counters.tensor_flops
    };
    let (two, four) = ("%r10, %r10", "%r10, %r10, %r10, %r10");
    // Three warps, and a multiplication and an addition for each of m n k.
    let one = |m: u64, n: u64, k: u64| 3 * 2 * m * n * k;
    assert_eq!(flops("m16n8k8.row.col.f16.f16.f16.f16", "%r11, %r12", two, "%r10", two), one(16, 8, 8));
    assert_eq!(flops("m16n8k16.row.col.f16.f16.f16.f16", "%r11, %r12", four, two, two), one(16, 8, 16));
    assert_eq!(flops("m16n8k32.row.col.s32.s8.s8.s32", "%r11, %r12, %r13, %r14", four, two, four), one(16, 8, 32));
    assert_eq!(flops("m8n8k16.row.col.s32.s8.s8.s32", "%r11, %r12", "%r10", "%r10", two), one(8, 8, 16));
    assert_eq!(
        flops("m16n8k4.row.col.f32.tf32.tf32.f32", "%f2, %f3, %f4, %f5", two, "%r10", "%f1, %f1, %f1, %f1"),
        one(16, 8, 4)
    );
    assert_eq!(flops("m8n8k4.row.col.f64.f64.f64.f64", "%d2, %d3", "%d1", "%d1", "%d1, %d1"), one(8, 8, 4));
    // Each quarter of the warp makes a product of its own.
    let quarters = flops("m8n8k4.row.col.f16.f16.f16.f16", "%r11, %r12, %r13, %r14", two, two, four);
    assert_eq!(quarters, 4 * one(8, 8, 4));
}

#[test]
fn matrices_need_a_whole_warp() {
    use kinglet_emulator::error::FaultKind::{Deadlock, IllegalInstruction};
    let body = |guard: &str| {
        kernel(
            "",
            &format!("setp.eq.u32 %p1, %r2, 3;\n{guard}\nmovmatrix.sync.aligned.m8n8.trans.b16 %r6, %r2; // HERE"),
        )
    };
    block(20).caught(IllegalInstruction, &body(""), &["lane 20 is not in the block"]);
    block(32).caught(IllegalInstruction, &body("@%p1 ret;"), &["lane 3 has exited"]);
    block(32).clean(&body(""));
    let apart = body("@%p1 bra ON;").replace("// HERE", "// HERE\nret;\nON: shfl.sync.idx.b32 %r6, %r2, 3, 31, -1;");
    block(32).caught(Deadlock, &apart, &["movmatrix", "shfl.sync"]);
}

#[test]
fn one_lane_is_elected_on_hopper() {
    let body = kernel(
        "",
        "mov.u32 %r6, 99;
         setp.ge.u32 %p2, %r2, 4;
         @%p2 elect.sync %r6|%p1, 0xfffffff0;
         @!%p2 ret;
         selp.u32 %r7, 100, 0, %p1;
         add.u32 %r6, %r6, %r7;
         st.global.u32 [%rd4], %r6;",
    )
    .replace("sm_80", "sm_90");
    let mut setup = block(32);
    setup.options.target = 90;
    let outcome = setup.clean(&body);
    assert_eq!([4, 5, 31].map(|lane| outcome.word(lane)), [104, 4, 4]);
}

#[test]
fn matrices_are_stored_as_they_are_loaded_on_hopper() {
    let body = |modifier: &str| {
        kernel(
            ".shared .align 16 .b8 s[256];",
            &format!(
                "mov.u32 %r8, s;
                 and.b32 %r12, %r2, 15;
                 mad.lo.u32 %r12, %r12, 16, %r8;
                 add.u32 %r9, %r2, 1000;
                 stmatrix.sync.aligned.m8n8.x2{modifier}.shared.b16 [%r12], {{%r2, %r9}};
                 bar.warp.sync -1;
                 ldmatrix.sync.aligned.m8n8.x2{modifier}.shared.b16 {{%r6, %r7}}, [%r12];
                 sub.u32 %r7, %r7, %r6;
                 mad.lo.u32 %r6, %r7, 1000, %r6;
                 st.global.u32 [%rd4], %r6;"
            ),
        )
        .replace("sm_80", "sm_90")
    };
    let mut setup = block(32);
    setup.options.target = 90;
    for modifier in ["", ".trans"] {
        assert_eq!(setup.clean(&body(modifier)).words(32), lanes(|lane| lane + 1_000_000));
    }
}
