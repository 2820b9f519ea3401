//! The one error type of the crate.

use std::path::PathBuf;

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong. Each variant names the offending value and says what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value the caller passed is out of its documented range. Python: `ValueError`.
    #[error("{0}")]
    InvalidArgument(String),

    /// A name, id or token that does not exist. Python: `KeyError`.
    #[error("{0}")]
    NotFound(String),

    /// A file or byte string that is not what its format demands. Python: `ValueError`.
    #[error("{0}")]
    Format(String),

    /// The operating system refused. Python: `OSError` (or its subclass, such as `FileNotFoundError`).
    #[error("{path}: {source}")]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },

    /// The caller asked for the work to stop. Python: `KeyboardInterrupt`.
    #[error("interrupted")]
    Interrupted,
}
