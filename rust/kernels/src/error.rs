//! The error type of the crate.

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed. The message names the offending value and the expected one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is out of its documented range. Python: `ValueError`.
    #[error("{0}")]
    InvalidArgument(String),
}
