//! The device that a command computes on.

use kinglet_cuda::{CompilerOptions, KernelSource};
use kinglet_tensor::cpu::{Level, Simd};
use kinglet_tensor::{CpuOptions, Device, EmulatorOptions, Error, Result};
use std::path::{Path, PathBuf};

/// What the command line says of the device.
#[derive(Clone, Copy, Default)]
pub(crate) struct Choice<'a> {
    /// `--device`
    pub(crate) name: Option<&'a str>,
    /// `--threads`
    pub(crate) threads: Option<usize>,
    /// `--kernels`
    pub(crate) kernels: Option<&'a Path>,
}

/// More than any machine has; starting them would take minutes.
const MAX_THREADS: usize = 1024;

/// The chosen device, with the SIMD level of KINGLET_SIMD if that is set.
///
/// # Errors
/// When it is not there, or kernels that were given do not fit.
pub(crate) fn open(choice: &Choice<'_>) -> Result<Device> {
    let threads = choice.threads;
    if threads == Some(0) {
        return Err(Error::invalid("--threads must be at least 1"));
    }
    if let Some(n) = threads.filter(|&n| n > MAX_THREADS) {
        return Err(Error::invalid(format!("--threads {n}: at most {MAX_THREADS}")));
    }
    let name = choice.name.unwrap_or("cpu");
    if name == "cpu" {
        return match choice.kernels {
            None => Device::cpu(CpuOptions { threads, simd: simd()?, ..CpuOptions::default() }),
            Some(folder) => {
                let folder = folder.display();
                Err(Error::invalid(format!(
                    "--kernels {folder}: has CUDA kernels: give --device cuda:N or emulated too"
                )))
            }
        };
    }
    let device = match (name, cuda_index(name)) {
        ("emulated", _) => Device::emulated(EmulatorOptions { threads, prints: true, ..EmulatorOptions::default() })?,
        (_, Some(index)) => Device::cuda(index).map_err(|e| e.context(format!("--device {name}")))?,
        _ => return Err(Error::invalid(format!("--device {name}: must be cpu, cuda:N or emulated"))),
    };
    if let Some(folder) = choice.kernels {
        replace_kernels(device.as_cuda()?, folder)?;
    }
    Ok(device)
}

/// The number of `cuda:N`; `cuda` is the first.
fn cuda_index(name: &str) -> Option<u32> {
    match name.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

/// Puts the kernels of a folder into the place of the built-in ones: `X.cu` or `X.ptx` replaces kernels of the module X.
fn replace_kernels(device: &kinglet_cuda::Device, folder: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("--kernels {}", folder.display()), e);
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in folder.read_dir().map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "cu" || e == "ptx") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::invalid(format!("--kernels {}: there is no .cu or .ptx file in it", folder.display())));
    }
    files.sort();
    if let Some(pair) = files.windows(2).find(|pair| pair[0].file_stem() == pair[1].file_stem()) {
        let (one, other) = (pair[0].display(), pair[1].display());
        return Err(Error::invalid(format!("--kernels: {one} and {other} replace the same kernels: take one away")));
    }
    let options = compiler_options();
    for file in files {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&shown, e))?;
        let module = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let is_ptx = file.extension().is_some_and(|e| e == "ptx");
        let source = if is_ptx { KernelSource::Ptx(&text) } else { KernelSource::Cuda(&text) };
        let replaced = device.replace(&module, &shown, source, &options)?;
        crate::console::note(format!("{shown}: replaces {}", replaced.join(" ")));
    }
    Ok(())
}

/// The compiler that KINGLET_NVRTC names (its folder or its file), and the user's cache folder.
fn compiler_options() -> CompilerOptions {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    CompilerOptions {
        nvrtc: std::env::var_os("KINGLET_NVRTC").filter(|path| !path.is_empty()).map(PathBuf::from),
        cache: cache.map(|cache| cache.join("kinglet/kernels")),
    }
}

/// The SIMD level that the environment asks for; `None` is the best.
pub(crate) fn simd() -> Result<Option<Simd>> {
    let Some(name) = std::env::var_os("KINGLET_SIMD").filter(|name| !name.is_empty()) else { return Ok(None) };
    let level = Level::named(&name.to_string_lossy()).map_err(|e| e.context("KINGLET_SIMD"))?;
    Simd::new(level).map(Some)
}
