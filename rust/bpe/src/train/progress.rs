//! Progress reports, which are also the interrupt checks of training.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Result;

/// The progress of a call, reported about ten times a second and at the end of each stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Words are being counted.
    Counting {
        /// Bytes of text counted so far.
        bytes: u64,
        /// Bytes of the input files read so far, before decompression; `None` for other input.
        read: Option<u64>,
        /// The total size of the input files; `None` for other input.
        total: Option<u64>,
    },
    /// Pairs are being merged.
    Merging {
        /// Merges learned so far.
        done: usize,
        /// Merges requested.
        total: usize,
    },
}

/// The caller's function that receives progress. Its error ends the call and is returned.
pub type OnProgress<'a> = &'a mut (dyn FnMut(Progress) -> Result<()> + Send);

/// Calls the caller's function at most once per [`Reporter::INTERVAL`].
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

    /// Reports if the interval since the last report has passed.
    pub(super) fn tick(&self, progress: impl FnOnce() -> Progress) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.elapsed() < Self::INTERVAL {
            return Ok(());
        }
        let result = (state.on_progress)(progress());
        state.last = Instant::now();
        result
    }

    /// Reports in any case: at the end of a stage.
    pub(super) fn report(&self, progress: Progress) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (state.on_progress)(progress)
    }
}
