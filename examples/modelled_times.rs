//! The time that kernels would take on GPUs that are not here: modelled from what the virtual GPU counts of a small run, scaled
//! to the size of a real one. Prints a table in Markdown.
//!
//! ```sh
//! cargo run --release --features emulator --example modelled_times > benches/results/modelled.md
//! ```
//!
//! The model is a roofline of six roofs, and the time is that of the lowest: bytes that must move through device memory at 87% of
//! its peak (what copies reach), sectors through L2, operations of the tensor cores (65% of peak on Hopper: the ceiling of
//! `mma.sync`), scalar float operations, warp instructions (four a cycle and multiprocessor), passes through shared memory
//! (one a cycle and multiprocessor). It knows no latency, no tail of the last wave, no launch: in these a real GPU takes longer.
//! And it counts instructions of PTX, of which the assembler drops a quarter to a third (moves, address arithmetic): where
//! `issue` is the roof, a real GPU is faster.

use kinglet::autograd::{Grads, ParamSet, Tape};
use kinglet::optim::{AdamW, AdamWOptions};
use kinglet::quant::{Direction, FourBit, GgufMatrix, Lora, RowOrder, Weight, ggml, linear_lora, nf4};
use kinglet::tensor::cpu::sample::Choice;
use kinglet::tensor::ops::{self, KvView, Mask, Segments, Targets, Term, Wants};
use kinglet::tensor::philox::Key;
use kinglet::tensor::{DType, Device, EmulatorOptions, Result, Tensor};
use std::sync::Arc;

/// Peaks of a GPU.
struct Gpu {
    name: &'static str,
    arch: u32,
    multiprocessors: f64,
    /// Cycles a second.
    clock: f64,
    /// Bytes a second, of device memory and of L2.
    memory: f64,
    l2: f64,
    /// Operations a second: bf16 on tensor cores as `mma.sync` reaches them, and scalar f32.
    tensor: f64,
    scalar: f64,
}

/// Data sheets; L2 as microbenchmarks find it.
const GPUS: [Gpu; 2] = [
    Gpu {
        name: "A100 80 GB",
        arch: 80,
        multiprocessors: 108.0,
        clock: 1.41e9,
        memory: 2.039e12,
        l2: 4.5e12,
        tensor: 312e12,
        scalar: 19.5e12,
    },
    Gpu {
        name: "H100 SXM",
        arch: 90,
        multiprocessors: 132.0,
        clock: 1.755e9,
        memory: 3.352e12,
        l2: 5.5e12,
        tensor: 0.65 * 989.5e12,
        scalar: 66.9e12,
    },
];

/// What copies reach of a data sheet's bandwidth.
const COPY: f64 = 0.87;

/// A kernel at a size that the virtual GPU can run, and at a real one: the small size has enough tiles for a whole GPU, so
/// that the same kernel is chosen.
struct Job {
    name: &'static str,
    real: &'static str,
    /// How often the work that `run` does of the depth `depths[2]` fits into that of the real size.
    factor: f64,
    /// Two depths (of k, or of tokens) that are run, and the real one: counts grow evenly with it.
    depths: [usize; 3],
    /// Bytes that the real size must read and write.
    bytes: f64,
    /// Floating-point operations of the real size, as usually counted; 0 where nobody counts them.
    flops: f64,
    /// Somebody's figure for the real size.
    published: &'static str,
    run: fn(&Device, usize) -> Result<()>,
}

fn normal(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    ops::normal(shape, 1.0, Key::derive(&[shape.len() as u64]), device)?.to_dtype(dtype)
}

fn product(dtype: DType, [m, n, k]: [usize; 3], device: &Device) -> Result<()> {
    let (a, b) = (normal(&[m, k], dtype, device)?, normal(&[n, k], dtype, device)?.transpose(0, 1)?);
    forget(device);
    ops::matmul(&a, &b).map(drop)
}

fn attention(tokens: usize, backward: bool, device: &Device) -> Result<()> {
    let x = normal(&[tokens, 1, 128], DType::BF16, device)?;
    let (kv, segments) = (KvView { k: &x, v: &x }, Segments::one(tokens, tokens)?);
    segments.to_device(device)?;
    forget(device);
    let (out, lse) = ops::attention(&x, kv, &segments, Mask::Causal, 0.1)?;
    if backward {
        forget(device);
        ops::attention_backward(&x, &x, kv, &out, &lse, &segments, Mask::Causal, 0.1)?;
    }
    Ok(())
}

/// One query of each of four heads with all keys of their key head, as when a token is written.
fn decode_attention(keys: usize, device: &Device) -> Result<()> {
    let q = normal(&[1, 4, 128], DType::BF16, device)?;
    let x = normal(&[keys, 1, 128], DType::BF16, device)?;
    let (kv, segments) = (KvView { k: &x, v: &x }, Segments::one(1, keys)?);
    segments.to_device(device)?;
    forget(device);
    ops::attention(&q, kv, &segments, Mask::Causal, 0.1).map(drop)
}

/// Q4_K blocks, 144 bytes for 256 elements.
fn ggml_blocks(rows: usize, dtype: DType, k: usize, device: &Device) -> Result<()> {
    let blocks = Tensor::full(36.0, &[2112 * k / 256 * 144], DType::U8, device)?;
    let weight = GgufMatrix::new(ggml::Format::Q4_K, [2112, k], RowOrder::Plain, blocks)?;
    let x = normal(&[rows, k], dtype, device)?;
    forget(device);
    Weight::Gguf(weight).matmul(&x, Direction::Forward).map(drop)
}

/// A layer with an adapter of rank 16, forward.
fn with_adapter(k: usize, device: &Device) -> Result<()> {
    let weight = Arc::new(Weight::Dense(normal(&[1536, k], DType::BF16, device)?));
    let (a, b) = (normal(&[16, k], DType::F32, device)?, normal(&[1536, 16], DType::F32, device)?);
    let tape = Tape::new();
    let x = tape.leaf(normal(&[2816, k], DType::BF16, device)?);
    let lora = Lora { a: tape.leaf(a), b: tape.leaf(b), scale: 1.0, dropout: None };
    forget(device);
    linear_lora(&x, &weight, None, &[lora]).map(drop)
}

/// A step over one parameter of `len` elements, the norm of its gradient included.
fn adamw(len: usize, device: &Device) -> Result<()> {
    let mut set = ParamSet::new(vec![("w".into(), normal(&[len], DType::F32, device)?)], device)?;
    let (grads, mut adamw) = (Grads::new(&set)?, AdamW::new(&set, AdamWOptions::default())?);
    adamw.begin(1e-3)?;
    forget(device);
    adamw.apply(&mut set, &grads, None).map(drop)
}

fn four_bit(rows: usize, dtype: DType, k: usize, device: &Device) -> Result<()> {
    let weight = FourBit::quantize(&normal(&[2112, k], DType::BF16, device)?, nf4::Format::Nf4, 64, true)?;
    if rows == 0 {
        forget(device);
        return weight.dequantize(DType::BF16).map(drop);
    }
    let x = normal(&[rows, k], dtype, device)?;
    forget(device);
    Weight::FourBit(Arc::new(weight)).matmul(&x, Direction::Forward).map(drop)
}

/// Everything so far is preparation.
fn forget(device: &Device) {
    let _ = device.as_cuda().map(|cuda| cuda.take_counters());
}

const JOBS: &[Job] = &[
    Job {
        name: "matmul bf16",
        real: "4096 x 4096 x 4096",
        factor: 4096.0 * 4096.0 / (1536.0 * 2816.0),
        depths: [128, 256, 4096],
        bytes: 3.0 * 2.0 * 4096.0 * 4096.0,
        flops: 2.0 * 4096.0 * 4096.0 * 4096.0,
        published: "cuBLAS 0.192 ms on H100 (716 TFLOP/s, fast.cu)",
        run: |d, k| product(DType::BF16, [1536, 2816, k], d),
    },
    Job {
        name: "matmul f32",
        real: "2048 x 2048 x 2048",
        factor: 2048.0 * 2048.0 / (256.0 * 256.0),
        depths: [128, 256, 2048],
        bytes: 3.0 * 4.0 * 2048.0 * 2048.0,
        flops: 2.0 * 2048.0 * 2048.0 * 2048.0,
        published: "",
        run: |d, k| product(DType::F32, [256, 256, k], d),
    },
    Job {
        name: "attention forward, causal, d 128, bf16",
        real: "16 heads x 8192",
        // Half of the square, and the diagonal's whole tiles in both.
        factor: 16.0 * 8192.0 * 8192.0 / (512.0 * 512.0),
        depths: [512; 3],
        bytes: 4.0 * 2.0 * 16.0 * 8192.0 * 128.0,
        flops: 2.0 * 16.0 * 8192.0 * 8192.0 * 128.0,
        published: "FlashAttention-2 0.90 ms on H100 (306 TFLOP/s, FA PR #1893)",
        run: |d, tokens| attention(tokens, false, d),
    },
    Job {
        name: "attention backward, the same",
        real: "16 heads x 8192",
        factor: 16.0 * 8192.0 * 8192.0 / (512.0 * 512.0),
        depths: [512; 3],
        bytes: 8.0 * 2.0 * 16.0 * 8192.0 * 128.0,
        flops: 5.0 * 16.0 * 8192.0 * 8192.0 * 128.0,
        published: "FlashAttention-2 4.14 ms on H100 (166 TFLOP/s, FA PR #1893)",
        run: |d, tokens| attention(tokens, true, d),
    },
    Job {
        name: "NF4 dequantise to bf16, nested scales",
        real: "14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: (0.516 + 2.0) * 14336.0 * 4096.0,
        flops: 0.0,
        published: "",
        run: |d, k| four_bit(0, DType::BF16, k, d),
    },
    Job {
        name: "NF4 linear, 1 row",
        real: "1 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: 0.516 * 14336.0 * 4096.0,
        flops: 2.0 * 14336.0 * 4096.0,
        published: "",
        run: |d, k| four_bit(1, DType::BF16, k, d),
    },
    Job {
        name: "NF4 linear, 64 rows",
        real: "64 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: 0.516 * 14336.0 * 4096.0,
        flops: 2.0 * 64.0 * 14336.0 * 4096.0,
        published: "",
        run: |d, k| four_bit(64, DType::BF16, k, d),
    },
    Job {
        name: "RMSNorm bf16",
        real: "4096 x 4096",
        factor: 4096.0 / 64.0,
        depths: [1024, 2048, 4096],
        bytes: 2.0 * 2.0 * 4096.0 * 4096.0,
        flops: 0.0,
        published: "QuACK reaches 3.0 TB/s on H100 (0.022 ms)",
        run: |d, width| {
            let (x, weight) = (normal(&[64, width], DType::BF16, d)?, normal(&[width], DType::F32, d)?);
            forget(d);
            ops::rms_norm(&x, &weight, 1e-5).map(drop)
        },
    },
    Job {
        name: "SwiGLU bf16",
        real: "4096 x 14336",
        factor: 4096.0 / 64.0,
        depths: [512, 1024, 14336],
        bytes: 3.0 * 2.0 * 4096.0 * 14336.0,
        flops: 0.0,
        published: "",
        run: |d, width| {
            let x = normal(&[64, width], DType::BF16, d)?;
            forget(d);
            ops::swiglu(&x, &x).map(drop)
        },
    },
    Job {
        name: "output projection and loss, bf16, with dX",
        real: "4096 rows x 128256 x 4096",
        factor: 4096.0 * 128_256.0 / (128.0 * 33_792.0),
        depths: [128, 256, 4096],
        // The weight twice a chunk of 128 rows; what stays in L2 is not counted.
        bytes: 2.0 * 2.0 * 128_256.0 * 4096.0 * 4096.0 / 128.0,
        flops: 2.0 * 2.0 * 4096.0 * 128_256.0 * 4096.0,
        published: "",
        run: |d, width| {
            let (x, weight) = (normal(&[128, width], DType::BF16, d)?, normal(&[33_792, width], DType::BF16, d)?);
            let targets = Targets::new(&[3; 128], d)?;
            forget(d);
            let term = Term { x: &x, weight: &weight, wants: Wants { x: true, weight: false } };
            ops::linear_cross_entropy(&[term], &targets, 128.0).map(drop)
        },
    },
    Job {
        name: "NF4 linear beside f32, 64 rows",
        real: "64 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [256, 512, 4096],
        bytes: 0.516 * 14336.0 * 4096.0,
        flops: 2.0 * 64.0 * 14336.0 * 4096.0,
        published: "",
        run: |d, k| four_bit(64, DType::F32, k, d),
    },
    Job {
        name: "Q4_K linear, 1 row, in integers",
        real: "1 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: 0.5625 * 14336.0 * 4096.0,
        flops: 2.0 * 14336.0 * 4096.0,
        published: "",
        run: |d, k| ggml_blocks(1, DType::BF16, k, d),
    },
    Job {
        name: "Q4_K linear, 64 rows",
        real: "64 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: 0.5625 * 14336.0 * 4096.0,
        flops: 2.0 * 64.0 * 14336.0 * 4096.0,
        published: "",
        run: |d, k| ggml_blocks(64, DType::BF16, k, d),
    },
    Job {
        name: "Q4_K linear beside f32, 64 rows",
        real: "64 x 14336 x 4096",
        factor: 14336.0 / 2112.0,
        depths: [512, 1024, 4096],
        bytes: 0.5625 * 14336.0 * 4096.0,
        flops: 2.0 * 64.0 * 14336.0 * 4096.0,
        published: "",
        run: |d, k| ggml_blocks(64, DType::F32, k, d),
    },
    Job {
        name: "linear with an adapter of rank 16, bf16",
        real: "4096 x 4096 x 4096",
        factor: 4096.0 * 4096.0 / (1536.0 * 2816.0),
        depths: [128, 256, 4096],
        bytes: 3.0 * 2.0 * 4096.0 * 4096.0,
        flops: 2.0 * 4096.0 * 4096.0 * (4096.0 + 32.0),
        published: "",
        run: |d, k| with_adapter(k, d),
    },
    Job {
        name: "attention of one query, d 128, bf16",
        real: "32 heads, 8 of keys, 8192 keys",
        factor: 8.0,
        depths: [1024, 2048, 8192],
        bytes: 2.0 * 2.0 * 8.0 * 8192.0 * 128.0,
        flops: 4.0 * 32.0 * 8192.0 * 128.0,
        published: "",
        run: |d, keys| decode_attention(keys, d),
    },
    Job {
        name: "RoPE bf16",
        real: "4096 tokens, 32 heads of 128",
        factor: 4096.0 / 64.0,
        depths: [4, 8, 32],
        bytes: 2.0 * 2.0 * 4096.0 * 32.0 * 128.0,
        flops: 0.0,
        published: "",
        run: |d, heads| {
            let positions = Tensor::from_vec((0..64).collect::<Vec<i32>>(), &[64], d)?;
            let (cos, sin) = ops::rope_table(&positions, &[0.5; 64], 1.0)?;
            let x = normal(&[64, heads, 128], DType::BF16, d)?;
            forget(d);
            ops::rope(&x, &cos, &sin).map(drop)
        },
    },
    Job {
        name: "AdamW f32, with the gradient's norm",
        real: "100 million",
        factor: 1.0,
        depths: [1 << 16, 1 << 17, 100_000_000],
        bytes: (7.0 + 1.0) * 4.0 * 1e8,
        flops: 0.0,
        published: "",
        run: |d, len| adamw(len, d),
    },
    Job {
        name: "sampling, top-k and top-p",
        real: "1 x 128256",
        factor: 1.0,
        depths: [8192, 16_384, 128_256],
        bytes: 4.0 * 128_256.0,
        flops: 0.0,
        published: "",
        run: |d, vocabulary| {
            let logits = normal(&[1, vocabulary], DType::F32, d)?;
            forget(d);
            let choice = Choice { temperature: 0.7, top_k: 50, top_p: 0.9, key: Key::derive(&[1]), step: 0 };
            ops::sample(&logits, &choice).map(drop)
        },
    },
];

/// What the roofs are made of.
struct Counts {
    sectors: f64,
    tensor: f64,
    scalar: f64,
    instructions: f64,
    shared: f64,
}

/// Those of a job at its real depth.
fn counts(job: &Job, gpu: &Gpu) -> Result<Counts> {
    let [small, large, real] = job.depths;
    let run = |depth| {
        let device = Device::emulated(EmulatorOptions { arch: gpu.arch, ..EmulatorOptions::default() })?;
        (job.run)(&device, depth)?;
        let c = device.as_cuda()?.take_counters().expect("the virtual GPU counts");
        let counts = [
            c.global_sectors,
            c.tensor_flops,
            c.scalar_flops,
            c.warp_instructions,
            c.shared_requests + c.bank_conflicts,
        ];
        Ok::<_, kinglet::Error>(counts.map(|count| count as f64))
    };
    let first = run(small)?;
    let [sectors, tensor, scalar, instructions, shared] = if small == large {
        first
    } else {
        let steps = (real - small) as f64 / (large - small) as f64;
        let second = run(large)?;
        std::array::from_fn(|i| first[i] + (second[i] - first[i]) * steps)
    };
    Ok(Counts { sectors, tensor, scalar, instructions, shared })
}

fn main() -> Result<()> {
    println!("# Modelled times\n");
    println!(
        "By `cargo run --release --features emulator --example modelled_times`, which says how. No GPU was used.\n"
    );
    println!("| kernel | size | GPU | memory | L2 | tensor | scalar | issue | shared | **modelled** | | published |");
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for job in JOBS {
        for gpu in &GPUS {
            let counts = counts(job, gpu)?;
            let at = |count: fn(&Counts) -> f64| job.factor * count(&counts);
            let cycles = gpu.multiprocessors * gpu.clock;
            let roofs = [
                ("memory", job.bytes / (COPY * gpu.memory)),
                ("L2", at(|c| c.sectors) * 32.0 / gpu.l2),
                ("tensor cores", at(|c| c.tensor) / gpu.tensor),
                ("scalar", at(|c| c.scalar) / gpu.scalar),
                ("issue", at(|c| c.instructions) / (4.0 * cycles)),
                ("shared memory", at(|c| c.shared) / cycles),
            ];
            let (bound, time) = roofs.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("six roofs");
            let columns = roofs.map(|(_, seconds)| format!("{:.3}", seconds * 1e3)).join(" | ");
            let rate = match job.flops {
                0.0 => format!("{:.2} TB/s", job.bytes / time / 1e12),
                flops => format!("{:.0} TFLOP/s", flops / time / 1e12),
            };
            let (name, real) = (job.name, job.real);
            println!(
                "| {name} | {real} | {} | {columns} | **{:.3} ms** ({bound}) | {rate} | {} |",
                gpu.name,
                time * 1e3,
                if gpu.arch == 90 { job.published } else { "" }
            );
        }
    }
    Ok(())
}
