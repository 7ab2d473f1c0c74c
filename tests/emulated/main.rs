//! Every op that has CUDA kernels against the oracle, on the virtual GPU: the same truth as for the CPU, and the CPU's bits,
//! in whatever order threads run. The quick tests leave out most layouts of the smaller dtypes; `cargo test --release --test
//! emulated -- --ignored` runs everything. A real GPU that `KINGLET_GPU` names (cuda:0) is held to the same.

#![allow(clippy::unwrap_used)]

mod attention;
mod errors;
mod four_bit;
mod fused;
mod gemm;
mod gguf;
mod matvec;
mod memory;
mod models;
mod sample;
#[path = "../support/mod.rs"]
mod support;
mod training;
mod values;

use kinglet_oracle::{Checker, Scope, cases, emulated, gpu, simd};
use std::collections::BTreeSet;
use std::path::Path;

fn check(file: &str, scope: Scope) {
    let instances = cases::of(file);
    assert!(!instances.is_empty(), "{file} is no case");
    let mut devices = match scope {
        Scope::Quick => vec![emulated(80, 1)],
        Scope::Full => vec![emulated(80, 1), emulated(90, 2)],
    };
    devices.extend(gpu());
    let checker = Checker::new(simd()).map(|c| c.with_cuda(devices).with_scope(scope));
    let report = checker.and_then(|c| c.check_all(&instances)).unwrap_or_else(|e| panic!("{e}"));
    println!("{file}: {report:?}");
}

/// The case files whose ops run on CUDA devices, with the modules of `cuda/kernels` that each is there for.
macro_rules! tests {
    ($($file:ident: $($module:literal),*;)*) => {
        const MODULES: &[&str] = &[$($($module,)*)*];

        mod quick {
            use super::*;
            $(
                #[test]
                fn $file() {
                    check(stringify!($file), Scope::Quick);
                }
            )*
        }

        mod full {
            use super::*;
            $(
                #[test]
                #[ignore = "the whole sweep is a command of its own"]
                fn $file() {
                    check(stringify!($file), Scope::Full);
                }
            )*
        }
    };
}
tests! {
    adamw: "adamw", "grad_norm";
    affine: "affine";
    attention: "attention", "attention_cores", "attention_cores_backward", "attention_decode";
    binary: "binary";
    cat: "cat";
    compare: "compare";
    copy: "copy";
    cross_entropy: "cross_entropy";
    dropout: "dropout";
    embedding: "embedding";
    gather: "gather";
    layer_norm: "layer_norm";
    linear: "gguf", "matmul_4bit", "matmul_gguf";
    linear_cross_entropy: "linear_cross_entropy";
    matmul: "matmul";
    random: "random";
    reduce: "reduce";
    rms_norm: "rms_norm";
    rope: "rope";
    sample: "sample";
    scale: "scale";
    softmax: "softmax";
    swiglu: "swiglu";
    unary: "unary";
    views:;
}

/// A kernel without a case fails here.
#[test]
fn every_kernel_is_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/kernels");
    let files = folder.read_dir().expect("cuda/kernels").map(|f| f.expect("a readable folder").path());
    let sources: BTreeSet<String> = files
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .map(|path| path.file_stem().expect("a file name").to_string_lossy().into_owned())
        .collect();
    let run = MODULES.iter().chain(&four_bit::MODULES).map(|m| (*m).to_owned()).collect();
    assert_eq!(sources, run, "cuda/kernels, and what is run here");
}
