//! How devices are made.

/// How to make a virtual GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmulatorOptions {
    /// What it is to be: 80, 89 or 90.
    pub arch: u32,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Threads of the host that run blocks, at least 1; `None` is one a core.
    pub threads: Option<usize>,
    /// Chooses among the orders in which threads may run.
    pub seed: u64,
    /// The most instructions that the warps of a block, or of a cluster of blocks, may run in one launch: an endless loop ends
    /// there.
    pub instruction_limit: u64,
    /// Write what kernels print to standard output at once, as NVIDIA's driver does; else it is kept for `Device::take_printed`.
    pub prints: bool,
    /// For tests of memory at full size: nothing is run, what is read is zero; memory is counted, and runs out, all the same.
    pub idle: bool,
    /// For tests: the call of the driver, counted from 0, that fails as if memory had run out.
    pub fail_at: Option<u64>,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        EmulatorOptions {
            arch: 90,
            memory_bytes: 4 << 30,
            threads: None,
            seed: 0,
            instruction_limit: 1 << 28,
            prints: false,
            idle: false,
            fail_at: None,
        }
    }
}
