//! Times of ops and of a QLoRA step on a GPU, the twin of `benches/pytorch/gpu.py`: the same shapes, the same names, one JSON object.
//!
//! ```sh
//! cargo run --release --features cuda,emulator --example gpu_times -- [--device cuda:0|emulated] [--small] [--shapes FILE]
//! ```
//!
//! An op's time is that between two events of the device around as many launches as fill 5 ms; the median of rounds, in each of which
//! every op has its turn. Where what an op moves is less than twice the GPU's L2, as many copies of it take turns as exceed that: no launch
//! finds its operands in L2, as none does in a model. The step is wall time from a synchronised device to a synchronised device: forward, backward, clipping, AdamW;
//! NF4 with nested scales, LoRA on every linear layer of the blocks, bf16, checkpointing. With `--device emulated --small` the times are
//! those of the virtual GPU and mean nothing, but the path is known to run. It has not run on a real GPU yet.
//!
//! To time another op: a function that makes its [`Job`](job::Job), a row of [`OPS`], its sizes in both files of `benches/shapes`, and
//! its twin in `benches/pytorch/gpu_ops.py`, if it has one.

mod attention;
mod elements;
mod job;
mod products;
mod rows;
mod step;

use job::{Job, Op, Timed, times};
use kinglet::tensor::EmulatorOptions;
use kinglet::{Device, Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use step::{Step, step};

const fn beside(name: &'static str, job: fn(&[usize], &Device) -> Result<Job>) -> Op {
    Op { name, twin: true, job }
}

const fn alone(name: &'static str, job: fn(&[usize], &Device) -> Result<Job>) -> Op {
    Op { name, twin: false, job }
}

/// What is timed, beside PyTorch or alone. The first is what memory-bound ops are measured by (scripts/gpu-report).
const OPS: &[Op] = &[
    beside("copy f32", elements::copy),
    beside("cast to f32", elements::cast),
    beside("add", elements::add),
    beside("multiply", elements::multiply),
    beside("less than", elements::less),
    beside("where", elements::choose),
    beside("concatenate", elements::cat),
    beside("times a number", elements::affine),
    beside("times a tensor of one element", elements::scale),
    beside("SiLU", elements::silu),
    beside("dropout", elements::dropout),
    alone("dropout added", elements::add_dropout),
    beside("normal f32", elements::random),
    beside("AdamW f32", elements::adamw),
    beside("gradient norm f32", elements::grad_norm),
    beside("sum of rows", rows::sum),
    beside("sum of columns", rows::sum_of_columns),
    beside("softmax", rows::softmax),
    beside("softmax backward", rows::softmax_backward),
    beside("cross entropy", rows::cross_entropy),
    beside("cross entropy backward", rows::cross_entropy_backward),
    beside("RMSNorm", rows::rms_norm),
    beside("RMSNorm backward", rows::rms_norm_backward),
    beside("add and RMSNorm", rows::add_rms_norm),
    beside("LayerNorm", rows::layer_norm),
    beside("LayerNorm backward", rows::layer_norm_backward),
    beside("SwiGLU", rows::swiglu),
    beside("SwiGLU backward", rows::swiglu_backward),
    beside("RoPE", rows::rope),
    beside("RoPE backward", rows::rope_backward),
    beside("embedding", rows::embedding),
    beside("embedding backward f32", rows::embedding_backward),
    beside("gather", rows::gather),
    beside("sample f32", rows::sample),
    beside("matmul", products::matmul),
    beside("LoRA linear", products::lora),
    beside("LoRA linear both ways", products::lora_both_ways),
    beside("projection and loss with dX", products::loss),
    beside("NF4 quantise", products::quantise),
    beside("NF4 dequantise", products::dequantise),
    beside("NF4 linear", products::nf4),
    beside("NF4 linear backward", products::nf4_backward),
    alone("Q4_K dequantise", products::dequantise_q4_k),
    alone("Q4_K linear", products::q4_k),
    alone("Q4_K linear backward", products::q4_k_backward),
    alone("Q8_0 linear", products::q8_0),
    alone("Q8_0 linear backward", products::q8_0_backward),
    beside("attention", attention::forward),
    beside("attention backward", attention::backward),
    beside("packed attention", attention::packed_forward),
    beside("packed attention backward", attention::packed_backward),
    beside("window attention", attention::window_forward),
    beside("window attention backward", attention::window_backward),
    beside("decode attention", attention::decode),
];

/// A file of `benches/shapes`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shapes {
    /// Lists of sizes by op, in the order that the op's function names.
    ops: BTreeMap<String, Vec<Vec<usize>>>,
    step: Step,
    /// As in config.json.
    model: Map<String, Value>,
}

/// The jobs of all ops. All their data is on the device at once: about 20 GiB for `gpu.json`.
fn jobs(sizes: &BTreeMap<String, Vec<Vec<usize>>>, device: &Device) -> Result<Vec<Timed>> {
    if let Some(name) = sizes.keys().find(|name| OPS.iter().all(|op| op.name != **name)) {
        return Err(Error::invalid(format!("sizes of {name:?}, which is no op")));
    }
    let mut jobs = Vec::new();
    for op in OPS {
        let lists = sizes.get(op.name).ok_or_else(|| Error::invalid(format!("no sizes of {:?}", op.name)))?;
        for list in lists {
            jobs.push(Timed::new(op, list, device)?);
        }
    }
    Ok(jobs)
}

struct Options {
    device: Device,
    shapes: PathBuf,
    rounds: usize,
}

fn options() -> Result<Options> {
    let folder = Path::new("benches/shapes");
    let (mut name, mut shapes, mut rounds) = ("cuda:0".to_owned(), folder.join("gpu.json"), 9);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Error::invalid(format!("{arg} needs a value")));
        match arg.as_str() {
            "--device" => name = value()?,
            "--shapes" => shapes = value()?.into(),
            "--small" => (shapes, rounds) = (folder.join("small.json"), 1),
            other => return Err(Error::invalid(format!("unknown option {other}"))),
        }
    }
    let device = match name.strip_prefix("cuda:").map(str::parse) {
        Some(Ok(index)) => Device::cuda(index)?,
        None if name == "emulated" => Device::emulated(EmulatorOptions::default())?,
        _ => return Err(Error::invalid(format!("{name} is neither cuda:N nor emulated"))),
    };
    Ok(Options { device, shapes, rounds })
}

fn main() -> Result<()> {
    let Options { device, shapes, rounds } = options()?;
    let text = std::fs::read_to_string(&shapes).map_err(|e| Error::io(shapes.display().to_string(), e))?;
    let invalid = |e: serde_json::Error| Error::invalid(format!("{}: {e}", shapes.display()));
    let shapes: Shapes = serde_json::from_str(&text).map_err(invalid)?;
    let ops = times(&mut jobs(&shapes.ops, &device)?, rounds, &device)?;
    let step = step(&shapes.step, &shapes.model, &device)?;
    let info = device.as_cuda()?.info();
    let result = json!({ "what": "kinglet", "device": info.name, "arch": info.arch, "ops": ops, "qlora_step": step });
    println!("{result}");
    Ok(())
}
