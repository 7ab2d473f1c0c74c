//! What is committed under `ptx/` fits the sources in `kernels/` and keeps the rules of kernel code. Needs neither Python
//! nor a driver; `scripts/build-kernels --check` compiles and assembles everything anew.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// `cuda/NAME`
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The contents of the files in `cuda/FOLDER` whose name ends in one of `suffixes`, by name.
fn files(name: &str, suffixes: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    let chosen = named.filter(|(name, _)| suffixes.iter().any(|suffix| name.ends_with(suffix)));
    chosen.map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}

fn sources() -> BTreeMap<String, Vec<u8>> {
    files("kernels", &[".cu", ".cuh"])
}

/// The PTX of every module, by name.
fn modules() -> BTreeMap<String, String> {
    let inflate = |(name, bytes): (String, Vec<u8>)| {
        let text = String::from_utf8(miniz_oxide::inflate::decompress_to_vec_zlib(&bytes).unwrap()).unwrap();
        (name.strip_suffix(".ptx.z").unwrap().to_string(), text)
    };
    files("ptx", &[".ptx.z"]).into_iter().map(inflate).collect()
}

/// Length and CRC-32, as scripts/build-kernels writes them.
fn stamp(bytes: &[u8]) -> [String; 2] {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    let crc = bytes.iter().fold(!0u32, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)));
    [bytes.len().to_string(), format!("{:08x}", !crc)]
}

/// The lines of `ptx/manifest.txt` that begin with `kind`, as words.
fn manifest(kind: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(folder("ptx/manifest.txt")).unwrap();
    let lines = text.lines().map(|line| line.split(' ').map(String::from).collect::<Vec<_>>());
    lines.filter(|words| words[0] == kind).map(|words| words[1..].to_vec()).collect()
}

/// An instruction with the place of the source that the `.loc` before it names.
struct Instruction<'a> {
    /// `add.rn.f32` as `["add", "rn", "f32"]`.
    opcode: Vec<&'a str>,
    text: &'a str,
    /// File and line, from 1.
    place: (String, usize),
}

/// The instructions of a module.
fn instructions(ptx: &str) -> Vec<Instruction<'_>> {
    let lines = || ptx.lines().map(str::trim);
    let file_names: BTreeMap<&str, String> = lines()
        .filter_map(|line| {
            let mut parts = line.strip_prefix(".file")?.split_whitespace();
            Some((parts.next()?, parts.next()?.trim_matches('"').replace("kernels/", "")))
        })
        .collect();
    let mut place = (String::new(), 0);
    let mut found = Vec::new();
    for line in lines() {
        if let Some(loc) = line.strip_prefix(".loc") {
            let mut parts = loc.split_whitespace();
            let (file, number) = (parts.next().unwrap(), parts.next().unwrap());
            place = (file_names[file].clone(), number.parse().unwrap());
        }
        let unguarded = if line.starts_with('@') { line.split_once(' ').unwrap().1 } else { line };
        let opcode = unguarded.split_whitespace().next().unwrap_or_default().trim_end_matches(';');
        if line.ends_with(';') && !opcode.starts_with(['.', '{', '$']) {
            found.push(Instruction { opcode: opcode.split('.').collect(), text: line, place: place.clone() });
        }
    }
    found
}

fn is_float(word: &str) -> bool {
    ["f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64"].contains(&word)
}

/// Every instruction of every module that breaks a rule, as an error.
fn check(rule: &str, broken: impl Fn(&Instruction<'_>) -> bool) {
    let mut seen = 0;
    for (name, ptx) in modules() {
        for instruction in instructions(&ptx) {
            seen += 1;
            let (file, line) = &instruction.place;
            assert!(!broken(&instruction), "{name}.ptx, {file}:{line}: {}: {rule}", instruction.text);
        }
    }
    assert!(seen > 1000, "only {seen} instructions were read");
}

#[test]
fn no_ptx_is_stale() {
    const FIX: &str = "run scripts/build-kernels and commit cuda/ptx";
    let sources = sources();
    let stamped = |(name, bytes): (&String, &[u8])| [std::slice::from_ref(name), &stamp(bytes)].concat();
    let found: Vec<Vec<String>> = sources.iter().map(|(name, bytes)| stamped((name, bytes))).collect();
    assert_eq!(manifest("source"), found, "{FIX}");
    let modules = modules();
    let compiled: Vec<&str> = sources.keys().filter_map(|name| name.strip_suffix(".cu")).collect();
    assert_eq!(modules.keys().collect::<Vec<_>>(), compiled, "{FIX}");
    let found: Vec<Vec<String>> = modules.iter().map(|(name, ptx)| stamped((name, ptx.as_bytes()))).collect();
    let listed: Vec<Vec<String>> = manifest("ptx").iter().map(|w| [0, 3, 4].map(|i| w[i].clone()).to_vec()).collect();
    assert_eq!(listed, found, "{FIX}");
}

#[test]
fn every_entry_point_is_in_the_census() {
    let census = fs::read_to_string(folder("ptx/census.txt")).unwrap();
    let entries = modules().into_values().flat_map(|ptx| {
        let names = ptx.lines().filter_map(|line| line.strip_prefix(".visible .entry ")).map(String::from);
        names.map(|name| name.trim_end_matches('(').to_string()).collect::<Vec<_>>()
    });
    let mut names: Vec<String> = entries.collect();
    names.sort();
    let unique = names.windows(2).all(|pair| pair[0] != pair[1]);
    assert!(unique && names.len() > 10, "{names:?}");
    let mut counted: Vec<&str> = census.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    counted.dedup();
    assert_eq!(counted, names);
}

#[test]
fn the_ptx_of_all_kernels_stays_under_10_megabytes() {
    let bytes: usize = modules().values().map(String::len).sum();
    assert!(bytes < 10_000_000, "{bytes} bytes of PTX");
}

#[test]
fn versions_and_targets_are_what_old_drivers_load() {
    assert!(manifest("nvrtc").iter().any(|words| words.contains(&"--fmad=false".to_string())));
    for words in manifest("ptx") {
        let (name, target, version) = (&words[0], &words[1], &words[2]);
        let ptx = &modules()[name];
        assert!(ptx.contains(&format!("\n.version {version}\n.target {target}\n")), "{name}: {version} {target}");
        let newest = if target == "sm_90a" { 8.0 } else { 7.8 };
        assert!(version.parse::<f32>().unwrap() <= newest, "{name} needs PTX {version}");
    }
}

#[test]
fn files_are_named_without_their_folders() {
    for (name, ptx) in modules() {
        let files: Vec<&str> = ptx.lines().filter(|line| line.trim_start().starts_with(".file")).collect();
        assert!(!files.is_empty(), "{name} has no line information");
        assert!(files.iter().all(|line| line.contains("\"kernels/")), "{name}: {files:?}");
    }
}

#[test]
fn float_arithmetic_says_how_it_rounds() {
    check("without a rounding mode, ptxas may fuse it with another", |i| {
        let arithmetic = ["add", "sub", "mul", "fma", "div", "rcp", "sqrt"].contains(&i.opcode[0]);
        let rounded = i.opcode.iter().any(|word| ["rn", "rz", "rm", "rp"].contains(word));
        arithmetic && is_float(i.opcode.last().unwrap()) && !rounded
    });
}

#[test]
fn operations_are_fused_only_where_the_source_says_so() {
    let sources: BTreeMap<String, Vec<String>> = sources()
        .into_iter()
        .map(|(name, bytes)| (name, String::from_utf8(bytes).unwrap().lines().map(String::from).collect()))
        .collect();
    check("its line of source has no fma", |i| {
        let (file, line) = &i.place;
        let fused = i.opcode[0] == "fma" || (i.opcode[0] == "mad" && is_float(i.opcode.last().unwrap()));
        fused && !sources[file][line.saturating_sub(1)].contains("fma")
    });
}

#[test]
fn nothing_is_approximate() {
    check("kernels use correctly rounded operations", |i| {
        let flushes = i.opcode.contains(&"ftz") || i.opcode.contains(&"approx");
        flushes || ["ex2", "lg2", "tanh", "rsqrt", "sin", "cos"].contains(&i.opcode[0])
    });
}

#[test]
fn no_float_is_added_atomically() {
    check("the order of the sum would vary from run to run", |i| {
        ["atom", "red"].contains(&i.opcode[0]) && i.opcode.iter().any(|word| is_float(word))
    });
}
