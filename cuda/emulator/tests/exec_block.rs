//! What threads of a block do together, and what a launch looks like from inside.

mod exec_support;

use exec_support::{block, grid, kernel, module};
use kinglet_emulator::gpu::{Gpu, GpuOptions, Launch};

#[test]
fn barriers_reduce() {
    let body = |op: &str, limit: u32, out: &str| {
        kernel(
            "",
            &format!("setp.lt.u32 %p1, %r2, {limit};\nbarrier.red.{op}, 3, %p1;\n{out}\nst.global.u32 [%rd4], %r6;"),
        )
    };
    assert_eq!(block(96).clean(&body("popc.u32 %r6", 40, "")).words(96), vec![40; 96]);
    let select = "selp.u32 %r6, 1, 0, %p2;";
    for (op, limit, expect) in [("and", 96, 1), ("and", 95, 0), ("or", 1, 1), ("or", 0, 0)] {
        let words = block(96).clean(&body(&format!("{op}.pred %p2"), limit, select)).words(96);
        assert_eq!(words, vec![expect; 96], "{op} {limit}");
    }
}

#[test]
fn atomics_in_shared_and_global_memory() {
    let body = kernel(
        ".shared .align 8 .b8 s[16];",
        "setp.eq.u32 %p1, %r2, 0;
         @%p1 st.shared.u32 [s], 0;
         @%p1 st.shared.u64 [s+8], 5;
         @%p1 st.global.u64 [%rd2], 0;
         @%p1 st.global.u64 [%rd2+8], 0;
         @%p1 st.global.u16 [%rd2+16], 0;
         @%p1 st.global.u16 [%rd2+18], 77;
         bar.sync 0;
         atom.shared.inc.u32 %r6, [s], 9;
         cvt.u64.u32 %rd6, %r2;
         red.shared.max.u64 [s+8], %rd6;
         red.global.or.b32 [%rd2], %r2;
         red.global.add.u64 [%rd2+8], %rd6;
         mov.u16 %h1, 0x3c00;
         atom.global.add.noftz.f16 %h2, [%rd2+16], %h1;
         bar.sync 0;
         @!%p1 ret;
         ld.shared.u32 %r7, [s];
         ld.shared.u64 %rd7, [s+8];
         st.global.u32 [%rd2+20], %r7;
         st.global.u64 [%rd2+24], %rd7;",
    );
    let words = block(96).clean(&body).words(8);
    assert_eq!(words[0], 127);
    assert_eq!(words[2..4], [95 * 48, 0]);
    // 96.0 as f16, and its neighbour untouched.
    assert_eq!(words[4], 77 << 16 | 0x5600);
    assert_eq!(words[5], 96 % 10);
    assert_eq!(words[6..8], [95, 0]);
}

#[test]
fn atomics_of_many_blocks() {
    let body = kernel(
        "",
        "atom.global.add.u32 %r6, [%rd1], 1;\natom.global.add.u64 %rd6, [%rd1+8], 3;\natom.global.cas.b32 %r6, [%rd1+16], 4, 9;",
    );
    let outcome = grid(50, 100).clean(&body);
    let mut bytes = [0; 24];
    outcome.gpu.read(outcome.a, &mut bytes).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!([word(0), word(16)], [5000, 9]);
    assert_eq!(u64::from_le_bytes(bytes[8..16].try_into().unwrap()), 2 + (3u64 << 32) + 15000);
    assert_eq!(outcome.report().counters.atomics, 3 * 5000);
}

#[test]
fn coordinates_in_three_dimensions() {
    let special = |name: &str, axis: char| {
        let body = format!(
            "mov.u32 %r10, %ctaid.x; mov.u32 %r11, %ctaid.y; mov.u32 %r12, %ctaid.z;
             mov.u32 %r13, %nctaid.x; mov.u32 %r14, %nctaid.y;
             mad.lo.u32 %r15, %r12, %r14, %r11;
             mad.lo.u32 %r15, %r15, %r13, %r10;
             mov.u32 %r16, %tid.y; mov.u32 %r17, %tid.z; mov.u32 %r18, %ntid.x; mov.u32 %r19, %ntid.y;
             mad.lo.u32 %r20, %r17, %r19, %r16;
             mad.lo.u32 %r20, %r20, %r18, %r2;
             mad.lo.u32 %r20, %r15, 24, %r20;
             mul.wide.u32 %rd6, %r20, 4;
             add.s64 %rd6, %rd2, %rd6;
             mov.u32 %r6, %{name}.{axis};
             st.global.u32 [%rd6], %r6;"
        );
        let mut setup = grid(1, 1);
        setup.launch = Launch { grid: [2, 3, 2], block: [4, 3, 2], cluster: [1; 3], dynamic_shared: 0 };
        setup.clean(&kernel("", &body)).words(12 * 24)
    };
    let expect =
        |value: fn(u32, u32) -> u32| (0..12).flat_map(|b| (0..24).map(move |t| value(b, t))).collect::<Vec<_>>();
    assert_eq!(special("tid", 'x'), expect(|_, t| t % 4));
    assert_eq!(special("tid", 'y'), expect(|_, t| t / 4 % 3));
    assert_eq!(special("tid", 'z'), expect(|_, t| t / 12));
    assert_eq!(special("ctaid", 'x'), expect(|b, _| b % 2));
    assert_eq!(special("ctaid", 'y'), expect(|b, _| b / 2 % 3));
    assert_eq!(special("ctaid", 'z'), expect(|b, _| b / 6));
    assert_eq!(special("nctaid", 'y'), expect(|_, _| 3));
    assert_eq!(special("ntid", 'z'), expect(|_, _| 2));
}

#[test]
fn static_and_dynamic_shared_memory_lie_apart() {
    let body = module(
        ".extern .shared .align 16 .b8 dyn[];",
        ".shared .align 4 .b8 s[20];",
        "mov.u32 %r6, s; mov.u32 %r7, dyn;
         sub.u32 %r8, %r7, %r6;
         st.global.u32 [%rd2], %r8;
         mov.u32 %r9, %dynamic_smem_size; st.global.u32 [%rd2+4], %r9;
         mov.u32 %r9, %total_smem_size; st.global.u32 [%rd2+8], %r9;
         st.shared.u32 [s+16], 1; st.shared.u32 [dyn+96], 2;
         ld.shared.u32 %r10, [s+16]; st.global.u32 [%rd2+12], %r10;",
    );
    assert_eq!(block(1).dynamic(100).clean(&body).words(4), [32, 100, 132, 1]);
}

#[test]
fn generic_addresses_of_every_space() {
    let body = module(
        ".const .align 4 .u32 v[2] = {41, 42};\n.global .align 4 .u32 w[2] = {51, 52};",
        ".shared .align 4 .b8 s[8];\n.local .align 4 .b8 l[8];",
        "mov.u64 %rd6, v; cvta.const.u64 %rd6, %rd6;
         mov.u64 %rd7, w; cvta.global.u64 %rd7, %rd7;
         mov.u64 %rd8, s; cvta.shared.u64 %rd8, %rd8;
         mov.u64 %rd9, l; cvta.local.u64 %rd9, %rd9;
         st.u32 [%rd8+4], 61; st.u32 [%rd9+4], 71;
         ld.u32 %r6, [%rd6+4]; ld.u32 %r7, [%rd7+4]; ld.u32 %r8, [%rd8+4]; ld.u32 %r9, [%rd9+4];
         st.global.v4.u32 [%rd2], {%r6, %r7, %r8, %r9};
         isspacep.shared %p1, %rd8; isspacep.local %p2, %rd8; isspacep.const %p3, %rd6; isspacep.global %p4, %rd7;
         selp.u32 %r6, 1, 0, %p1; selp.u32 %r7, 1, 0, %p2; selp.u32 %r8, 1, 0, %p3; selp.u32 %r9, 1, 0, %p4;
         st.global.v4.u32 [%rd2+16], {%r6, %r7, %r8, %r9};
         cvta.to.shared.u64 %rd8, %rd8; ld.shared.u32 %r6, [%rd8+4]; st.global.u32 [%rd2+32], %r6;",
    );
    let outcome = block(1).clean(&body);
    assert_eq!(outcome.words(9), [42, 52, 61, 71, 1, 0, 1, 1, 61]);
    // The host reads and writes the variables.
    let (address, bytes) = outcome.module.variable("v").unwrap();
    assert_eq!(bytes, 8);
    outcome.gpu.write(address + 4, &7u32.to_le_bytes()).unwrap();
    assert!(outcome.module.variable("nothing").is_none());
}

#[test]
fn lanes_of_one_load_may_be_in_different_spaces() {
    let body = kernel(
        ".shared .align 4 .b8 s[4];",
        "mov.u64 %rd8, s; cvta.shared.u64 %rd8, %rd8;
         setp.eq.u32 %p1, %r2, 0;
         @%p1 st.u32 [%rd8], 99;
         bar.sync 0;
         setp.lt.u32 %p2, %r2, 16;
         selp.b64 %rd9, %rd8, %rd3, %p2;
         ld.u32 %r6, [%rd9];
         st.global.u32 [%rd4], %r6;",
    );
    assert_eq!(
        block(32).clean(&body).words(32),
        (0..32).map(|lane| if lane < 16 { 99 } else { lane }).collect::<Vec<_>>()
    );
}

#[test]
fn loads_extend_and_vectors_split() {
    let body = kernel(
        "",
        "st.global.u32 [%rd2], 0x80fe8001;
         ld.global.s8 %r6, [%rd2+2]; ld.global.u8 %r7, [%rd2+2]; ld.global.s16 %r8, [%rd2]; ld.global.u16 %r9, [%rd2];
         st.global.v4.u32 [%rd2+16], {%r6, %r7, %r8, %r9};
         ld.global.v2.u16 {%h1, %h2}, [%rd2]; st.global.v2.u16 [%rd2+4], {%h2, %h1};
         ld.global.s32 %rd6, [%rd2]; st.global.u64 [%rd2+8], %rd6;
         ld.global.v2.u64 {%rd7, %rd8}, [%rd2+16]; st.global.v2.u64 [%rd2+32], {%rd8, %rd7};",
    );
    let [negative, low] = [0xffff_fffe, 0xffff_8001];
    let expect =
        [0x80fe_8001, 0x8001_80fe, 0x80fe_8001, u32::MAX, negative, 0xfe, low, 0x8001, low, 0x8001, negative, 0xfe];
    assert_eq!(block(1).clean(&body).words(12), expect);
}

#[test]
fn the_same_for_every_seed_and_number_of_threads() {
    // Neighbours exchange through shared memory; floats are summed in a fixed order.
    let body = kernel(
        ".shared .align 4 .b8 s[512];",
        "mov.u32 %r8, s; add.u32 %r9, %r8, %r5;
         mad.lo.u32 %r6, %r3, 128, %r2;
         mul.wide.u32 %rd6, %r6, 4; add.s64 %rd6, %rd2, %rd6;
         cvt.rn.f32.u32 %f1, %r6; div.rn.f32 %f1, 0f3f800000, %f1;
         st.shared.f32 [%r9], %f1;
         bar.sync 0;
         mov.f32 %f2, 0f00000000;
         mov.u32 %r10, 0;
         L: add.u32 %r11, %r2, %r10; and.b32 %r11, %r11, 127; shl.b32 %r11, %r11, 2; add.u32 %r11, %r11, %r8;
         ld.shared.f32 %f3, [%r11]; add.f32 %f2, %f2, %f3;
         add.u32 %r10, %r10, 1; setp.lt.u32 %p1, %r10, %r2; @%p1 bra L;
         st.global.f32 [%rd6], %f2;",
    );
    let mut first = None;
    for threads in [1, 2, 3, 8] {
        for seed in 0..4 {
            let mut setup = grid(8, 128).seed(seed);
            setup.options.threads = threads;
            let outcome = setup.run(&body);
            let result = (outcome.words(1024), outcome.report().clone());
            assert_eq!(*first.get_or_insert_with(|| result.clone()), result);
        }
    }
}

#[test]
fn blocks_of_a_cluster_reach_each_other() {
    // Each block reads the word of the other one of its pair, after longer than the other needs to store it.
    let body = kernel(
        ".shared .align 4 .b8 s[8];",
        "mov.u32 %r6, %cluster_ctarank;
         mov.u32 %r7, %cluster_nctarank;
         mov.u32 %r8, %clusterid.x;
         xor.b32 %r9, %r6, 1;
         add.u32 %r10, %r9, 1;
         shl.b32 %r10, %r10, 24;
         st.shared.u32 [s], %r3;
         mov.u32 %r13, 0;
         WAIT: add.u32 %r13, %r13, 1;
         setp.lt.u32 %p1, %r13, 2000;
         @%p1 bra WAIT;
         ld.shared::cluster.u32 %r11, [%r10];
         mad.lo.u32 %r12, %r3, 16, 0;
         cvt.u64.u32 %rd6, %r12;
         add.s64 %rd6, %rd2, %rd6;
         st.global.v4.u32 [%rd6], {%r6, %r7, %r8, %r11};",
    )
    .replace("sm_80", "sm_90");
    let mut setup = grid(6, 1);
    setup.options.target = 90;
    setup.launch.cluster = [2, 1, 1];
    let words = setup.clean(&body).words(24);
    assert_eq!(words, (0..6).flat_map(|block| [block % 2, 2, block / 2, block ^ 1]).collect::<Vec<_>>());
}

#[test]
fn two_gpus_in_one_process() {
    let options = GpuOptions { target: 80, memory_bytes: 1 << 20, ..GpuOptions::default() };
    let [one, two] = [Gpu::new(options.clone()).unwrap(), Gpu::new(options).unwrap()];
    let a = one.alloc(64).unwrap();
    assert_eq!(two.memory_in_use(), 0);
    assert!(two.write(a, &[1]).is_err());
    one.write(a, &[1]).unwrap();
}
