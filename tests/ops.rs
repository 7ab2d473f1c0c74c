//! Every op against the oracle, at the SIMD level that `KINGLET_SIMD` names: portable, avx2 or avx512; by default the
//! machine's best.

use kinglet_oracle::{Checker, cases, for_each_case, simd};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn check(file: &str) {
    let instances = cases::of(file);
    assert!(!instances.is_empty(), "{file} has a case without instances");
    let report = Checker::new(simd()).and_then(|c| c.check_all(&instances)).unwrap_or_else(|e| panic!("{e}"));
    println!("{file}: {report:?}");
}

macro_rules! tests {
    ($($file:ident: $($case:ident),+;)*) => {$(
        #[test]
        fn $file() {
            check(stringify!($file));
        }
    )*};
}
for_each_case!(tests);

/// Every folder that declares ops: files named like their cases, kernels and records.
const FOLDERS: [&str; 4] = ["tensor/src/ops", "autograd/src/ops", "quant/src", "optim/src"];

/// Kernels and records that a case of another name runs and checks.
const RUN_BY: [(&str, &str); 17] = [
    ("add", "binary"),
    ("sub", "binary"),
    ("mul", "binary"),
    ("div", "binary"),
    ("copy", "contiguous"),
    ("argmax", "reduce"),
    ("extreme", "reduce"),
    // Zeroes what `add_scaled` adds to.
    ("fill", "add_scaled"),
    // The adapter's part of dx, when there is dropout.
    ("accumulate", "linear"),
    ("broadcast_to", "views"),
    ("flip", "views"),
    ("narrow", "views"),
    ("permute", "views"),
    ("reshape", "views"),
    ("squeeze", "views"),
    ("transpose", "views"),
    ("unsqueeze", "views"),
];

/// Kernels without a case: a truth over real numbers says nothing about codes. tests/quant compares their results bit
/// for bit with those of bitsandbytes and gguf.
const CODES: [&str; 4] = ["quantize_4bit", "quantize_absmax", "dequantize_4bit", "dequantize_gguf"];

/// An op without a case fails here: there is no other registry.
#[test]
fn every_op_has_a_case() {
    let mut declared = BTreeSet::new();
    for (path, source) in FOLDERS.into_iter().flat_map(sources) {
        let stem = path.file_stem().expect("a file name").to_string_lossy().into_owned();
        if path.parent().is_some_and(|folder| folder.ends_with("ops")) && stem != "mod" {
            assert!(cases::FILES.contains(&&*stem), "no case in tests/oracle/src/cases for {}", path.display());
        }
        let names = names_after(&source, "kernel!(").into_iter().chain(names_after(&source, ".record(\""));
        // A case checks the gradient with the value.
        declared.extend(names.map(|name| name.split("_backward").next().unwrap_or(&name).to_owned()));
    }
    let elsewhere: BTreeSet<&str> = RUN_BY.into_iter().map(|(name, _)| name).chain(CODES).collect();
    let missing: Vec<_> =
        declared.iter().filter(|name| !cases::NAMES.contains(&&***name) && !elsewhere.contains(&***name)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
    let stale: Vec<_> = elsewhere.iter().filter(|name| !declared.contains(**name)).collect();
    assert!(stale.is_empty(), "nothing declares {stale:?}");
    let unknown: Vec<_> = RUN_BY.iter().filter(|(_, case)| !cases::NAMES.contains(case)).collect();
    assert!(unknown.is_empty(), "no such case: {unknown:?}");
}

/// All Rust files below a folder of the repository, which must be there.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = folder.read_dir().unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for path in entries.map(|entry| entry.expect("a readable folder").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                files.push((path, source));
            }
        }
    }
    assert!(!files.is_empty(), "{folder} declares ops");
    files
}

/// The first string literal after each `start`, which may begin it.
fn names_after(source: &str, start: &str) -> Vec<String> {
    let name = |rest: &str| {
        let rest = if start.ends_with('"') { rest } else { rest.split_once('"')?.1 };
        rest.split_once('"').map(|(name, _)| name.to_owned())
    };
    source.split(start).skip(1).map(|rest| name(rest).expect("a name in quotes")).collect()
}
