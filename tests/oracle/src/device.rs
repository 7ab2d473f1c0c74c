//! The devices of tests and benchmarks: only here, and in the binary, is the environment read.

use kinglet_tensor::cpu::{Level, Simd};
use kinglet_tensor::{CpuOptions, Device, EmulatorOptions};

/// The SIMD level that `KINGLET_SIMD` names (portable, avx2 or avx512); the machine's best where it is not set.
///
/// # Panics
/// When it names no level, or one that this machine has not: a test must not pass at another level than was asked for.
#[must_use]
pub fn simd() -> Simd {
    let level = match std::env::var("KINGLET_SIMD").as_deref() {
        Err(_) => return Simd::detect(),
        Ok("portable") => Level::Portable,
        Ok("avx2") => Level::Avx2,
        Ok("avx512") => Level::Avx512,
        Ok(other) => panic!("KINGLET_SIMD is {other}, not portable, avx2 or avx512"),
    };
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

/// A virtual GPU of architecture `arch` that runs threads in the order of `seed`.
///
/// # Panics
/// When this build has none.
#[must_use]
pub fn emulated(arch: u32, seed: u64) -> Device {
    let options = EmulatorOptions { arch, seed, ..EmulatorOptions::default() };
    Device::emulated(options).expect("the oracle is built with the virtual GPU")
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
