//! The check by which a caller stops a long call.

/// Iterations of a loop between two interrupt checks: some microseconds of work.
const ITERATIONS: usize = 256;

/// A check that a long call makes every few milliseconds, on the calling thread: an error `E` ends the call and is returned.
///
/// ```
/// use bpe_llama_simd::Interrupt;
///
/// let cancelled = || Err("cancelled");
/// assert!(Interrupt::new(&cancelled).check().is_err());
/// assert!(Interrupt::<&str>::NEVER.check().is_ok());
/// ```
pub struct Interrupt<'a, E>(Option<&'a (dyn Fn() -> Result<(), E> + Sync)>);

impl<'a, E> Interrupt<'a, E> {
    /// Never stops a call.
    pub const NEVER: Self = Self(None);

    /// Returns the check that calls `check`, which should take microseconds at most.
    pub fn new(check: &'a (dyn Fn() -> Result<(), E> + Sync)) -> Self {
        Self(Some(check))
    }

    /// Runs the check.
    ///
    /// # Errors
    /// What the caller's function returns.
    pub fn check(self) -> Result<(), E> {
        self.0.map_or(Ok(()), |check| check())
    }

    /// Runs the check in one of 256 iterations of a loop; `iteration` counts from 0.
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    #[inline]
    pub fn check_at(self, iteration: usize) -> Result<(), E> {
        if iteration % ITERATIONS == ITERATIONS - 1 { self.check() } else { Ok(()) }
    }
}

impl<E> Clone for Interrupt<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Interrupt<'_, E> {}

impl<E> Default for Interrupt<'_, E> {
    fn default() -> Self {
        Self::NEVER
    }
}

impl<E> std::fmt::Debug for Interrupt<'_, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Interrupt({})", if self.0.is_some() { "check" } else { "never" })
    }
}
