//! One error type for the whole of kinglet.
//!
//! An [`Error`] is one pointer wide and opaque: callers ask it with the `is_*` predicates and print
//! it. Everything a caller, a file or a machine can cause is an `Err`; a bug of ours is a panic.

use std::fmt;

/// The result of every fallible function of kinglet.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one line that names the op, the shapes, the file or the tensor.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Shape,
    DType,
    Device,
    Unsupported,
    OutOfMemory,
    Aliased,
    NonFinite,
    Invalid,
    Io,
}

impl Error {
    #[cold]
    fn new(kind: Kind, message: String) -> Self {
        Error(Box::new(Inner { kind, message, source: None }))
    }

    /// Shapes that do not fit together. `op` is the operation's name.
    #[cold]
    pub fn shape(op: &str, detail: impl fmt::Display) -> Self {
        Self::new(Kind::Shape, format!("{op}: {detail}"))
    }

    /// A dtype that the operation does not take.
    #[cold]
    pub fn dtype(op: &str, detail: impl fmt::Display) -> Self {
        Self::new(Kind::DType, format!("{op}: {detail}"))
    }

    /// Tensors on two devices, or a device that is not there.
    #[cold]
    pub fn device(op: &str, detail: impl fmt::Display) -> Self {
        Self::new(Kind::Device, format!("{op}: {detail}"))
    }

    /// Something that is known but not implemented, named.
    #[cold]
    pub fn unsupported(detail: impl fmt::Display) -> Self {
        Self::new(Kind::Unsupported, detail.to_string())
    }

    /// An allocation that failed, with its size.
    #[cold]
    pub fn out_of_memory(bytes: usize, place: impl fmt::Display) -> Self {
        Self::new(Kind::OutOfMemory, format!("out of memory: {bytes} bytes for {place}"))
    }

    /// A parameter buffer that someone else still holds.
    #[cold]
    pub fn aliased(detail: impl fmt::Display) -> Self {
        Self::new(Kind::Aliased, detail.to_string())
    }

    /// A NaN or an infinity where there must be none.
    #[cold]
    pub fn non_finite(detail: impl fmt::Display) -> Self {
        Self::new(Kind::NonFinite, detail.to_string())
    }

    /// Input that breaks a rule: a value, a configuration or the contents of a file.
    #[cold]
    pub fn invalid(detail: impl fmt::Display) -> Self {
        Self::new(Kind::Invalid, detail.to_string())
    }

    /// A system call that failed; `what` says on which file and why it was made.
    #[cold]
    pub fn io(what: impl fmt::Display, source: std::io::Error) -> Self {
        let message = format!("{what}: {source}");
        Error(Box::new(Inner { kind: Kind::Io, message, source: Some(Box::new(source)) }))
    }

    /// The same error with `what` (a file, a tensor, a layer) put before its message.
    #[cold]
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// Whether shapes did not fit together.
    #[must_use]
    pub fn is_shape(&self) -> bool {
        self.0.kind == Kind::Shape
    }

    /// Whether an operation was given a dtype that it does not take.
    #[must_use]
    pub fn is_dtype(&self) -> bool {
        self.0.kind == Kind::DType
    }

    /// Whether tensors of two devices met, or a device is missing.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.0.kind == Kind::Device
    }

    /// Whether the request is known but not implemented.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.0.kind == Kind::Unsupported
    }

    /// Whether memory ran out.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        self.0.kind == Kind::OutOfMemory
    }

    /// Whether a parameter could not be updated because its bytes are still shared.
    #[must_use]
    pub fn is_aliased(&self) -> bool {
        self.0.kind == Kind::Aliased
    }

    /// Whether a loss, value or gradient was NaN or infinite.
    #[must_use]
    pub fn is_non_finite(&self) -> bool {
        self.0.kind == Kind::NonFinite
    }

    /// Whether the input itself (a value, a configuration, a file's contents) is at fault.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.0.kind == Kind::Invalid
    }

    /// Whether the operating system refused.
    #[must_use]
    pub fn is_io(&self) -> bool {
        self.0.kind == Kind::Io
    }
}

impl From<kinglet_cuda::Error> for Error {
    #[cold]
    fn from(error: kinglet_cuda::Error) -> Self {
        let kind = match error {
            kinglet_cuda::Error::OutOfMemory { .. } => Kind::OutOfMemory,
            kinglet_cuda::Error::Invalid(_) | kinglet_cuda::Error::Compile(_) => Kind::Invalid,
            _ => Kind::Device,
        };
        Self::new(kind, error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}
