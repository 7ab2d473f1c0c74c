//! Runs a kernel from PTX text on the virtual GPU: `cargo run --release -p kinglet-emulator --example run_ptx`.

use std::sync::Arc;

use kinglet_emulator::gpu::{Gpu, GpuOptions, Launch};
use kinglet_emulator::program::Program;

/// `c[i] = a[i] + b[i]` for `i < n`.
const VECTOR_ADD: &str = r#"
.version 8.0
.target sm_80
.address_size 64

.visible .entry vector_add(
    .param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<8>;

    ld.param.u64 %rd1, [a];
    ld.param.u64 %rd2, [b];
    ld.param.u64 %rd3, [c];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    mul.wide.u32 %rd4, %r5, 4;
    add.s64 %rd5, %rd1, %rd4;
    add.s64 %rd6, %rd2, %rd4;
    add.s64 %rd7, %rd3, %rd4;
    ld.global.f32 %f1, [%rd5];
    ld.global.f32 %f2, [%rd6];
    add.rn.f32 %f3, %f1, %f2;
    st.global.f32 [%rd7], %f3;
DONE:
    ret;
}
"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let n = 1000u32;
    let gpu = Gpu::new(GpuOptions { target: 80, ..GpuOptions::default() })?;
    let module = gpu.load(Arc::new(Program::parse(VECTOR_ADD)?))?;

    let bytes = |value: fn(u32) -> f32| (0..n).flat_map(|i| value(i).to_le_bytes()).collect::<Vec<u8>>();
    let [a, b, c] = [gpu.alloc(4 * u64::from(n))?, gpu.alloc(4 * u64::from(n))?, gpu.alloc(4 * u64::from(n))?];
    gpu.write(a, &bytes(|i| i as f32))?;
    gpu.write(b, &bytes(|i| 0.5 * i as f32))?;

    let mut params = Vec::new();
    for pointer in [a, b, c] {
        params.extend(pointer.to_le_bytes());
    }
    params.extend(n.to_le_bytes());
    let report = gpu.launch(&module, "vector_add", Launch::linear(n.div_ceil(128), 128), &params)?;

    let mut sums = vec![0; 4 * n as usize];
    gpu.read(c, &mut sums)?;
    let last = f32::from_le_bytes(*sums.as_chunks().0.last().ok_or("no sums")?);
    println!("c[{}] = {last}", n - 1);
    println!("{:#?}", report.counters);
    println!("sectors a request: {:.2}", report.counters.sectors_per_request());

    // The same with a size that lies: the virtual GPU names the thread, the line and what lies there.
    params.truncate(24);
    params.extend((n + 1).to_le_bytes());
    if let Err(fault) = gpu.launch(&module, "vector_add", Launch::linear(n.div_ceil(128), 128), &params) {
        println!("\nwith n = {}: {fault}", n + 1);
    }
    Ok(())
}
