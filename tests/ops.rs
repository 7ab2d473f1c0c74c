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
    // Adding what drops nothing.
    ("accumulate", "dropout"),
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

/// Whoever uses the library can replace and launch every kernel: each is public, has the names that follow from its own,
/// and is listed in its crate's `kernels`, which the compiler keeps true.
#[test]
fn every_kernel_is_public() {
    let mut names = BTreeSet::new();
    for crate_name in crates() {
        let sources = sources(&format!("{crate_name}/src"));
        let of = |file: &str| sources.iter().find(|(path, _)| path.ends_with(format!("src/{file}.rs")));
        let listed: BTreeSet<&str> = of("kernels").map_or_else(BTreeSet::new, |(_, list)| words(list).collect());
        for (path, declaration) in sources.iter().flat_map(|(path, s)| declarations(s).map(move |d| (path, d))) {
            let [name] = &names_after(declaration, "kernel!(")[..] else { panic!("{declaration} has one name") };
            let (kernel, args) = (name.to_uppercase(), format!("{}Args", camel_case(name)));
            let declared = format!("kernel!(pub {kernel} = \"{name}\", {args}, ");
            assert!(declaration.starts_with(&declared), "{}: {declaration}: not {declared}", path.display());
            assert!(listed.contains(&*kernel), "{crate_name}/src/kernels.rs lacks {kernel}");
            assert!(listed.contains(&*args), "{crate_name}/src/kernels.rs lacks {args}");
            assert!(names.insert(name.clone()), "two kernels are called {name}: the door cannot tell them apart");
        }
        let public = of("lib").is_some_and(|(_, lib)| lib.contains("pub mod kernels;"));
        assert!(listed.is_empty() || public, "{crate_name}: kernels.rs is not public");
    }
    assert!(names.contains("matmul") && names.contains("linear") && names.contains("adamw"), "only {names:?}");
}

/// The folders of the repository that are crates.
fn crates() -> Vec<String> {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).read_dir().expect("the repository");
    let crates =
        folders.map(|entry| entry.expect("a readable folder")).filter(|e| e.path().join("src/lib.rs").is_file());
    crates.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Every `kernel!(..` of a source file that is no comment, up to its end.
fn declarations(source: &str) -> impl Iterator<Item = &str> {
    let commented =
        |at: usize| source[..at].rsplit('\n').next().is_some_and(|line| line.trim_start().starts_with("//"));
    let starts = source.match_indices("kernel!(").map(|(at, _)| at).filter(move |&at| !commented(at));
    starts.map(|at| source[at..].split(");").next().expect("split gives one part"))
}

fn words(source: &str) -> impl Iterator<Item = &str> {
    source.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// `rms_norm` as `RmsNorm`.
fn camel_case(name: &str) -> String {
    let capital = |word: &str| word.get(..1).unwrap_or_default().to_uppercase() + word.get(1..).unwrap_or_default();
    name.split('_').map(capital).collect()
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
