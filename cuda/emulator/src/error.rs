//! What can go wrong: text that does not parse, a launch that cannot be, a fault of a kernel.

use std::fmt;

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the virtual GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The PTX is not understood: the line (from 1) and what is wrong there, with the instruction's name.
    Parse {
        /// The line of the PTX.
        line: u32,
        /// What is wrong.
        what: String,
    },
    /// A call of the host that cannot be: an unknown kernel, a block that is too large, a freed pointer, ..
    Invalid(String),
    /// No memory left on the virtual device, or on the host that it lies in (then more was free than requested).
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes that were free.
        free: u64,
    },
    /// A kernel did something wrong.
    Fault(Box<Fault>),
}

/// What a kernel did wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault.
    pub kind: FaultKind,
    /// The kernel's name.
    pub kernel: String,
    /// The function within it, where that is another.
    pub function: Option<String>,
    /// The block.
    pub block: [u32; 3],
    /// The thread in its block; for a fault of many (deadlock), the first.
    pub thread: [u32; 3],
    /// The line of the PTX.
    pub ptx_line: u32,
    /// The file and line of the source, where the PTX says so.
    pub source: Option<(String, u32)>,
    /// Where the function that this is in was inlined, where the PTX says so.
    pub caller: Option<(String, u32)>,
    /// Everything else: address, size, the other thread, the nearest allocation.
    pub what: String,
    /// What the kernel printed up to and with this block.
    pub printed: String,
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside of every allocation, in a red zone, in freed memory, or to a space that the address is not in.
    OutOfBounds,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// A read of bytes that nobody wrote.
    Uninitialised,
    /// Two accesses to shared memory, one a write, with nothing that orders them.
    Race,
    /// Threads wait at different barriers, or a barrier that not all its threads reach.
    BarrierDivergence,
    /// Nobody can go on.
    Deadlock,
    /// Bytes of an asynchronous copy touched before its wait.
    AsyncCopy,
    /// The instruction limit of the launch is used up.
    InstructionLimit,
    /// `trap`, `brkpt`.
    Trap,
    /// `__assertfail`.
    Assert,
    /// An instruction that cannot be executed so: a bad lane mask, a branch index out of range, a write to constant memory.
    IllegalInstruction,
}

impl Error {
    /// A [`Error::Parse`].
    pub(crate) fn parse(line: u32, what: impl fmt::Display) -> Self {
        Error::Parse { line, what: what.to_string() }
    }

    /// A [`Error::Invalid`].
    pub(crate) fn invalid(what: impl fmt::Display) -> Self {
        Error::Invalid(what.to_string())
    }

    /// The fault, if this is one.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Error::Fault(fault) => Some(fault),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Parse { line, what } => write!(f, "PTX line {line}: {what}"),
            Error::Invalid(what) => f.write_str(what),
            Error::OutOfMemory { requested, free } if requested <= free => {
                write!(f, "out of memory on the host of the virtual device: {requested} bytes asked for")
            }
            Error::OutOfMemory { requested, free } => {
                write!(f, "out of memory on the virtual device: {requested} bytes asked for, {free} free")
            }
            Error::Fault(fault) => fault.fmt(f),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [bx, by, bz] = self.block;
        let [tx, ty, tz] = self.thread;
        write!(f, "{}: {} in kernel {}", self.kind, self.what, self.kernel)?;
        if let Some(function) = &self.function {
            write!(f, " (in {function})")?;
        }
        write!(f, ", block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz}), PTX line {}", self.ptx_line)?;
        if let Some((file, line)) = &self.source {
            write!(f, ", {file}:{line}")?;
        }
        match &self.caller {
            Some((file, line)) => write!(f, ", inlined at {file}:{line}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultKind::OutOfBounds => "out of bounds",
            FaultKind::Misaligned => "misaligned access",
            FaultKind::Uninitialised => "uninitialised read",
            FaultKind::Race => "race in shared memory",
            FaultKind::BarrierDivergence => "barrier divergence",
            FaultKind::Deadlock => "deadlock",
            FaultKind::AsyncCopy => "asynchronous copy not waited for",
            FaultKind::InstructionLimit => "instruction limit",
            FaultKind::Trap => "trap",
            FaultKind::Assert => "assertion failed",
            FaultKind::IllegalInstruction => "illegal instruction",
        })
    }
}

impl std::error::Error for Error {}
impl std::error::Error for Fault {}
