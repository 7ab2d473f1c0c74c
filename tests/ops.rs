//! Every op against the oracle, at the SIMD level that `KINGLET_SIMD` names: portable, avx2 or avx512; by default the
//! machine's best.

use kinglet_oracle::{Checker, cases, for_each_case, simd};
use std::collections::BTreeSet;
use std::path::Path;

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

/// An op without a case fails here: there is no other registry.
#[test]
fn every_op_has_a_case() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut ops = BTreeSet::new();
    for folder in ["tensor/src/ops", "autograd/src/ops", "quant/src/ops", "optim/src/ops", "cuda/kernels"] {
        let Ok(entries) = root.join(folder).read_dir() else { continue };
        for entry in entries {
            let path = entry.expect("a readable folder").path();
            let stem = path.file_stem().expect("a file name").to_string_lossy().into_owned();
            if stem != "mod" && path.extension().is_some_and(|e| e == "rs" || e == "cu") {
                ops.insert(stem);
            }
        }
    }
    assert!(ops.contains("copy"), "the folders are where they were");
    let missing: Vec<_> = ops.iter().filter(|op| !cases::FILES.contains(&op.as_str())).collect();
    assert!(missing.is_empty(), "no case in tests/oracle/src/cases for {missing:?}");
}
