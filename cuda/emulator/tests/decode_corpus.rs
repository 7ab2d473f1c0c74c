//! Real PTX: what NVRTC made of the kernels in `ptx/`.

use kinglet_emulator::program::Program;

const CORPUS: [(&str, &str); 4] = [
    ("calls", include_str!("ptx/calls.ptx")),
    ("memory", include_str!("ptx/memory.ptx")),
    ("numbers", include_str!("ptx/numbers.ptx")),
    ("warp", include_str!("ptx/warp.ptx")),
];

#[test]
fn every_kernel_of_the_corpus_decodes() {
    for (name, text) in CORPUS {
        let program = Program::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!program.kernels.is_empty());
    }
}
