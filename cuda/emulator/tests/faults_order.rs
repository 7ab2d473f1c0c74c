//! Planted races of programs that order their threads by acquire, release and strong accesses to shared memory: each must be
//! caught, and its clean twin must not be.

mod exec_support;

use exec_support::{Setup, block, kernel};
use kinglet_emulator::error::FaultKind::Race;
use kinglet_emulator::gpu::Checks;

/// `s` is shared memory, zero once `%p7` is set; `%r6` is the address of the thread's word of its first part, `%r8` of its
/// start, `%r9` the number of threads.
fn shared(body: &str) -> String {
    let text = format!(
        "mov.u32 %r8, s;
         add.u32 %r6, %r8, %r5;
         mov.u32 %r9, %ntid.x;
         setp.eq.u32 %p7, %r2, 0;
         @%p7 st.shared.u32 [s+2048], 0;
         bar.sync 0;
         {body}"
    );
    kernel(".shared .align 16 .b8 s[4096];", &text)
}

/// Without the reads of what nobody wrote: which of two racing accesses comes first is the seed's choice.
fn racing(threads: u32) -> Setup {
    block(threads).checks(Checks { uninitialised: false, ..Checks::default() })
}

/// Each thread stores its word, and the last to count itself reads them all.
fn last_reads_all(count: &str) -> String {
    shared(&format!(
        "st.shared.u32 [%r6], %r2; // HERE
         {count}
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
}

#[test]
fn an_atomic_that_acquires_and_releases() {
    let body = |order: &str| last_reads_all(&format!("atom{order}.shared.add.u32 %r10, [s+2048], 1;"));
    assert_eq!(block(128).clean(&body(".acq_rel.cta")).word(0), 127 * 64);
    assert_eq!(block(128).clean(&body(".acq_rel.gpu").replace(".shared.add", ".shared::cta.add")).word(0), 127 * 64);
    for half in ["", ".relaxed.cta", ".acquire.cta", ".release.cta"] {
        racing(128).caught(Race, &body(half), &["nothing that orders them"]);
    }
}

/// Thread 0 stores a word and then says so; thread 32 waits until it hears that and loads the word.
fn message(say: &str, hear: &str) -> String {
    shared(&format!(
        "@!%p7 bra OTHERS;
         st.shared.u32 [s], 42; // HERE
         {say} // HERE
         ret;
         OTHERS:
         setp.ne.u32 %p1, %r2, 32;
         @%p1 ret;
         WAIT:
         {hear} // HERE
         setp.eq.u32 %p2, %r10, 0;
         @%p2 bra WAIT;
         ld.shared.u32 %r11, [s]; // HERE
         st.global.u32 [%rd2], %r11;"
    ))
}

#[test]
fn a_release_and_an_acquire() {
    let says = [
        "st.release.cta.shared.u32 [s+2048], 1;",
        "fence.acq_rel.cta; st.relaxed.cta.shared.u32 [s+2048], 1;",
        "membar.cta; st.volatile.shared.u32 [s+2048], 1;",
        "red.release.cta.shared.add.u32 [s+2048], 1;",
        "atom.release.cta.shared.exch.b32 %r12, [s+2048], 1;",
    ];
    let hears = [
        "ld.acquire.cta.shared.u32 %r10, [s+2048];",
        "ld.relaxed.cta.shared.u32 %r10, [s+2048]; fence.acq_rel.cta;",
        "ld.volatile.shared.u32 %r10, [s+2048]; membar.cta;",
        "atom.acquire.cta.shared.or.b32 %r10, [s+2048], 0;",
    ];
    for (say, hear) in says.iter().flat_map(|say| hears.iter().map(move |hear| (say, hear))) {
        assert_eq!(block(64).clean(&message(say, hear)).word(0), 42, "{say} {hear}");
    }
    let words = ["a load of 4 bytes at 0x0", "a store by thread (0, 0, 0)", "nothing that orders them"];
    for say in [
        "st.relaxed.cta.shared.u32 [s+2048], 1;",
        "st.volatile.shared.u32 [s+2048], 1;",
        "red.relaxed.cta.shared.add.u32 [s+2048], 1;",
        "red.shared.add.u32 [s+2048], 1;",
    ] {
        block(64).caught(Race, &message(say, hears[0]), &words);
    }
    for hear in ["ld.relaxed.cta.shared.u32 %r10, [s+2048];", "ld.volatile.shared.u32 %r10, [s+2048];"] {
        block(64).caught(Race, &message(says[0], hear), &words);
    }
}

#[test]
fn generic_addresses_too() {
    let address = "mov.u64 %rd6, s; cvta.shared.u64 %rd6, %rd6;";
    let body = |say: &str, hear: &str| {
        message(&format!("{address} {say}.u32 [%rd6+2048], 1;"), &format!("{address} {hear}.u32 %r10, [%rd6+2048];"))
    };
    assert_eq!(block(64).clean(&body("st.release.cta", "ld.acquire.cta")).word(0), 42);
    block(64).caught(Race, &body("st.relaxed.cta", "ld.acquire.cta"), &[]);
    block(64).caught(Race, &body("st.release.cta", "ld.relaxed.cta"), &[]);
}

#[test]
fn strong_accesses_race_with_weak_ones() {
    let body = |store: &str, load: &str| {
        shared(&format!(
            "@%p7 st{store}.shared.u32 [s+2048], 7; // HERE
             setp.eq.u32 %p2, %r2, 32;
             @%p2 ld{load}.shared.u32 %r10, [s+2048]; // HERE"
        ))
    };
    for (store, load) in
        [(".relaxed.cta", ".relaxed.cta"), (".release.cta", ".volatile"), (".volatile", ".acquire.gpu")]
    {
        block(64).clean(&body(store, load));
    }
    for (store, load) in [("", ".relaxed.cta"), (".release.cta", ""), (".volatile", ""), ("", ".acquire.cta")] {
        block(64).caught(Race, &body(store, load), &[]);
    }
    // Strong stores of several threads, and strong loads beside weak ones, are no race; a weak store beside them is.
    let stores = |kind: &str| shared(&format!("st{kind}.shared.u32 [s+2048], %r2; // HERE"));
    block(64).clean(&stores(".relaxed.cta"));
    block(64).caught(Race, &stores(""), &[]);
    let loads = |store: &str| {
        shared(&format!(
            "ld.shared.u32 %r10, [s+2048]; // HERE
             ld.relaxed.cta.shared.u32 %r11, [s+2048]; // HERE
             {store}
             @%p7 st.shared.u32 [s+2048], 9; // HERE"
        ))
    };
    block(64).clean(&loads("bar.sync 0;"));
    block(64).caught(Race, &loads(""), &["shared memory (s + 2048)"]);
}
