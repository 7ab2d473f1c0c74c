//! How a kernel is started: geometry and arguments.

/// The geometry of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster (Hopper); `None` leaves it to the kernel.
    pub cluster: Option<[u32; 3]>,
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
}

impl Launch {
    /// `blocks` blocks of `threads` threads in one dimension.
    #[must_use]
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], cluster: None, dynamic_shared: 0 }
    }

    /// As [`Launch::linear`], with as many blocks as `items` items take at one a thread, but at most `most`: kernels walk the
    /// rest in strides of the grid.
    #[must_use]
    pub fn over(items: usize, threads: u32, most: u32) -> Self {
        let blocks = items.div_ceil(threads.max(1) as usize).clamp(1, most.max(1) as usize);
        Self::linear(u32::try_from(blocks).unwrap_or(most), threads)
    }

    /// The same with `bytes` of dynamic shared memory.
    #[must_use]
    pub fn with_shared(mut self, bytes: u32) -> Self {
        self.dynamic_shared = bytes;
        self
    }
}

/// The value of one argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg<'a> {
    /// An address in the device's memory.
    Pointer(u64),
    /// A 32-bit unsigned number.
    U32(u32),
    /// A 32-bit signed number.
    I32(i32),
    /// A 64-bit unsigned number.
    U64(u64),
    /// A 64-bit signed number.
    I64(i64),
    /// A float.
    F32(f32),
    /// A structure by value.
    Bytes(&'a [u8]),
    /// A tensor map for the copy engine (Hopper): 128 bytes, aligned to 64.
    TensorMap(&'a [u8; 128]),
}

impl Arg<'_> {
    /// Appends the argument's bytes.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Arg::Pointer(v) | Arg::U64(v) => out.extend(v.to_le_bytes()),
            Arg::U32(v) => out.extend(v.to_le_bytes()),
            Arg::I32(v) => out.extend(v.to_le_bytes()),
            Arg::I64(v) => out.extend(v.to_le_bytes()),
            Arg::F32(v) => out.extend(v.to_le_bytes()),
            Arg::Bytes(v) => out.extend(*v),
            Arg::TensorMap(v) => out.extend(*v),
        }
    }

    /// Its size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Arg::Pointer(_) | Arg::U64(_) | Arg::I64(_) => 8,
            Arg::U32(_) | Arg::I32(_) | Arg::F32(_) => 4,
            Arg::Bytes(v) => v.len(),
            Arg::TensorMap(_) => 128,
        }
    }
}
