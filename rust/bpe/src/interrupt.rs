//! The check by which a caller stops a long call.

use crate::Error;

/// A check that a long call makes every few milliseconds, on the calling thread: an error ends the call and is returned.
///
/// ```
/// use bpe_llama::{Error, Interrupt};
///
/// let cancelled = || Err(Error::Interrupted);
/// assert!(Interrupt::new(&cancelled).check().is_err());
/// assert!(Interrupt::NEVER.check().is_ok());
/// ```
pub type Interrupt<'a> = bpe_llama_simd::Interrupt<'a, Error>;
