//! Faults that a kernel asks for (trap, assert), and those of pools and freed memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod exec_support;

use std::sync::Arc;

use exec_support::{BUFFER, block, grid, kernel, module};
use kinglet_emulator::error::Error;
use kinglet_emulator::error::FaultKind::{Assert, OutOfBounds, Trap, Uninitialised};
use kinglet_emulator::gpu::{Fill, Gpu, GpuOptions, Launch, Module};
use kinglet_emulator::program::Program;

#[test]
fn a_trap() {
    let body = |thread: u32| kernel("", &format!("setp.eq.u32 %p1, %r2, {thread};\n@%p1 trap; // HERE"));
    assert_eq!(block(32).caught(Trap, &body(5), &["trap"]).thread, [5, 0, 0]);
    block(32).clean(&body(32));
}

#[test]
fn the_first_block_that_fails_is_reported() {
    let body = kernel("", "setp.ge.u32 %p1, %r3, 7;\n@%p1 trap; // HERE");
    for threads in [1, 2, 5] {
        let mut setup = grid(64, 96);
        setup.options.threads = threads;
        assert_eq!(setup.caught(Trap, &body, &[]).block, [7, 0, 0]);
    }
}

#[test]
fn an_assertion() {
    let text = |name: &str, text: &str| {
        let bytes: Vec<String> = text.bytes().chain([0]).map(|byte| byte.to_string()).collect();
        format!(".global .align 1 .b8 {name}[{}] = {{{}}};\n", text.len() + 1, bytes.join(", "))
    };
    let outside = text("msg", "x > 0")
        + &text("file", "k.cu")
        + &text("func", "void k(int)")
        + ".extern .func __assertfail (.param .b64 p0, .param .b64 p1, .param .b32 p2, .param .b64 p3, .param .b64 p4);";
    let body = |thread: u32| {
        module(
            &outside,
            "",
            &format!(
                "setp.ne.u32 %p1, %r2, {thread};
                 @%p1 bra FINE;
                 mov.u64 %rd6, msg; cvta.global.u64 %rd6, %rd6;
                 mov.u64 %rd7, file; cvta.global.u64 %rd7, %rd7;
                 mov.u64 %rd8, func; cvta.global.u64 %rd8, %rd8;
                 {{
                 .param .b64 p0; .param .b64 p1; .param .b32 p2; .param .b64 p3; .param .b64 p4;
                 st.param.b64 [p0], %rd6; st.param.b64 [p1], %rd7; st.param.b32 [p2], 42;
                 st.param.b64 [p3], %rd8; st.param.b64 [p4], 1;
                 call.uni __assertfail, (p0, p1, p2, p3, p4); // HERE
                 }}
                 FINE:"
            ),
        )
    };
    let fault = block(64).caught(Assert, &body(33), &["`x > 0` at k.cu:42 in void k(int)"]);
    assert_eq!(fault.thread, [33, 0, 0]);
    block(64).clean(&body(64));
}

/// A kernel that stores `n` to `a` and loads from `b`.
const MOVE: &str = ".version 8.0\n.target sm_80\n.address_size 64
.visible .entry put(.param .u64 a, .param .u32 n) {
.reg .b64 %rd<2>; .reg .b32 %r<2>;
ld.param.u64 %rd1, [a]; ld.param.u32 %r1, [n];
st.global.u32 [%rd1], %r1;
ret; }
.visible .entry get(.param .u64 a) {
.reg .b64 %rd<2>; .reg .b32 %r<2>;
ld.param.u64 %rd1, [a];
ld.global.u32 %r1, [%rd1];
ret; }";

fn gpu() -> (Gpu, Module) {
    let gpu = Gpu::new(GpuOptions { target: 80, memory_bytes: 1 << 20, ..GpuOptions::default() }).unwrap();
    let module = gpu.load(Arc::new(Program::parse(MOVE).unwrap())).unwrap();
    (gpu, module)
}

fn put(gpu: &Gpu, module: &Module, at: u64) -> Result<(), Error> {
    let params = [&at.to_le_bytes()[..], &7u32.to_le_bytes()].concat();
    gpu.launch(module, "put", Launch::linear(1, 1), &params).map(drop)
}

fn get(gpu: &Gpu, module: &Module, at: u64) -> Result<(), Error> {
    gpu.launch(module, "get", Launch::linear(1, 1), &at.to_le_bytes()).map(drop)
}

#[track_caller]
fn caught(result: Result<(), Error>, kind: kinglet_emulator::error::FaultKind, word: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.fault().unwrap().kind, kind, "{error}");
    assert!(error.to_string().contains(word), "{error}");
}

#[test]
fn freed_memory() {
    let (gpu, module) = gpu();
    let a = gpu.alloc(64).unwrap();
    put(&gpu, &module, a).unwrap();
    get(&gpu, &module, a).unwrap();
    gpu.free(a).unwrap();
    caught(put(&gpu, &module, a), OutOfBounds, "was freed");
    // Its addresses are never given out again.
    let b = gpu.alloc(64).unwrap();
    assert_ne!(a, b);
    caught(put(&gpu, &module, a + 8), OutOfBounds, "8 bytes into the allocation");
    assert!(gpu.free(a).unwrap_err().to_string().contains("was freed"));
    assert_eq!(gpu.memory_in_use(), 64);
    assert_eq!(gpu.peak_memory(), 64);
}

#[test]
fn red_zones() {
    let (gpu, module) = gpu();
    let (a, b) = (gpu.alloc(100).unwrap(), gpu.alloc(100).unwrap());
    assert!(b - (a + 100) >= 512);
    for at in [a - 4, a + 100, a + 352, b - 256, b - 4, b + 100] {
        caught(put(&gpu, &module, at), OutOfBounds, "allocation");
    }
    put(&gpu, &module, a + 96).unwrap();
    assert!(gpu.write(a + 97, &[0; 4]).unwrap_err().to_string().contains("over its end"));
}

#[test]
fn buffers_of_a_pool() {
    let (gpu, module) = gpu();
    let pool = gpu.alloc(8192).unwrap();
    gpu.announce(pool, 100).unwrap();
    gpu.announce(pool + 512, 1000).unwrap();
    put(&gpu, &module, pool + 96).unwrap();
    put(&gpu, &module, pool + 512).unwrap();
    // Inside the allocation, outside of the buffers.
    caught(put(&gpu, &module, pool + 100), OutOfBounds, "0 bytes behind the end of the buffer");
    caught(put(&gpu, &module, pool + 508), OutOfBounds, "4 bytes before the buffer");
    caught(put(&gpu, &module, pool + 4096), OutOfBounds, "behind the end of the buffer");
    // Overlaps and strangers are refused.
    assert!(gpu.announce(pool + 1000, 8).unwrap_err().to_string().contains("overlaps"));
    assert!(gpu.announce(pool + 8000, 1000).unwrap_err().to_string().contains("not inside"));
    assert!(gpu.retire(pool + 4).is_err());
    // A buffer that is retired is gone; announced again, nobody wrote it.
    get(&gpu, &module, pool + 512).unwrap();
    gpu.retire(pool + 512).unwrap();
    caught(get(&gpu, &module, pool + 512), OutOfBounds, "was freed");
    gpu.announce(pool + 512, 1000).unwrap();
    caught(get(&gpu, &module, pool + 512), Uninitialised, "nobody wrote byte 0");
    put(&gpu, &module, pool + 512).unwrap();
    // A smaller buffer in its place: what lies behind its end is told as that.
    gpu.retire(pool + 512).unwrap();
    gpu.announce(pool + 512, 64).unwrap();
    caught(put(&gpu, &module, pool + 576), OutOfBounds, "0 bytes behind the end of the buffer");
    gpu.free(pool).unwrap();
    caught(get(&gpu, &module, pool + 512), OutOfBounds, "was freed");
    assert_eq!(gpu.memory_in_use(), 0);
}

#[test]
fn memory_of_the_host() {
    let (gpu, _module) = gpu();
    let a = gpu.alloc(BUFFER).unwrap();
    let mut bytes = [0; 9];
    assert!(gpu.read(a, &mut bytes).unwrap_err().to_string().contains("nobody wrote byte 0"));
    gpu.write(a + 3, &[1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
    gpu.read(a + 3, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    gpu.copy(a + 101, a + 3, 10).unwrap();
    let mut copied = [0; 10];
    assert!(gpu.read(a + 101, &mut copied).unwrap_err().to_string().contains("nobody wrote byte 9"));
    gpu.read(a + 101, &mut copied[..9]).unwrap();
    assert_eq!(copied[..9], bytes);
    // What was not written is not written in the copy either, though it was before.
    gpu.fill(a, Fill::U16(0x1234), 100).unwrap();
    gpu.copy(a, a + 2000, 8).unwrap();
    assert!(gpu.read(a, &mut bytes).unwrap_err().to_string().contains("nobody wrote byte 0"));
    gpu.read(a + 8, &mut bytes[..4]).unwrap();
    assert_eq!(bytes[..4], [0x34, 0x12, 0x34, 0x12]);
    gpu.fill(a, Fill::U32(9), 2).unwrap();
    gpu.fill(a + 8, Fill::U8(1), 1).unwrap();
    gpu.read(a, &mut bytes).unwrap();
    assert_eq!(bytes, [9, 0, 0, 0, 9, 0, 0, 0, 1]);
    assert!(matches!(gpu.alloc(1 << 21), Err(Error::OutOfMemory { .. })));
    assert!(gpu.alloc(0).is_err());
    gpu.read(0, &mut []).unwrap();
}

#[test]
fn more_than_the_host_has() {
    let gpu = Gpu::new(GpuOptions { memory_bytes: u64::MAX, ..GpuOptions::default() }).unwrap();
    let a = gpu.alloc(64).unwrap();
    for bytes in [1 << 60, u64::MAX - 64] {
        let error = gpu.alloc(bytes).unwrap_err();
        assert_eq!(error, Error::OutOfMemory { requested: bytes, free: u64::MAX - 64 });
        assert!(error.to_string().contains("on the host"), "{error}");
    }
    // Nothing is taken for what failed, and the GPU goes on.
    assert_eq!((gpu.memory_in_use(), gpu.peak_memory()), (64, 64));
    assert!(gpu.alloc(64).unwrap() < a + (1 << 20));
    // Ranges are looked at before anything as large is made.
    assert!(gpu.copy(a, a, 1 << 60).unwrap_err().to_string().contains("the source of a copy"));
    assert!(gpu.fill(a, Fill::U8(1), 1 << 60).unwrap_err().to_string().contains("a fill, "));
    assert!(gpu.fill(a, Fill::U32(1), u64::MAX / 2).unwrap_err().to_string().contains("values of 4 bytes"));
}

#[test]
fn copies_and_fills_of_many_chunks() {
    const BYTES: u64 = 200_001;
    let gpu = Gpu::new(GpuOptions::default()).unwrap();
    let a = gpu.alloc(2 * BYTES).unwrap();
    let mut expected: Vec<u8> = (0..BYTES).map(|at| (at * at % 251) as u8).collect();
    let mut found = vec![0; BYTES as usize];
    gpu.write(a, &expected).unwrap();
    // Overlapping, to higher and to lower addresses.
    for (from, to) in [(0, 3), (3, 70_002), (70_002, 1)] {
        gpu.copy(a + to, a + from, BYTES).unwrap();
        gpu.read(a + to, &mut found).unwrap();
        assert!(found == expected, "{from} to {to}");
    }
    // What nobody wrote moves along, in every chunk.
    let b = gpu.alloc(BYTES).unwrap();
    let holes = [0, 65_535, 65_536, 150_000, BYTES - 1];
    for pair in holes.windows(2) {
        gpu.write(b + pair[0] + 1, &expected[pair[0] as usize + 1..pair[1] as usize]).unwrap();
    }
    gpu.copy(a, b, BYTES).unwrap();
    for at in 0..BYTES {
        assert_eq!(gpu.read(a + at, &mut [0]).is_err(), holes.contains(&at), "byte {at}");
    }
    // Fills of each width, from an odd place on.
    for (value, size, pattern) in
        [(Fill::U8(7), 1, 0x0707_0707), (Fill::U16(0x102), 2, 0x0102_0102), (Fill::U32(0x1020_3040), 4, 0x1020_3040u32)]
    {
        let count = (BYTES - 3) / size;
        gpu.fill(a + 3, value, count).unwrap();
        expected = pattern.to_le_bytes().into_iter().cycle().take((count * size) as usize).collect();
        found.resize(expected.len(), 0);
        gpu.read(a + 3, &mut found).unwrap();
        assert!(found == expected, "{value:?}");
    }
}
