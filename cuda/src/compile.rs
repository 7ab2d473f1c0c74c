//! From CUDA source to PTX and machine code, with results kept on disk.

use crate::Result;
use crate::driver::Image;
use crate::driver::nvrtc::Nvrtc;
use crate::ptx::{self, HEADERS};
use crate::replace::CompilerOptions;
use std::path::Path;

/// What to compile for.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// 80, 89, 90.
    pub(crate) arch: u32,
    /// Machine code too, not PTX alone.
    pub(crate) cubin: bool,
}

/// Compiles `source`, or takes what was kept of the same source, options and compiler.
pub(crate) fn image(file: &str, source: &str, target: Target, options: &CompilerOptions) -> Result<Image> {
    // What sm_90a has beside sm_90, all GPUs of that generation run.
    let arch = if target.arch == 90 { "90a".to_owned() } else { target.arch.to_string() };
    let kind = if target.cubin { "sm" } else { "compute" };
    let mut flags = vec![format!("--gpu-architecture={kind}_{arch}")];
    flags.extend(ptx::options().map(str::to_owned));
    let nvrtc = Nvrtc::open(options.nvrtc.as_deref())?;
    let Some(folder) = options.cache.as_ref().filter(|_| includes_nothing_else(source)) else {
        return Ok(named(nvrtc.compile(file, source, HEADERS, &flags)?));
    };
    let name = format!("{:016x}", key(file, source, nvrtc.version(), &flags));
    if let Some(image) = kept(folder, &name, target) {
        return Ok(image);
    }
    let image = named(nvrtc.compile(file, source, HEADERS, &flags)?);
    // A folder that cannot be written costs the next compilation, and nothing else.
    let _ = keep_all(folder, &name, &image);
    Ok(image)
}

/// The image with kinglet's headers under the names that they have in the repository. The compiler, which was given no file of
/// theirs, places them in the current folder.
fn named(image: Image) -> Image {
    let Ok(folder) = std::env::current_dir() else { return image };
    let mut ptx = image.ptx;
    for (name, _) in HEADERS.iter().filter(|(name, _)| !folder.join(name).exists()) {
        let place = format!("\"{}\"", folder.join(name).display());
        ptx = ptx.replace(&place, &format!("\"cuda/kernels/{name}\""));
    }
    Image { ptx, ..image }
}

/// Whether the source includes kinglet's headers only: what else it includes may change, and is not part of the key.
fn includes_nothing_else(source: &str) -> bool {
    let mut includes =
        source.lines().filter_map(|line| line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include"));
    includes.all(|rest| HEADERS.iter().any(|(name, _)| rest.trim() == format!("\"{name}\"")))
}

/// The PTX last: it says that the entry is complete.
fn keep_all(folder: &Path, name: &str, image: &Image) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    if let Some(cubin) = &image.cubin {
        keep(folder, &format!("{name}.cubin"), cubin)?;
    }
    keep(folder, &format!("{name}.ptx"), image.ptx.as_bytes())
}

/// What an earlier compilation left; nothing if that is not complete and whole.
fn kept(folder: &Path, name: &str, target: Target) -> Option<Image> {
    let whole = |kind: &str| {
        let mut content = std::fs::read(folder.join(format!("{name}.{kind}"))).ok()?;
        let hash = content.split_off(content.len().checked_sub(HASH_BYTES)?);
        (hash == fnv(&content).to_le_bytes()).then_some(content)
    };
    let ptx = String::from_utf8(whole("ptx")?).ok()?;
    let cubin = match target.cubin {
        true => Some(whole("cubin").filter(|cubin| cubin.starts_with(b"\x7fELF"))?),
        false => None,
    };
    Some(Image { ptx, cubin })
}

/// Bytes of the hash that ends every kept file: a crash or a full disk may leave a piece of one, and a driver believes what it
/// is given.
const HASH_BYTES: usize = 8;

/// Writes a file so that another process sees all of it or nothing.
fn keep(folder: &Path, name: &str, content: &[u8]) -> std::io::Result<()> {
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::write(&temporary, [content, &fnv(content).to_le_bytes()].concat());
    let moved = written.and_then(|()| std::fs::rename(&temporary, folder.join(name)));
    if moved.is_err() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
    }
    moved
}

/// A hash of everything that the result depends on.
fn key(file: &str, source: &str, version: u32, flags: &[String]) -> u64 {
    let version = version.to_string();
    let headers = HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
    let parts = [file, source, &version].into_iter().chain(flags.iter().map(String::as_str)).chain(headers);
    fnv(&parts.flat_map(|part| part.bytes().chain([0])).collect::<Vec<u8>>())
}

/// FNV-1a of 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn sources_with_headers_of_their_own_are_compiled_every_time() {
        assert!(includes_nothing_else("#include \"common.cuh\"\n  # include \"math.cuh\"\nint x;"));
        assert!(!includes_nothing_else("#include \"common.cuh\"\n#include \"mine.cuh\""));
        assert!(!includes_nothing_else("#include <cuda_fp16.h>"));
    }

    #[test]
    fn only_whole_files_are_taken() {
        let folder = std::env::temp_dir().join(format!("kinglet-kept-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (with, without) = (Target { arch: 90, cubin: true }, Target { arch: 90, cubin: false });
        keep(&folder, "k.ptx", b"text").unwrap();
        keep(&folder, "k.cubin", b"\x7fELF and more").unwrap();
        let image = kept(&folder, "k", with).unwrap();
        assert_eq!((&*image.ptx, image.cubin.as_deref().unwrap()), ("text", &b"\x7fELF and more"[..]));
        let whole = std::fs::read(folder.join("k.cubin")).unwrap();
        for len in 0..whole.len() {
            std::fs::write(folder.join("k.cubin"), &whole[..len]).unwrap();
            assert!(kept(&folder, "k", with).is_none(), "{len} bytes");
        }
        keep(&folder, "k.cubin", b"no machine code").unwrap();
        assert!(kept(&folder, "k", with).is_none());
        assert!(kept(&folder, "k", without).is_some());
        std::fs::write(folder.join("k.ptx"), b"text of somebody").unwrap();
        assert!(kept(&folder, "k", without).is_none());
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// On a machine without a GPU machine code cannot run, but it can be made and kept.
    #[test]
    #[ignore = "needs NVIDIA's run-time compiler: KINGLET_NVRTC"]
    fn machine_code_is_made_and_kept() {
        let folder = std::env::temp_dir().join(format!("kinglet-cubins-{}", std::process::id()));
        let nvrtc = std::env::var_os("KINGLET_NVRTC").map(PathBuf::from);
        let options = CompilerOptions { nvrtc, cache: Some(folder.clone()) };
        let source = "extern \"C\" __global__ void one(float* x) { *x = 1.0f; }";
        for arch in [80, 89, 90] {
            let target = Target { arch, cubin: true };
            let made = image("one.cu", source, target, &options).unwrap();
            // An ELF file.
            assert_eq!(made.cubin.as_deref().unwrap()[..4], *b"\x7fELF");
            assert!(made.ptx.contains(".entry one("));
            assert_eq!(image("one.cu", source, target, &options).unwrap(), made);
        }
        assert_eq!(folder.read_dir().unwrap().count(), 6);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
