//! Instructions whose bits the ISA leaves open: what a real GPU gives for them, written by `scripts/gpu-check` and committed
//! under `tests/fixtures/gpu`, beside what the virtual GPU gives.

use super::{read, words};
use kinglet_cuda::{Arg, Device, EmulatorOptions, Launch};
use kinglet_oracle::gpu;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Unary approximations of f32, with the power of two of the largest relative error (or absolute, where `true`) that the ISA allows,
/// doubled: two devices may err to both sides.
const UNARY: [(&str, i32, bool); 7] = [
    ("ex2.approx.f32", -21, false),
    ("lg2.approx.f32", -21, true),
    ("rcp.approx.f32", -22, false),
    ("rsqrt.approx.f32", -21, false),
    ("sqrt.approx.f32", -21, false),
    ("sin.approx.f32", -19, true),
    ("tanh.approx.f32", -10, false),
];

/// One instruction over an array: out[i] = op(x[i]).
fn unary_kernel(op: &str) -> String {
    format!(
        ".version 7.0\n.target sm_80\n.address_size 64\n
        .visible .entry unary(.param .u64 x, .param .u64 out)\n{{
        .reg .f32 %f<3>; .reg .b32 %r<2>; .reg .b64 %rd<6>;
        mov.u32 %r1, %tid.x; mul.wide.u32 %rd1, %r1, 4;
        ld.param.u64 %rd2, [x]; ld.param.u64 %rd3, [out];
        add.s64 %rd4, %rd2, %rd1; add.s64 %rd5, %rd3, %rd1;
        ld.global.f32 %f1, [%rd4]; {op} %f2, %f1; st.global.f32 [%rd5], %f2; ret;\n}}\n"
    )
}

/// One `mma.sync.m16n8k16` of bf16 with sums in f32; each thread's fragments lie side by side.
const MMA: &str = ".version 7.0\n.target sm_80\n.address_size 64\n
    .visible .entry mma(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 out)\n{
    .reg .b32 %a<4>; .reg .b32 %b<2>; .reg .f32 %c<4>; .reg .f32 %d<4>; .reg .b32 %r<2>; .reg .b64 %rd<8>;
    mov.u32 %r1, %tid.x; mul.wide.u32 %rd1, %r1, 16; mul.wide.u32 %rd2, %r1, 8;
    ld.param.u64 %rd3, [a]; ld.param.u64 %rd4, [b]; ld.param.u64 %rd5, [c]; ld.param.u64 %rd6, [out];
    add.s64 %rd3, %rd3, %rd1; add.s64 %rd4, %rd4, %rd2; add.s64 %rd5, %rd5, %rd1; add.s64 %rd6, %rd6, %rd1;
    ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%rd3]; ld.global.v2.b32 {%b0, %b1}, [%rd4];
    ld.global.v4.f32 {%c0, %c1, %c2, %c3}, [%rd5];
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%b0, %b1},
        {%c0, %c1, %c2, %c3};
    st.global.v4.f32 [%rd6], {%d0, %d1, %d2, %d3}; ret;\n}\n";

/// 32 inputs over many magnitudes.
fn inputs() -> Vec<f32> {
    (0..32i32).map(|i| (1.0 + i as f32 / 37.0) * 2f32.powi(i % 9 - 4)).collect()
}

/// Bit patterns from a linear congruence.
fn noise(count: usize, seed: u32) -> Vec<u32> {
    let step = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(*state)
    };
    std::iter::successors(Some(seed), |&s| step(&mut { s })).skip(1).take(count).collect()
}

/// Two bf16 in [1, 2) or [-2, -1) a word.
fn pairs(count: usize, seed: u32) -> Vec<u32> {
    noise(count, seed).into_iter().map(|w| (w & 0x807F_807F) | 0x3F80_3F80).collect()
}

/// What `device` gives for every instruction, as bits.
fn results(device: &Device) -> Map<String, Value> {
    let bits: Vec<u32> = inputs().iter().map(|x| x.to_bits()).collect();
    let x = words(device, &bits);
    let mut all = Map::new();
    for (op, ..) in UNARY {
        device.load(op, &unary_kernel(op)).unwrap();
        let out = device.alloc(128).unwrap();
        let args = [Arg::Pointer(x.address()), Arg::Pointer(out.address())];
        device.launch(op, "unary", &Launch::linear(1, 32), &args).unwrap();
        all.insert(op.into(), json!(read(&out)));
    }
    device.load("mma", MMA).unwrap();
    let c: Vec<u32> = noise(128, 3).iter().map(|w| ((w >> 8) as f32 / 2f32.powi(20) - 8.0).to_bits()).collect();
    let [a, b, c] = [pairs(128, 1), pairs(64, 2), c].map(|values| words(device, &values));
    let out = device.alloc(512).unwrap();
    let args = [&a, &b, &c, &out].map(|buffer| Arg::Pointer(buffer.address()));
    device.launch("mma", "mma", &Launch::linear(1, 32), &args).unwrap();
    all.insert("mma.m16n8k16.f32.bf16".into(), json!(read(&out)));
    all
}

#[test]
#[ignore = "for the device that KINGLET_GPU names; writes the file that KINGLET_GOLDEN names"]
fn write() {
    let gpu = gpu().expect("KINGLET_GPU names the device");
    let device = gpu.as_cuda().unwrap();
    let file = std::env::var_os("KINGLET_GOLDEN").expect("KINGLET_GOLDEN names a file");
    let content = json!({"device": device.info().name, "results": results(device)});
    std::fs::write(file, serde_json::to_string(&content).unwrap()).unwrap();
}

/// The largest error of `got` beside `want`, in units of what is allowed.
fn distance(name: &str, got: &Value, want: &Value) -> f64 {
    let floats = |v: &Value| -> Vec<f64> {
        v.as_array().unwrap().iter().map(|b| f64::from(f32::from_bits(b.as_u64().unwrap() as u32))).collect()
    };
    let (bound, absolute) = match UNARY.iter().find(|(op, ..)| *op == name) {
        Some(&(_, power, absolute)) => (2f64.powi(power), absolute),
        // Sixteen products below 4 and a sum: a tensor core may drop bits below the largest term's last.
        None => (18.0 * 4.0 * 2f64.powi(-22), true),
    };
    let error = |(g, w): (f64, f64)| (g - w).abs() / if absolute { bound } else { bound * w.abs() };
    floats(got).into_iter().zip(floats(want)).map(error).fold(0.0, f64::max)
}

#[test]
fn the_virtual_gpu_is_as_near_to_real_ones_as_the_isa_says() {
    let emulated = results(&Device::emulated(EmulatorOptions::default()).unwrap());
    let x = inputs();
    let exact: Map<String, Value> = UNARY
        .iter()
        .map(|(op, ..)| {
            let of = |x: f64| match op.split('.').next().unwrap() {
                "ex2" => x.exp2(),
                "lg2" => x.log2(),
                "rcp" => 1.0 / x,
                "rsqrt" => 1.0 / x.sqrt(),
                "sqrt" => x.sqrt(),
                "sin" => x.sin(),
                _ => x.tanh(),
            };
            let bits = x.iter().map(|&x| (of(f64::from(x)) as f32).to_bits()).collect::<Vec<_>>();
            ((*op).to_owned(), json!(bits))
        })
        .collect();
    let mut references = vec![("exact values".to_owned(), exact)];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpu");
    for entry in folder.read_dir().into_iter().flatten() {
        let golden: Value = serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap();
        let device = golden["device"].as_str().unwrap().to_owned();
        references.push((device, golden["results"].as_object().unwrap().clone()));
    }
    for (device, results) in references {
        for (name, want) in results {
            let distance = distance(&name, &emulated[&name], &want);
            assert!(distance <= 1.0, "{name}: {distance} times what is allowed beside {device}");
        }
    }
}
