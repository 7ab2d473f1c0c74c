//! Barriers in all their forms: what they compute, whom they order, and planted faults with their clean twins.

mod exec_support;

use exec_support::{Setup, block, kernel};
use kinglet_emulator::error::FaultKind::{BarrierDivergence, Race};
use kinglet_emulator::gpu::Checks;

/// `%p1` holds for the first `limit` threads, and `reduction` leaves its result in `%r6` or `%p2`.
fn reduce(limit: u32, reduction: &str) -> String {
    let select = if reduction.contains(".pred") { "selp.u32 %r6, 1, 0, %p2;" } else { "" };
    kernel("", &format!("setp.lt.u32 %p1, %r2, {limit};\n{reduction} // HERE\n{select}\nst.global.u32 [%rd4], %r6;"))
}

#[test]
fn reductions_in_all_forms() {
    for bar in ["bar.red", "bar.cta.red", "barrier.red", "barrier.red.aligned", "barrier.cta.red"] {
        // `.aligned` stands behind the operation.
        let (name, aligned) = bar.strip_suffix(".aligned").map_or((bar, ""), |name| (name, ".aligned"));
        for threads in ["", "96, "] {
            let value = |op: &str, limit: u32, not: &str| {
                let (ty, dst) = if op == "popc" { ("u32", "%r6") } else { ("pred", "%p2") };
                let text = format!("{name}.{op}{aligned}.{ty} {dst}, 3, {threads}{not}%p1;");
                let words = block(96).clean(&reduce(limit, &text)).words(96);
                assert!(words.iter().all(|&word| word == words[0]), "{text}");
                words[0]
            };
            assert_eq!([0, 40, 96].map(|limit| value("popc", limit, "")), [0, 40, 96], "{bar} {threads}");
            assert_eq!([0, 40, 96].map(|limit| value("popc", limit, "!")), [96, 56, 0], "{bar} {threads}");
            assert_eq!([0, 95, 96].map(|limit| value("and", limit, "")), [0, 0, 1], "{bar} {threads}");
            assert_eq!([0, 1, 96].map(|limit| value("and", limit, "!")), [1, 0, 0], "{bar} {threads}");
            assert_eq!([0, 1, 96].map(|limit| value("or", limit, "")), [0, 1, 1], "{bar} {threads}");
            assert_eq!([0, 95, 96].map(|limit| value("or", limit, "!")), [1, 1, 0], "{bar} {threads}");
        }
    }
}

#[test]
fn a_reduction_of_some_warps() {
    // The first two warps of three, and the third by a barrier of its own.
    let body = kernel(
        "",
        "setp.ge.u32 %p1, %r2, 20;
         setp.ge.u32 %p2, %r2, 64;
         @%p2 bra THIRD;
         bar.red.popc.u32 %r6, 1, 64, %p1;
         bra END;
         THIRD:
         bar.red.popc.u32 %r6, 2, 32, !%p1;
         END:
         st.global.u32 [%rd4], %r6;",
    );
    let words = block(96).clean(&body).words(96);
    assert_eq!((&words[..64], &words[64..]), (&[44; 64][..], &[0; 32][..]));
}

#[test]
fn a_reduction_in_divergent_flow() {
    let body = |aligned: &str| {
        kernel(
            "",
            &format!(
                "setp.lt.u32 %p1, %r2, 16;
                 @%p1 bra LEFT;
                 barrier.red.popc{aligned}.u32 %r6, 0, %p1; // HERE
                 bra JOIN;
                 LEFT:
                 barrier.red.popc{aligned}.u32 %r6, 0, %p1; // HERE
                 JOIN:
                 st.global.u32 [%rd4], %r6;"
            ),
        )
    };
    block(64).caught(BarrierDivergence, &body(".aligned"), &["nobody can go on"]);
    assert_eq!(block(64).clean(&body("")).words(64), vec![16; 64]);
}

#[test]
fn a_reduction_here_and_another_barrier_there() {
    let body = |left: &str, right: &str| {
        kernel(
            "",
            &format!(
                "setp.lt.u32 %p1, %r2, 32;
                 @%p1 bra LEFT;
                 {right} // HERE
                 ret;
                 LEFT:
                 {left} // HERE"
            ),
        )
    };
    let reduction = "bar.red.popc.u32 %r6, 1, 64, %p1;";
    let sync = "bar.sync 1, 64;";
    for other in [sync, "bar.arrive 1, 64;", "barrier.sync 1, 64;", "barrier.arrive 1, 64;"] {
        // Which of the two warps comes first is the seed's choice.
        for (left, right) in [(reduction, other), (other, reduction)] {
            for seed in exec_support::SEEDS {
                let outcome = block(64).seed(seed).run(&body(left, right));
                let fault = outcome.fault();
                assert_eq!(fault.kind, BarrierDivergence, "{fault}");
                assert!(fault.what.contains("barrier 1 is red here and sync or arrive at"), "{fault}");
            }
        }
    }
    block(64).clean(&body(reduction, reduction));
    block(64).clean(&body(sync, sync));
    block(64).clean(&body("bar.arrive 1, 64;", sync));
}

/// The first warp stores, the second reads: `first` and `second` stand between.
fn handed_over(first: &str, second: &str) -> String {
    kernel(
        ".shared .align 4 .b8 s[128];",
        &format!(
            "mov.u32 %r8, s;
             and.b32 %r9, %r5, 127;
             add.u32 %r8, %r8, %r9;
             setp.ge.u32 %p1, %r2, 32;
             setp.lt.u32 %p2, %r4, 16;
             @%p1 bra SECOND;
             st.shared.u32 [%r8], %r2; // HERE
             {first}
             ret;
             SECOND:
             {second}
             ld.shared.u32 %r10, [%r8]; // HERE
             st.global.u32 [%rd4], %r10;"
        ),
    )
}

fn racing() -> Setup {
    block(64).checks(Checks { uninitialised: false, ..Checks::default() })
}

#[test]
fn barriers_that_are_not_aligned_order_threads() {
    // Lanes of a warp may come at different places.
    let apart = |barrier: &str, label: &str| {
        format!("@%p2 bra {label};\n{barrier}\nbra {label}E;\n{label}:\n{barrier}\n{label}E:")
    };
    let sync = "barrier.sync 1, 64;";
    let red = "barrier.red.or.pred %p3, 1, 64, %p1;";
    for (first, second) in [(sync, sync), ("barrier.arrive 1, 64;", sync), (red, red)] {
        let outcome = block(64).clean(&handed_over(first, second));
        assert_eq!((32..64).map(|at| outcome.word(at)).collect::<Vec<_>>(), (0..32).collect::<Vec<_>>());
        block(64).clean(&handed_over(&apart(first, "A"), &apart(second, "B")));
        // With a number of its own for each warp nothing is ordered.
        let number = |barrier: &str, id: &str| {
            let barrier = barrier.replace("1, 64", &format!("{id}, 32"));
            if barrier.contains("arrive") { String::new() } else { barrier }
        };
        racing().caught(Race, &handed_over(&number(first, "1"), &number(second, "2")), &[]);
    }
    // Who only arrives learns nothing.
    racing().caught(Race, &handed_over("barrier.sync 1, 64;", "barrier.arrive 1, 64;"), &[]);
}
