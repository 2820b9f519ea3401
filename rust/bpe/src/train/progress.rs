//! Progress reports of long calls, which are also where a caller can stop them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Result;

/// How far the work is: passed to the caller's function about ten times a second, and at the end of each stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Text is being read and its words counted.
    Counting {
        /// Bytes of text counted so far.
        bytes: u64,
        /// Bytes of input read so far, before decompression, if they come from files.
        read: Option<u64>,
        /// The size of all input files together, if there are any.
        total: Option<u64>,
    },
    /// Pairs are being merged.
    Merging {
        /// Merges done.
        done: usize,
        /// Merges asked for.
        total: usize,
    },
}

/// Receives progress; an error that it returns ends the call and is passed on.
pub type OnProgress<'a> = &'a mut (dyn FnMut(Progress) -> Result<()> + Send);

/// Calls the caller's function at most once in [`Reporter::INTERVAL`].
pub(super) struct Reporter<'a>(Mutex<State<'a>>);

struct State<'a> {
    on_progress: OnProgress<'a>,
    last: Instant,
}

impl<'a> Reporter<'a> {
    pub(super) const INTERVAL: Duration = Duration::from_millis(100);

    pub(super) fn new(on_progress: OnProgress<'a>) -> Self {
        Self(Mutex::new(State { on_progress, last: Instant::now() }))
    }

    /// Reports if the interval since the last report is over.
    ///
    /// # Errors
    /// What the caller's function returns.
    pub(super) fn tick(&self, progress: impl FnOnce() -> Progress) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.elapsed() < Self::INTERVAL {
            return Ok(());
        }
        let result = (state.on_progress)(progress());
        state.last = Instant::now();
        result
    }

    /// Reports whatever the time: at the end of a stage.
    ///
    /// # Errors
    /// What the caller's function returns.
    pub(super) fn report(&self, progress: Progress) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.on_progress)(progress)
    }
}
