//! How many instructions a second the virtual GPU executes: an elementwise kernel and a tiled matrix product.

use std::sync::Arc;
use std::time::Instant;

use kinglet_emulator::gpu::{Checks, Fill, Gpu, GpuOptions, Launch};
use kinglet_emulator::program::Program;

const PTX: &str = include_str!("kernels.ptx");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let program = Arc::new(Program::parse(PTX)?);
    for (name, checks) in [("all checks", Checks::default()), ("no checks", Checks::none())] {
        let gpu = Gpu::new(GpuOptions { target: 80, checks, ..GpuOptions::default() })?;
        let module = gpu.load(program.clone())?;
        let n = 1u32 << 20;
        let buffers = [gpu.alloc(4 << 20)?, gpu.alloc(4 << 20)?, gpu.alloc(4 << 20)?];
        for buffer in &buffers[..2] {
            gpu.fill(*buffer, Fill::U32(1.5f32.to_bits()), n.into())?;
        }
        let params = |pointers: &[u64], n: u32| {
            pointers.iter().flat_map(|pointer| pointer.to_le_bytes()).chain(n.to_le_bytes()).collect::<Vec<u8>>()
        };
        let elementwise = (Launch::linear(512, 256), params(&buffers[..2], n));
        let size = 256;
        let blocks = size / 64;
        let launch = Launch { grid: [blocks, blocks, 1], ..Launch::linear(1, 256) };
        for (kernel, (launch, params)) in [("elementwise", elementwise), ("gemm", (launch, params(&buffers, size)))] {
            let (mut seconds, mut instructions) = (f64::INFINITY, 0.0);
            for _ in 0..5 {
                let start = Instant::now();
                let report = gpu.launch(&module, kernel, launch, &params)?;
                seconds = seconds.min(start.elapsed().as_secs_f64());
                instructions = report.counters.lane_instructions as f64 / 1e6;
            }
            let rate = instructions / seconds;
            println!("{kernel}, {name}: {rate:.0} million lane instructions a second ({instructions:.1} in all)");
        }
    }
    Ok(())
}
