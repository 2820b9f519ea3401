//! The error type of the crate, and the checks that several modules share.

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An invalid argument, or an interrupt. The message names the offending value and says what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is out of its documented range. Python: `ValueError`.
    #[error("{0}")]
    InvalidArgument(String),

    /// An interrupt check stopped the call. Python: `KeyboardInterrupt`.
    #[error("interrupted")]
    Interrupted,
}

/// A check that a call makes every few milliseconds, on the calling thread: an error ends the call and is returned.
pub type Interrupt<'a> = bpe_llama_simd::Interrupt<'a, Error>;

/// Returns an [`Error`] with a message formatted as by [`format!`].
macro_rules! invalid {
    ($($message:tt)*) => { $crate::Error::InvalidArgument(format!($($message)*)) };
}

/// Returns the id as an index; `subject` begins the error message.
///
/// # Errors
/// [`Error::InvalidArgument`] if the id is negative or not below `vocab_size`.
pub(crate) fn check_id(id: i64, vocab_size: usize, subject: impl FnOnce() -> String) -> Result<usize> {
    usize::try_from(id)
        .ok()
        .filter(|id| *id < vocab_size)
        .ok_or_else(|| invalid!("{} outside the vocabulary of {vocab_size}", subject()))
}
