//! From CUDA source to PTX, with results kept on disk.

use crate::driver::nvrtc::Nvrtc;
use crate::ptx::{self, HEADERS};
use crate::replace::CompilerOptions;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Compiles `source` for a device of `arch`.
pub(crate) fn to_ptx(file: &str, source: &str, arch: u32, options: &CompilerOptions) -> Result<String> {
    // What a PTX for sm_90a has beside sm_90's, only the H100's generation runs.
    let target = if arch == 90 { "90a".to_owned() } else { arch.to_string() };
    let mut flags = vec![format!("--gpu-architecture=compute_{target}")];
    flags.extend(ptx::options().map(str::to_owned));
    let nvrtc = Nvrtc::open(options.nvrtc.as_deref())?;
    let Some(folder) = &options.cache else { return nvrtc.compile(file, source, HEADERS, &flags) };
    let kept = folder.join(format!("{:016x}.ptx", key(file, source, nvrtc.version(), &flags)));
    if let Ok(ptx) = std::fs::read_to_string(&kept) {
        return Ok(ptx);
    }
    let ptx = nvrtc.compile(file, source, HEADERS, &flags)?;
    keep(folder, &kept, &ptx)?;
    Ok(ptx)
}

/// Writes a result so that another process sees all of it or nothing.
fn keep(folder: &Path, file: &Path, ptx: &str) -> Result<()> {
    let failed = |e: std::io::Error| Error::Compile(format!("the kernel cache {}: {e}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let temporary: PathBuf = file.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, ptx).and_then(|()| std::fs::rename(&temporary, file)).map_err(failed)
}

/// FNV-1a over everything that the result depends on.
fn key(file: &str, source: &str, version: u32, flags: &[String]) -> u64 {
    let version = version.to_string();
    let headers = HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
    let parts = [file, source, &version].into_iter().chain(flags.iter().map(String::as_str)).chain(headers);
    let bytes = parts.flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
