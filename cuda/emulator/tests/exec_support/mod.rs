//! Kernels of a few lines, and what must come of them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test's helper")]

use std::sync::Arc;

use kinglet_emulator::error::{Error, Fault, FaultKind};
use kinglet_emulator::gpu::{Checks, Gpu, GpuOptions, Launch, Module, Report};
use kinglet_emulator::program::Program;

/// Seeds that every kernel runs under.
pub const SEEDS: [u64; 4] = [0, 1, 2, 0xfeed];
/// Bytes of each of the two buffers that a kernel gets.
pub const BUFFER: u64 = 4096;

/// A kernel `k(a, b, n)` around a body. `%rd1` and `%rd2` hold the global addresses of two buffers of [`BUFFER`] bytes, the
/// first of them holding the numbers 0, 1, .. as u32, the second fresh; `%r1` is n, `%r2` the thread's number, `%r3` the
/// block's, `%r4` the lane's. `%rd3` is `%rd1 + 4 * %r2`, `%rd4` the same in the second buffer, `%r5` is `4 * %r2`.
/// `declarations` stand at the kernel's start.
pub fn kernel(declarations: &str, body: &str) -> String {
    module("", declarations, body)
}

/// The same, with declarations of the module before the kernel.
pub fn module(outside: &str, declarations: &str, body: &str) -> String {
    format!(
        ".version 8.4
.target sm_80
.address_size 64
{outside}
.visible .entry k(.param .u64 a, .param .u64 b, .param .u32 n)
{{
.reg .pred %p<8>;
.reg .b16 %h<8>;
.reg .b32 %r<40>;
.reg .f32 %f<40>;
.reg .b64 %rd<24>;
.reg .f64 %d<4>;
{declarations}
ld.param.u64 %rd1, [a];
ld.param.u64 %rd2, [b];
ld.param.u32 %r1, [n];
cvta.to.global.u64 %rd1, %rd1;
cvta.to.global.u64 %rd2, %rd2;
mov.u32 %r2, %tid.x;
mov.u32 %r3, %ctaid.x;
mov.u32 %r4, %laneid;
shl.b32 %r5, %r2, 2;
cvt.u64.u32 %rd5, %r5;
add.s64 %rd3, %rd1, %rd5;
add.s64 %rd4, %rd2, %rd5;
{body}
ret;
}}
"
    )
}

/// What a launch left behind.
pub struct Outcome {
    pub gpu: Gpu,
    pub module: Module,
    pub result: Result<Report, Error>,
    pub a: u64,
    pub b: u64,
}

impl Outcome {
    /// A word of the second buffer.
    pub fn word(&self, index: u64) -> u32 {
        let mut bytes = [0; 4];
        self.gpu.read(self.b + 4 * index, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// The first words of the second buffer.
    pub fn words(&self, count: u64) -> Vec<u32> {
        (0..count).map(|index| self.word(index)).collect()
    }

    pub fn report(&self) -> &Report {
        self.result.as_ref().unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn fault(&self) -> &Fault {
        match &self.result {
            Err(Error::Fault(fault)) => fault,
            other => panic!("no fault, but {other:?}"),
        }
    }
}

/// How a kernel runs.
#[derive(Clone, Debug)]
pub struct Setup {
    pub launch: Launch,
    pub n: u32,
    pub options: GpuOptions,
}

/// One block of so many threads.
pub fn block(threads: u32) -> Setup {
    grid(1, threads)
}

/// Blocks of so many threads.
pub fn grid(blocks: u32, threads: u32) -> Setup {
    let options = GpuOptions { target: 80, memory_bytes: 1 << 24, threads: 2, ..GpuOptions::default() };
    Setup { launch: Launch::linear(blocks, threads), n: 0, options }
}

impl Setup {
    pub fn n(mut self, n: u32) -> Self {
        self.n = n;
        self
    }

    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    pub fn dynamic(mut self, bytes: u32) -> Self {
        self.launch.dynamic_shared = bytes;
        self
    }

    pub fn limit(mut self, instructions: u64) -> Self {
        self.options.instruction_limit = instructions;
        self
    }

    pub fn checks(mut self, checks: Checks) -> Self {
        self.options.checks = checks;
        self
    }

    /// Runs a kernel.
    pub fn run(&self, ptx: &str) -> Outcome {
        let gpu = Gpu::new(self.options.clone()).unwrap();
        let program = Program::parse(ptx).unwrap_or_else(|error| panic!("{error}\n{}", numbered(ptx)));
        let module = gpu.load(Arc::new(program)).unwrap_or_else(|error| panic!("{error}\n{}", numbered(ptx)));
        let (a, b) = (gpu.alloc(BUFFER).unwrap(), gpu.alloc(BUFFER).unwrap());
        let numbers: Vec<u8> = (0..BUFFER as u32 / 4).flat_map(u32::to_le_bytes).collect();
        gpu.write(a, &numbers).unwrap();
        let mut params = Vec::new();
        params.extend(a.to_le_bytes());
        params.extend(b.to_le_bytes());
        params.extend(self.n.to_le_bytes());
        let result = gpu.launch(&module, "k", self.launch, &params);
        Outcome { gpu, module, result, a, b }
    }

    /// Runs a kernel that must not fail, under all seeds; the last outcome.
    pub fn clean(&self, ptx: &str) -> Outcome {
        let mut outcomes = SEEDS.map(|seed| self.clone().seed(seed).run(ptx)).into_iter();
        let mut last = outcomes.next().unwrap();
        last.result.as_ref().unwrap_or_else(|error| panic!("{error}\n{}", numbered(ptx)));
        for outcome in outcomes {
            outcome.result.as_ref().unwrap_or_else(|error| panic!("{error}\n{}", numbered(ptx)));
            last = outcome;
        }
        last
    }

    /// Runs a kernel that must fail under all seeds with this kind, at the line marked `// HERE` (one of them, where there
    /// are several), with all these words in the message.
    pub fn caught(&self, kind: FaultKind, ptx: &str, words: &[&str]) -> Fault {
        let marked: Vec<u32> =
            (1..).zip(ptx.lines()).filter(|(_, line)| line.contains("// HERE")).map(|(number, _)| number).collect();
        assert!(!marked.is_empty(), "no line is marked");
        let mut last = None;
        for seed in SEEDS {
            let outcome = self.clone().seed(seed).run(ptx);
            let fault = match &outcome.result {
                Err(Error::Fault(fault)) => (**fault).clone(),
                other => panic!("seed {seed}: no fault but {other:?}\n{}", numbered(ptx)),
            };
            let text = format!("seed {seed}: {fault}\n{}", numbered(ptx));
            assert_eq!(fault.kind, kind, "{text}");
            assert!(marked.contains(&fault.ptx_line), "{text}");
            for word in words {
                assert!(fault.to_string().contains(word), "{word} is missing: {text}");
            }
            // The GPU stays usable, and nothing is lost.
            let mut bytes = [0; 4];
            outcome.gpu.read(outcome.a + 4, &mut bytes).unwrap();
            assert_eq!(outcome.gpu.memory_in_use(), 2 * BUFFER + variable_bytes(&outcome.module), "{text}");
            last = Some(fault);
        }
        last.unwrap()
    }
}

fn variable_bytes(module: &Module) -> u64 {
    // Names of the module variables that these tests use.
    ["v", "w", "fmt", "msg", "file", "func", "table", "text"]
        .iter()
        .filter_map(|name| module.variable(name))
        .map(|(_, bytes)| bytes)
        .sum()
}

/// A text with the numbers of its lines.
pub fn numbered(ptx: &str) -> String {
    (1..).zip(ptx.lines()).map(|(number, line)| format!("{number:4} {line}\n")).collect()
}
