//! NVIDIA's run-time compiler, loaded only when a kernel is replaced by CUDA source. Opened by hand, not through cudarc: its
//! loader panics where the library is missing, and knows no path.
#![allow(unsafe_code)]

use super::Image;
use crate::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

type Program = *mut c_void;

/// The library, and the functions of it that are used.
pub(crate) struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    /// As it names itself, times a hundred: 1300 is 13.0.
    version: u32,
    /// Keeps the functions where they are.
    _libraries: Vec<Library>,
}

/// The names under which installations have it.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

impl Nvrtc {
    /// Opens the library at `path` (a file, or a folder that has it), or the one that the system's loader finds.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self> {
        let candidates = candidates(path);
        let mut why = String::new();
        for candidate in &candidates {
            match Self::load(candidate) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => why = error.to_string(),
            }
        }
        let place = path.map_or_else(|| "the system".to_owned(), |path| path.display().to_string());
        Err(Error::Compile(format!(
            "NVIDIA's run-time compiler (libnvrtc, version 12 or 13) is not found in {place}: {why}; install it, for \
             example by `pip install nvidia-cuda-nvrtc`, and name the folder that holds libnvrtc.so.* in KINGLET_NVRTC; or give PTX instead of CUDA source"
        )))
    }

    fn load(file: &Path) -> std::result::Result<Self, libloading::Error> {
        let mut libraries = Vec::new();
        for builtins in builtins_beside(file) {
            // SAFETY: NVIDIA's library beside libnvrtc; its initialisers do nothing that Rust could see.
            libraries.push(unsafe { Library::new(builtins)? });
        }
        // SAFETY: as above.
        let library = unsafe { Library::new(file)? };
        let mut version = (0, 0);
        // SAFETY: the signature is that of nvrtc.h, unchanged since CUDA 7; the function writes two numbers.
        unsafe {
            library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(b"nvrtcVersion\0")?(
                &raw mut version.0,
                &raw mut version.1,
            );
        }
        // SAFETY: the names and signatures are those of nvrtc.h; the library is kept in `_libraries` as long as they are.
        let nvrtc = unsafe {
            Nvrtc {
                create: *library.get(b"nvrtcCreateProgram\0")?,
                compile: *library.get(b"nvrtcCompileProgram\0")?,
                destroy: *library.get(b"nvrtcDestroyProgram\0")?,
                ptx_size: *library.get(b"nvrtcGetPTXSize\0")?,
                ptx: *library.get(b"nvrtcGetPTX\0")?,
                cubin_size: *library.get(b"nvrtcGetCUBINSize\0")?,
                cubin: *library.get(b"nvrtcGetCUBIN\0")?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0")?,
                log: *library.get(b"nvrtcGetProgramLog\0")?,
                version: (version.0 * 100 + version.1) as u32,
                _libraries: Vec::new(),
            }
        };
        libraries.push(library);
        Ok(Nvrtc { _libraries: libraries, ..nvrtc })
    }

    /// The compiler's version times a hundred.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// Compiles `source`. `headers` are pairs of a name, as `#include` has it, and a text. Machine code comes with the PTX where
    /// the options name a real architecture (`sm_90a`), not a virtual one (`compute_90a`).
    pub(crate) fn compile(
        &self,
        file: &str,
        source: &str,
        headers: &[(&str, &str)],
        options: &[String],
    ) -> Result<Image> {
        let text =
            |text: &str| CString::new(text).map_err(|_| Error::Compile(format!("{file}: a zero byte in the source")));
        let wants_cubin = options.iter().any(|option| option.starts_with("--gpu-architecture=sm_"));
        let (name, source) = (text(file)?, text(source)?);
        let header_names = headers.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>>>()?;
        let header_texts = headers.iter().map(|(_, body)| text(body)).collect::<Result<Vec<_>>>()?;
        let options = options.iter().map(|option| text(option)).collect::<Result<Vec<_>>>()?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names, texts, options) = (pointers(&header_names), pointers(&header_texts), pointers(&options));
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: all strings end in a zero byte and live until `program` is destroyed below; the arrays have the length given.
        let created = unsafe {
            (self.create)(
                &raw mut program,
                source.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        if created != 0 {
            return Err(Error::Compile(format!("{file}: NVRTC does not start (error {created})")));
        }
        // SAFETY: `program` was made above; the array has the length given.
        let compiled = unsafe { (self.compile)(program, options.len() as c_int, options.as_ptr()) };
        let result = match compiled {
            0 => text_of(program, self.ptx_size, self.ptx).and_then(|ptx| {
                // A virtual architecture has no machine code, which some versions call an error.
                let cubin = match wants_cubin {
                    true => Some(bytes_of(program, self.cubin_size, self.cubin)?),
                    false => None,
                };
                Ok(Image { ptx, cubin })
            }),
            _ => Err(match text_of(program, self.log_size, self.log) {
                Ok(log) => Error::Compile(format!("{file} does not compile: {}", first_lines(&log))),
                Err(error) => error,
            }),
        };
        // SAFETY: made above, destroyed once, not used after.
        unsafe { (self.destroy)(&raw mut program) };
        result
    }
}

type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// What a pair of NVRTC's functions gives: its size, and its bytes.
fn bytes_of(program: Program, size: Size, get: Get) -> Result<Vec<u8>> {
    let checked = |code: c_int| match code {
        0 => Ok(()),
        code => Err(Error::Compile(format!("NVRTC does not give its result (error {code})"))),
    };
    let mut bytes = 0;
    // SAFETY: `program` lives; the function writes one number.
    checked(unsafe { size(program, &raw mut bytes) })?;
    let mut content = vec![0u8; bytes];
    if bytes > 0 {
        // SAFETY: `content` has room for the size that was just told.
        checked(unsafe { get(program, content.as_mut_ptr().cast()) })?;
    }
    Ok(content)
}

/// The same for a text, which ends in a zero byte.
fn text_of(program: Program, size: Size, get: Get) -> Result<String> {
    let mut bytes = bytes_of(program, size, get)?;
    bytes.push(0);
    Ok(CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default())
}

/// The first errors of a compiler's log, in one line.
fn first_lines(log: &str) -> String {
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(6).collect::<Vec<_>>().join(" | ")
}

fn candidates(path: Option<&Path>) -> Vec<PathBuf> {
    match path {
        None => NAMES.iter().map(PathBuf::from).collect(),
        Some(folder) if folder.is_dir() => NAMES.iter().map(|name| folder.join(name)).collect(),
        Some(file) => vec![file.to_owned()],
    }
}

/// The library of device code beside libnvrtc, which it looks for by name alone: opened first, so that it is found.
fn builtins_beside(file: &Path) -> Vec<PathBuf> {
    let Some(folder) = file.parent().filter(|folder| folder.is_dir()) else { return Vec::new() };
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let is_builtins = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libnvrtc-builtins.so."))
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_builtins).collect()
}
