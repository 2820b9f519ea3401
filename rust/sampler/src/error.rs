//! The error type of the crate.

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong. The message names the offending value and says what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value the caller passed is out of its documented range. Python: `ValueError`.
    #[error("{0}")]
    InvalidArgument(String),
}
