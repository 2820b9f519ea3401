//! The one error type of the crate.

use std::fmt::Display;
use std::path::PathBuf;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error. Its message has the offending value and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value the caller passed is out of its documented range. Python: `ValueError`.
    #[error("{0}")]
    InvalidArgument(String),

    /// A name, id or token that does not exist. Python: `KeyError`.
    #[error("{0}")]
    NotFound(String),

    /// A file or byte string that its format does not allow. Python: `ValueError`.
    #[error("{0}")]
    Format(String),

    /// An error of the operating system. Python: `OSError` or a subclass, such as `FileNotFoundError`.
    #[error("{path}: {source}")]
    Io {
        /// The path of the file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },

    /// There is no memory for a result. Python: `MemoryError`.
    ///
    /// Decoding returns it. Encoding, counting and reading a corpus unwind with it, without a message: it is the payload
    /// that `std::panic::catch_unwind` returns.
    #[error("{0}")]
    OutOfMemory(String),

    /// An interrupt check stopped the call. Python: `KeyboardInterrupt`.
    #[error("interrupted")]
    Interrupted,
}

/// Returns the beginning of a text, for a message.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Returns the message of a parser, which may quote a long value of the file: its beginning and its end.
pub(crate) fn quoting(error: &impl Display) -> String {
    let message = error.to_string();
    match message.char_indices().nth_back(119) {
        Some((end, _)) if message.chars().count() > 300 => format!("{} {}", shortened(&message), &message[end..]),
        _ => message,
    }
}

/// Returns an [`Error`] of one kind, with a message formatted as by [`format!`].
macro_rules! invalid {
    ($($message:tt)*) => { $crate::Error::InvalidArgument(format!($($message)*)) };
}
macro_rules! not_found {
    ($($message:tt)*) => { $crate::Error::NotFound(format!($($message)*)) };
}
macro_rules! malformed {
    ($($message:tt)*) => { $crate::Error::Format(format!($($message)*)) };
}
