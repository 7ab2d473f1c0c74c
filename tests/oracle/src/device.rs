//! The devices of tests and benchmarks: only here, and in the binary, is the environment read.

use kinglet_cuda::{CompilerOptions, KernelSource};
use kinglet_tensor::cpu::{Level, Simd};
use kinglet_tensor::{CpuOptions, Device, EmulatorOptions};
use std::path::Path;

/// The SIMD level that `KINGLET_SIMD` names ([`Level::named`]); the machine's best where it is not set.
///
/// # Panics
/// When it names no level, or one that this machine has not: a test must not pass at another level than was asked for.
#[must_use]
pub fn simd() -> Simd {
    let Ok(name) = std::env::var("KINGLET_SIMD") else { return Simd::detect() };
    let level = Level::named(&name).expect("KINGLET_SIMD");
    Simd::new(level).expect("KINGLET_SIMD names a level that this machine has")
}

/// A CPU device at the level of [`simd`] with `threads` threads, on which writes outside of outputs are found.
///
/// # Panics
/// As [`simd`], and when threads cannot be started.
#[must_use]
pub fn device(threads: usize) -> Device {
    let options = CpuOptions { threads: Some(threads), simd: Some(simd()), guard: true, ..CpuOptions::default() };
    Device::cpu(options).expect("threads can be started")
}

/// A virtual GPU of architecture `arch` that runs threads in the order of `seed`, with the kernels of the folder that
/// `KINGLET_KERNELS` names, if it is set, in the place of the built-in ones: `X.ptx` replaces those of the module X.
///
/// # Panics
/// When this build has none, or the kernels do not fit.
#[must_use]
pub fn emulated(arch: u32, seed: u64) -> Device {
    let options = EmulatorOptions { arch, seed, ..EmulatorOptions::default() };
    let device = Device::emulated(options).expect("the oracle is built with the virtual GPU");
    if let Some(folder) = std::env::var_os("KINGLET_KERNELS") {
        replace_kernels(&device, Path::new(&folder));
    }
    device
}

fn replace_kernels(device: &Device, folder: &Path) {
    let cuda = device.as_cuda().expect("a virtual GPU");
    let files = folder.read_dir().unwrap_or_else(|e| panic!("KINGLET_KERNELS {}: {e}", folder.display()));
    let paths: Vec<_> = files.map(|file| file.expect("a readable folder").path()).collect();
    // A verdict on no kernel at all would look like one on the built-in ones.
    assert!(!paths.is_empty(), "KINGLET_KERNELS {}: there is no .ptx file in it", folder.display());
    for path in paths {
        let shown = path.display().to_string();
        let is_ptx = path.extension().is_some_and(|extension| extension == "ptx");
        assert!(
            is_ptx,
            "{shown}: KINGLET_KERNELS takes .ptx files; scripts/build-kernels --to makes them of .cu files"
        );
        let module = path.file_stem().expect("a file").to_string_lossy().into_owned();
        let ptx = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{shown}: {e}"));
        let replaced = cuda.replace(&module, &shown, KernelSource::Ptx(&ptx), &CompilerOptions::default());
        replaced.unwrap_or_else(|e| panic!("{shown}: {e}"));
    }
}

/// The device that `KINGLET_GPU` names, or a virtual GPU: see [`gpu`] and [`emulated`].
///
/// # Panics
/// As these.
#[must_use]
pub fn gpu_or_emulated(arch: u32, seed: u64) -> Device {
    gpu().unwrap_or_else(|| emulated(arch, seed))
}

/// The device that `KINGLET_GPU` names (cuda:N, or emulated), for tests that a real GPU is to run too; none where it is not
/// set.
///
/// # Panics
/// When it names no device, or one that is not there: a test must not pass elsewhere than was asked for.
#[must_use]
pub fn gpu() -> Option<Device> {
    let name = std::env::var("KINGLET_GPU").ok()?;
    if name == "emulated" {
        return Some(emulated(90, 0));
    }
    let index = name.strip_prefix("cuda:").and_then(|index| index.parse().ok());
    let index = index.unwrap_or_else(|| panic!("KINGLET_GPU is {name}, not cuda:N or emulated"));
    Some(Device::cuda(index).unwrap_or_else(|e| panic!("KINGLET_GPU={name}: {e}")))
}
