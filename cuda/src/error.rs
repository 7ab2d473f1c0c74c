//! What can go wrong on a device.

use std::fmt;

/// The result of every call that reaches a device.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Memory of the device ran out.
    OutOfMemory {
        /// Bytes that were asked for.
        requested: u64,
        /// Bytes that this process holds on the device.
        held: u64,
    },
    /// There is no such device, or nothing to drive it with. Says what to do.
    NoDevice(String),
    /// A call that cannot be: an unknown kernel, a launch that is too large, arguments that do not fit.
    Invalid(String),
    /// A kernel did something wrong, or the driver reports that it did.
    Fault(String),
    /// Source or PTX that does not compile, assemble or load.
    Compile(String),
}

impl Error {
    /// A [`Error::Invalid`].
    pub(crate) fn invalid(what: impl fmt::Display) -> Self {
        Error::Invalid(what.to_string())
    }

    /// Whether memory ran out.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::OutOfMemory { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::OutOfMemory { requested, held } => {
                write!(f, "out of device memory: {requested} bytes asked for, {held} held by this process")
            }
            Error::NoDevice(what) | Error::Invalid(what) | Error::Fault(what) | Error::Compile(what) => {
                f.write_str(what)
            }
        }
    }
}

impl std::error::Error for Error {}
