//! What a launch is refused for, and what it counts.
#![allow(clippy::unwrap_used, reason = "tests")]

mod exec_support;

use std::sync::Arc;

use exec_support::{block, grid, kernel};
use kinglet_emulator::error::{Error, Result};
use kinglet_emulator::gpu::{Gpu, GpuOptions, Launch, Report};
use kinglet_emulator::program::Program;

fn program(target: &str, directives: &str) -> Arc<Program> {
    let text = format!(
        ".version 8.4\n.target {target}\n.address_size 64\n.extern .shared .align 16 .b8 dyn[];\n.visible .entry k(.param .u64 a, .param .u32 n)\n{directives}\n{{ ret; }}"
    );
    Arc::new(Program::parse(&text).unwrap())
}

fn launch_on(target: u32, directives: &str, launch: Launch, params: usize) -> Result<Report> {
    let gpu = Gpu::new(GpuOptions { target, ..GpuOptions::default() })?;
    let module = gpu.load(program("sm_80", directives))?;
    gpu.launch(&module, "k", launch, &vec![0; params])
}

#[track_caller]
fn refused(result: Result<Report>, words: &[&str]) {
    match result {
        Err(Error::Invalid(what)) => words.iter().for_each(|word| assert!(what.contains(word), "{word}: {what}")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn launches_that_a_driver_refuses() {
    let linear = Launch::linear(1, 32);
    launch_on(80, "", linear, 12).unwrap();
    refused(launch_on(80, "", linear, 8), &["8 bytes of parameters", "takes 12"]);
    refused(launch_on(80, "", Launch::linear(0, 32), 12), &["of 0"]);
    refused(launch_on(80, "", Launch::linear(1, 1025), 12), &["1024"]);
    refused(launch_on(80, "", Launch { block: [1, 1, 65], ..linear }, 12), &["1024, 1024, 64"]);
    refused(launch_on(80, "", Launch { grid: [1, 65536, 1], ..linear }, 12), &["65535"]);
    refused(launch_on(80, "", Launch { cluster: [2, 1, 1], ..linear }, 12), &["sm_80 has no clusters"]);
    refused(launch_on(90, "", Launch { cluster: [2, 1, 1], ..linear }, 12), &["no multiple"]);
    refused(launch_on(90, "", Launch { cluster: [16, 1, 1], grid: [16, 1, 1], ..linear }, 12), &["8 blocks"]);
    launch_on(90, "", Launch { cluster: [2, 1, 1], grid: [4, 1, 1], ..linear }, 12).unwrap();
    refused(launch_on(80, ".maxntid 64, 1, 1", Launch::linear(1, 96), 12), &["maxntid"]);
    launch_on(80, ".maxntid 64, 1, 1", Launch::linear(1, 64), 12).unwrap();
    refused(launch_on(80, ".reqntid 64, 1, 1", Launch::linear(1, 32), 12), &["reqntid"]);
    launch_on(80, ".reqntid 64, 1, 1", Launch::linear(1, 64), 12).unwrap();
    for (target, kib) in [(80, 163), (89, 99), (90, 227)] {
        launch_on(target, "", Launch { dynamic_shared: kib << 10, ..linear }, 12).unwrap();
        refused(launch_on(target, "", Launch { dynamic_shared: (kib << 10) + 1, ..linear }, 12), &["shared memory"]);
    }
}

#[test]
fn modules_that_do_not_fit() {
    let gpu = Gpu::new(GpuOptions { target: 80, ..GpuOptions::default() }).unwrap();
    for target in ["sm_89", "sm_90", "sm_90a"] {
        let error = gpu.load(program(target, "")).unwrap_err();
        assert!(error.to_string().contains(target), "{error}");
    }
    let newer = Gpu::new(GpuOptions { target: 90, ..GpuOptions::default() }).unwrap();
    for target in ["sm_75", "sm_80", "sm_89", "sm_90", "sm_90a"] {
        newer.load(program(target, "")).unwrap();
    }
    assert!(Gpu::new(GpuOptions { target: 42, ..GpuOptions::default() }).is_err());
    let module = gpu.load(program("sm_80", "")).unwrap();
    refused(gpu.launch(&module, "other", Launch::linear(1, 1), &[]), &["no kernel other", "it has: k"]);
    refused(newer.launch(&module, "k", Launch::linear(1, 1), &[0; 12]), &["another GPU"]);
}

#[test]
fn a_module_frees_its_variables() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.global .align 8 .b8 big[1000];\n.global .align 4 .u32 small = 7;
        .global .align 8 .u64 pointer = generic(small);\n.visible .entry k() { ret; }";
    let program = Arc::new(Program::parse(text).unwrap());
    let gpu = Gpu::new(GpuOptions { target: 80, memory_bytes: 2000, ..GpuOptions::default() }).unwrap();
    let module = gpu.load(program.clone()).unwrap();
    assert_eq!(gpu.memory_in_use(), 1012);
    let read = |name: &str| {
        let (address, bytes) = module.variable(name).unwrap();
        let mut value = vec![1; bytes as usize];
        gpu.read(address, &mut value).unwrap();
        (address, value)
    };
    assert_eq!(read("big").1, vec![0; 1000]);
    let (address, value) = read("small");
    assert_eq!(value, [7, 0, 0, 0]);
    assert_eq!(read("pointer").1, address.to_le_bytes());
    // There is no room for a second; nothing of it stays.
    assert!(matches!(gpu.load(program.clone()), Err(Error::OutOfMemory { .. })));
    assert_eq!(gpu.memory_in_use(), 1012);
    drop(module);
    assert_eq!(gpu.memory_in_use(), 0);
    gpu.load(program).unwrap();
}

#[test]
fn sectors_of_global_memory() {
    let count = |address: &str| {
        let body = format!("{address}\ncvt.u64.u32 %rd6, %r6;\nadd.s64 %rd6, %rd1, %rd6;\nld.global.u32 %r7, [%rd6];");
        let counters = block(32).clean(&kernel("", &body)).report().counters;
        assert_eq!((counters.global_requests, counters.global_read_bytes), (1, 128));
        counters.global_sectors
    };
    assert_eq!(count("mov.u32 %r6, %r5;"), 4);
    assert_eq!(count("add.u32 %r6, %r5, 4;"), 5);
    assert_eq!(count("mov.u32 %r6, 16;"), 1);
    assert_eq!(count("shl.b32 %r6, %r5, 1;"), 8);
    assert_eq!(count("shl.b32 %r6, %r5, 4;"), 32);
    // In any order.
    assert_eq!(count("xor.b32 %r6, %r5, 124;"), 4);
    assert_eq!(count("mul.lo.u32 %r6, %r5, 9; and.b32 %r6, %r6, 127;"), 4);
}

#[test]
fn conflicts_of_shared_banks() {
    let count = |load: &str, step: u32| {
        let body = format!(
            "mov.u32 %r8, s;\nmad.lo.u32 %r6, %r2, {step}, %r8;\nst.shared.v4.u32 [s], {{%r1, %r1, %r1, %r1}};\n{load}, [%r6];"
        );
        let mut setup = block(32);
        setup.options.checks = kinglet_emulator::gpu::Checks::none();
        let counters = setup.clean(&kernel(".shared .align 16 .b8 s[8192];", &body)).report().counters;
        assert_eq!(counters.shared_requests, 2);
        counters.bank_conflicts
    };
    let word = "ld.shared.u32 %r7";
    let conflicts = [0, 4, 8, 16, 128, 132].map(|step| count(word, step));
    assert_eq!(conflicts, [0, 0, 1, 3, 31, 0]);
    // Half a warp at a time, a quarter at a time: as they come there is no conflict.
    assert_eq!([8, 16, 128].map(|step| count("ld.shared.u64 %rd6", step)), [0, 2, 2 * 15]);
    assert_eq!([16, 32, 128].map(|step| count("ld.shared.v4.u32 {%r10, %r11, %r12, %r13}", step)), [0, 4, 4 * 7]);
    assert_eq!(count("ld.shared.u8 %r7", 1), 0);
}

#[test]
fn what_instructions_count_as() {
    let body = kernel(
        "",
        "cvt.rn.f32.u32 %f1, %r2;\nfma.rn.f32 %f2, %f1, %f1, %f1;\nadd.rn.f32 %f2, %f2, %f1;\nsetp.lt.u32 %p1, %r2, 8;\n@%p1 add.f32 %f2, %f2, %f1;\n@%p1 bra ON;\nbar.warp.sync -1;\nON: bar.sync 0;",
    );
    let counters = grid(2, 40).clean(&body.replace("bar.warp.sync -1;", "")).report().counters;
    // Two blocks of 40 threads: 5 parameters and conversions of addresses, then the body.
    assert_eq!(counters.float, 2 * (40 + 40 + 8));
    assert_eq!(counters.scalar_flops, 2 * (80 + 40 + 8));
    assert_eq!(counters.divergent_branches, 2);
    assert_eq!(counters.barriers, 4);
    assert_eq!(counters.lane_instructions + counters.idle_lanes, 32 * counters.warp_instructions);
    assert!(counters.integer > 0 && counters.control == 2 * (8 + 40));
}

#[test]
fn several_threads_of_the_host_launch_at_once() {
    let body = kernel("", "atom.global.add.u32 %r6, [%rd1], 1;");
    let gpu = Gpu::new(GpuOptions { target: 80, threads: 2, ..GpuOptions::default() }).unwrap();
    let module = gpu.load(Arc::new(Program::parse(&body).unwrap())).unwrap();
    let a = gpu.alloc(4).unwrap();
    gpu.write(a, &[0; 4]).unwrap();
    let params = [&a.to_le_bytes()[..], &a.to_le_bytes(), &[0; 4]].concat();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    gpu.launch(&module, "k", Launch::linear(10, 64), &params).unwrap();
                    let other = gpu.alloc(1000).unwrap();
                    gpu.free(other).unwrap();
                }
            });
        }
    });
    let mut bytes = [0; 4];
    gpu.read(a, &mut bytes).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 4 * 10 * 640);
}
