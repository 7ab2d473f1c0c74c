//! Calls, printf and tables of branches, mostly in what NVRTC made of `ptx/calls.cu`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod exec_support;

use std::sync::Arc;

use exec_support::{block, kernel, module};
use kinglet_emulator::error::FaultKind;
use kinglet_emulator::gpu::{Gpu, GpuOptions, Launch, Module};
use kinglet_emulator::program::Program;

const CALLS: &str = include_str!("ptx/calls.ptx");

fn gpu() -> (Gpu, Module) {
    let gpu = Gpu::new(GpuOptions { target: 80, memory_bytes: 1 << 20, ..GpuOptions::default() }).unwrap();
    let module = gpu.load(Arc::new(Program::parse(CALLS).unwrap())).unwrap();
    (gpu, module)
}

/// `struct Pair { float x; int n; double weight; }`
fn pair(x: f32, n: i32, weight: f64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&x.to_le_bytes());
    bytes[4..8].copy_from_slice(&n.to_le_bytes());
    bytes[8..].copy_from_slice(&weight.to_le_bytes());
    bytes
}

fn pairs(ns: &[i32]) -> Result<(Vec<f32>, String), kinglet_emulator::error::Error> {
    let (gpu, module) = gpu();
    let count = ns.len() as u64;
    let (out, input) = (gpu.alloc(4 * count)?, gpu.alloc(16 * count)?);
    let bytes: Vec<u8> = ns.iter().flat_map(|&n| pair(n as f32 + 0.25, n, 2.0)).collect();
    gpu.write(input, &bytes)?;
    let mut params = [out.to_le_bytes(), input.to_le_bytes()].concat();
    params.extend(pair(3.0, 7, 9.0));
    params.extend((count as u32).to_le_bytes());
    let report = gpu.launch(&module, "pairs", Launch::linear(2, 64), &params)?;
    let mut words = vec![0; 4 * ns.len()];
    gpu.read(out, &mut words)?;
    Ok((words.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(), report.printed))
}

#[test]
fn functions_that_call_functions_with_structs() {
    let ns: Vec<i32> = (0..100).collect();
    let (out, printed) = pairs(&ns).unwrap();
    let scaled = |x: f32, pair: (f32, i32)| x * pair.0 + pair.1 as f32;
    for (&n, &got) in ns.iter().zip(&out) {
        let x = n as f32 + 0.25;
        let doubled = scaled(x, (x, n)) * 2.0;
        assert_eq!(got, scaled(doubled, (3.0, 7)) + 2.5, "{n}");
    }
    assert_eq!(printed, "pair 0: 0.125000 end\n");
}

#[test]
fn an_assertion_of_nvrtc() {
    let ns: Vec<i32> = (0..100).map(|n| if n == 70 { -1 } else { n }).collect();
    let error = pairs(&ns).unwrap_err();
    let fault = error.fault().unwrap();
    assert_eq!((fault.kind, fault.block, fault.thread), (FaultKind::Assert, [1, 0, 0], [6, 0, 0]));
    assert!(fault.what.contains("`in[i].n >= 0` at calls.cu:22 in pairs"), "{fault}");
    let (file, line) = fault.source.clone().unwrap();
    assert!(file.ends_with("calls.cu") && line == 18, "{file}:{line}");
}

/// Runs a kernel of `(int *out, const int *in, int kind)` and compares each result with `expect(x, i)`.
fn choices(kernel: &str, kind: u32, expect: impl Fn(i32, u32) -> i32) {
    let (gpu, module) = gpu();
    let (out, input) = (gpu.alloc(128).unwrap(), gpu.alloc(128).unwrap());
    let xs: Vec<i32> = (0..32).map(|i| i * 37 - 500).collect();
    gpu.write(input, &xs.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let params = [&out.to_le_bytes()[..], &input.to_le_bytes(), &kind.to_le_bytes()].concat();
    gpu.launch(&module, kernel, Launch::linear(1, 32), &params).unwrap();
    let mut bytes = [0; 128];
    gpu.read(out, &mut bytes).unwrap();
    for (i, (&x, word)) in (0..).zip(xs.iter().zip(bytes.as_chunks().0)) {
        assert_eq!(i32::from_le_bytes(*word), expect(x, i), "{kernel}, kind {kind}, x {x}");
    }
}

#[test]
fn a_switch() {
    for kind in 0..9 {
        choices("choose", kind, |x, i| match kind {
            0 => x + 1,
            1 => x * 3,
            2 => x ^ 0x55,
            3 => x / 7,
            4 => x % 13,
            5 => x.leading_zeros() as i32,
            6 => -x,
            7 => x << i,
            _ => 0,
        });
    }
}

#[test]
fn a_table_of_branches() {
    for kind in 0..4 {
        choices("pick", kind, |x, _| [x + 1, x * 3, -x, -x][kind as usize]);
    }
}

#[test]
fn lanes_in_different_functions() {
    // Odd lanes call one function, even lanes another, and some return early.
    let outside = "
        .func (.param .b32 r) twice(.param .b32 x) {
        .reg .b32 %a<2>; .reg .pred %q;
        ld.param.u32 %a0, [x];
        setp.gt.u32 %q, %a0, 20;
        @%q bra BIG;
        shl.b32 %a0, %a0, 1;
        st.param.b32 [r], %a0;
        ret;
        BIG: st.param.b32 [r], 1000;
        ret; }
        .func (.param .b32 r) plus(.param .b32 x) {
        .reg .b32 %a<2>;
        ld.param.u32 %a0, [x];
        add.u32 %a0, %a0, 100;
        st.param.b32 [r], %a0;
        ret; }";
    let call = |name: &str| {
        format!(
            "{{ .param .b32 x; .param .b32 r; st.param.b32 [x], %r2; call.uni (r), {name}, (x); ld.param.b32 %r6, [r]; }}"
        )
    };
    let body = format!(
        "and.b32 %r7, %r2, 1;
         setp.eq.u32 %p1, %r7, 0;
         @%p1 bra EVEN;
         {}
         bra JOIN;
         EVEN: {}
         JOIN: st.global.u32 [%rd4], %r6;",
        call("twice"),
        call("plus")
    );
    let expect = |lane: u32| match lane {
        lane if lane % 2 == 0 => lane + 100,
        lane if lane > 20 => 1000,
        lane => 2 * lane,
    };
    let words = block(32).clean(&module(outside, "", &body)).words(32);
    assert_eq!(words, (0..32).map(expect).collect::<Vec<_>>());
}

#[test]
fn a_table_of_branches_with_a_way_for_each_lane() {
    let body = kernel(
        "",
        "and.b32 %r7, %r2, 3;
         ts: .branchtargets L0, L1, L2, L1;
         brx.idx %r7, ts;
         L0: mov.u32 %r6, 10; bra JOIN;
         L1: mov.u32 %r6, 11; bra JOIN;
         L2: mov.u32 %r6, 12;
         JOIN: st.global.u32 [%rd4], %r6;",
    );
    let outcome = block(32).clean(&body);
    assert_eq!(outcome.words(32), (0..32).map(|lane| [10, 11, 12, 11][lane % 4]).collect::<Vec<_>>());
    assert_eq!(outcome.report().counters.divergent_branches, 1);
}

#[test]
fn what_threads_print_comes_in_the_order_of_blocks() {
    let text: Vec<String> = b"block %d thread %2u %c|%5.2f|%s|%lld%%\n\0".iter().map(u8::to_string).collect();
    let outside = format!(
        ".global .align 1 .b8 fmt[{}] = {{{}}};
         .global .align 1 .b8 msg[4] = {{104, 195, 169, 0}};
         .extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 v);",
        text.len(),
        text.join(", ")
    );
    let body = module(
        &outside,
        ".local .align 8 .b8 l[48];",
        "setp.ge.u32 %p1, %r2, 2;
         @%p1 ret;
         mov.u64 %rd6, l; cvta.local.u64 %rd7, %rd6;
         st.local.u32 [%rd6], %r3; st.local.u32 [%rd6+4], %r2; st.local.u32 [%rd6+8], 88;
         mov.f64 %d1, 0d400921FB54442D18; st.local.f64 [%rd6+16], %d1;
         mov.u64 %rd8, msg; cvta.global.u64 %rd8, %rd8; st.local.u64 [%rd6+24], %rd8;
         mov.u64 %rd9, -5; st.local.u64 [%rd6+32], %rd9;
         mov.u64 %rd8, fmt; cvta.global.u64 %rd8, %rd8;
         { .param .b64 f; .param .b64 v; .param .b32 r;
         st.param.b64 [f], %rd8; st.param.b64 [v], %rd7;
         call.uni (r), vprintf, (f, v); ld.param.b32 %r6, [r]; }
         st.global.u32 [%rd2], %r6;",
    );
    let mut setup = exec_support::grid(3, 32);
    setup.options.threads = 3;
    let outcome = setup.clean(&body);
    let trapped = exec_support::grid(3, 32)
        .run(&body.replace("st.global.u32 [%rd2], %r6;", "setp.eq.u32 %p2, %r3, 1; @%p2 trap;"));
    assert_eq!(trapped.fault().printed.lines().count(), 4);
    let line = |b: u32, t: u32| format!("block {b} thread {t:2} X| 3.14|hé|-5%\n");
    let expect: String = (0..3).flat_map(|b| (0..2).map(move |t| line(b, t))).collect();
    assert_eq!(outcome.report().printed, expect);
    assert_eq!(outcome.word(0), 6);
}
