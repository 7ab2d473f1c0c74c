//! The kernels' PTX, compressed into the binary: what `scripts/build-kernels` made of `kernels/*.cu`.
//!
//! A module is called like its source, `rms_norm` for `kernels/rms_norm.cu`, and its entry points begin with that name or are listed at
//! the head of the source.

/// The PTX of one source.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// The name of the source, without `.cu`.
    pub name: &'static str,
    /// The source itself, which the names of the kernels' parameters are read from.
    pub(crate) source: &'static str,
    /// zlib's format (RFC 1950).
    compressed: &'static [u8],
}

impl Module {
    /// The text of the module.
    ///
    /// # Panics
    /// Never, unless the committed file is damaged, which a test would have found.
    #[must_use]
    pub fn ptx(&self) -> String {
        let bytes = miniz_oxide::inflate::decompress_to_vec_zlib(self.compressed);
        let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
        text.expect("scripts/build-kernels wrote compressed ASCII")
    }
}

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        &[$(Module {
            name: $name,
            source: include_str!(concat!("../kernels/", $name, ".cu")),
            compressed: include_bytes!(concat!("../ptx/", $name, ".ptx.z")),
        }),*]
    };
}

/// Every module, in alphabetical order.
pub const MODULES: &[Module] = modules![
    "adamw",
    "affine",
    "attention",
    "attention_cores",
    "attention_cores_backward",
    "attention_decode",
    "binary",
    "cat",
    "compare",
    "copy",
    "cross_entropy",
    "dropout",
    "embedding",
    "gather",
    "gguf",
    "grad_norm",
    "layer_norm",
    "linear_cross_entropy",
    "matmul",
    "matmul_4bit",
    "matmul_gguf",
    "nf4",
    "random",
    "reduce",
    "rms_norm",
    "rope",
    "sample",
    "scale",
    "softmax",
    "swiglu",
    "unary"
];

macro_rules! headers {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../kernels/", $name)))),*] };
}

/// What a source may include, by the name that it includes it by.
pub const HEADERS: &[(&str, &str)] = headers![
    "attention.cuh",
    "attention_cores.cuh",
    "common.cuh",
    "decoded.cuh",
    "gemm.cuh",
    "gguf.cuh",
    "math.cuh",
    "matvec.cuh",
    "mma.cuh",
    "nf4.cuh",
    "philox.cuh",
];

/// What `scripts/build-kernels` wrote of how the kernels were compiled.
const MANIFEST: &str = include_str!("../ptx/manifest.txt");

/// The options with which the kernels were compiled, but for the architecture.
pub(crate) fn options() -> impl Iterator<Item = &'static str> {
    let line = MANIFEST.lines().find_map(|line| line.strip_prefix("nvrtc ")).unwrap_or_default();
    line.split_whitespace().skip(1)
}

/// The PTX of the module called `name`, if there is one.
#[must_use]
pub fn ptx(name: &str) -> Option<String> {
    MODULES.iter().find(|module| module.name == name).map(Module::ptx)
}

/// The source of the module called `name`, if there is one.
pub(crate) fn source(name: &str) -> Option<&'static str> {
    MODULES.iter().find(|module| module.name == name).map(|module| module.source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_committed_module_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/ptx");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut committed: Vec<String> = files.filter_map(|f| f.strip_suffix(".ptx.z").map(String::from)).collect();
        committed.sort();
        assert_eq!(committed, MODULES.iter().map(|m| m.name).collect::<Vec<_>>());
        for module in MODULES {
            assert!(module.ptx().contains(&format!("kernels/{}.cu", module.name)), "{}", module.name);
        }
        assert!(ptx("copy").is_some() && ptx("nothing").is_none());
    }
}
