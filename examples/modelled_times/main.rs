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
//! (one a cycle and multiprocessor). It knows no latency, no tail of the last wave, no launch, and takes kernels that follow each
//! other in a row for one: in these a real GPU takes longer. And it counts instructions of PTX, of which the assembler drops a
//! quarter to a third (moves, address arithmetic), and sectors as often as they are asked for, as if there were no L1: where
//! `issue` is the roof, or `L2` that of a kernel that reads its rows several times, a real GPU is faster.
//!
//! Another kernel is another [`Job`] in the list of its kind; what it is to reach, and why it does not, is in `targets`.

mod attention;
mod elements;
mod job;
mod products;
mod rows;
mod targets;

use job::Job;
use kinglet::tensor::{Device, EmulatorOptions, Result};
use targets::{Judged, Verdict};

/// What is modelled.
const JOBS: [&[Job]; 4] = [products::JOBS, attention::JOBS, rows::JOBS, elements::JOBS];

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
    println!(
        "\"published\" is somebody else's kernel on that GPU, with the source: as they have it, or scaled to the size of the row by \
         bytes, elements or operations where it says so. \"none found\": no figure for that GPU and a shape that can be compared.\n"
    );
    println!(
        "\"target\": 85% of the bandwidth of copies for what is bound by memory (up to 100 operations a byte), 60% of cuBLAS's speed on \
         Hopper and 90% elsewhere, the speed of FlashAttention-2, where a figure of theirs was found. Below the table is why kernels \
         miss theirs.\n"
    );
    println!(
        "| kernel | size | GPU | memory | L2 | tensor | scalar | issue | shared | **modelled** | | target | published |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut judged = Vec::new();
    for job in JOBS.into_iter().flatten() {
        for (number, (gpu, published)) in GPUS.iter().zip(job.published).enumerate() {
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
            let verdict = Verdict::of(job, number, time, roofs[0].1);
            println!(
                "| {name} | {real} | {} | {columns} | **{:.3} ms** ({bound}) | {rate} | {} | {published} |",
                gpu.name,
                time * 1e3,
                Verdict::cell(verdict.as_ref())
            );
            judged.extend(verdict.map(|verdict| Judged { name, gpu: gpu.name, roof: bound, verdict }));
        }
    }
    print!("{}", targets::list(&judged, GPUS.iter().map(|gpu| gpu.name))?);
    Ok(())
}
