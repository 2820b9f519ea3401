//! The check by which a caller stops a long call.

use crate::Result;

/// Iterations of a loop between two interrupt checks: some microseconds of work.
const ITERATIONS: usize = 256;

/// A check that a long call makes every few milliseconds, on the calling thread: an error ends the call and is returned.
///
/// ```
/// use bpe_llama::{Error, Interrupt};
///
/// let cancelled = || Err(Error::Interrupted);
/// assert!(Interrupt::new(&cancelled).check().is_err());
/// assert!(Interrupt::NEVER.check().is_ok());
/// ```
#[derive(Clone, Copy, Default)]
pub struct Interrupt<'a>(Option<&'a (dyn Fn() -> Result<()> + Sync)>);

impl<'a> Interrupt<'a> {
    /// Never stops a call.
    pub const NEVER: Self = Self(None);

    /// Returns the check that calls `check`, which should take microseconds at most.
    pub fn new(check: &'a (dyn Fn() -> Result<()> + Sync)) -> Self {
        Self(Some(check))
    }

    /// Runs the check.
    ///
    /// # Errors
    /// What the caller's function returns.
    pub fn check(self) -> Result<()> {
        self.0.map_or(Ok(()), |check| check())
    }

    /// Runs the check in one of 256 iterations of a loop; `iteration` counts from 0.
    #[inline]
    pub(crate) fn check_at(self, iteration: usize) -> Result<()> {
        if iteration % ITERATIONS == ITERATIONS - 1 { self.check() } else { Ok(()) }
    }
}

impl std::fmt::Debug for Interrupt<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Interrupt({})", if self.0.is_some() { "check" } else { "never" })
    }
}
