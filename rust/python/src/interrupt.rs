//! Python's signals while the core works without the GIL: Ctrl-C stops any long call.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bpe_llama::{Error, Interrupt, Result};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::{detached, to_py};

/// The least time between two checks of Python's signals: attaching to Python waits until other threads release the GIL.
const MIN_INTERVAL: Duration = Duration::from_millis(20);

/// Releasing and acquiring the GIL takes longer than work on less text than this.
const SHORT_BYTES: usize = 2048;

/// Python objects that are read or created between two checks of signals.
const OBJECTS: usize = 1 << 14;

/// The exception of a call into Python, which ends the core's work as [`Error::Interrupted`] and is then raised.
#[derive(Default)]
pub(crate) struct PendingError(Mutex<Option<PyErr>>);

impl PendingError {
    /// Stores an exception and returns [`Error::Interrupted`] in its place.
    pub(crate) fn store<T>(&self, result: PyResult<T>) -> Result<T> {
        result.map_err(|error| {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            Error::Interrupted
        })
    }

    /// Returns the result of the core's work, with the stored exception as its error if there is one.
    pub(crate) fn raise<T>(self, result: Result<T>) -> PyResult<T> {
        let stored = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        result.map_err(|error| stored.unwrap_or_else(|| to_py(error)))
    }
}

/// Runs `work` without the GIL, with an interrupt check that runs Python's signal handlers and raises what they raise.
#[inline(never)] // so that short texts, which do without it, have a small stack frame
pub(crate) fn interruptible<R: Send>(
    py: Python<'_>,
    work: impl FnOnce(Interrupt<'_>) -> Result<R> + Send,
) -> PyResult<R> {
    interruptible_with_calls(py, |interrupt, _| work(interrupt))
}

/// As [`interruptible`]; `work` may call Python, and stores the exceptions of its calls.
pub(crate) fn interruptible_with_calls<R: Send>(
    py: Python<'_>,
    work: impl FnOnce(Interrupt<'_>, &PendingError) -> Result<R> + Send,
) -> PyResult<R> {
    let pending = PendingError::default();
    let last = Mutex::new(Instant::now());
    let check = || {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < MIN_INTERVAL {
            return Ok(());
        }
        let checked = Python::attach(|py| pending.store(py.check_signals()));
        *last = Instant::now();
        checked
    };
    let result = detached(py, || work(Interrupt::new(&check), &pending))?;
    pending.raise(result)
}

/// As [`interruptible`], but holds the GIL, makes no checks and catches no panic for less than [`SHORT_BYTES`] of text: that
/// would cost a short text 5% of its time.
///
/// So a short text for which the system refuses memory raises `PyO3`'s `PanicException`, not `MemoryError`. It needs a
/// few kilobytes, without which Python could not run either, unless a normalizer makes megabytes of a character.
pub(crate) fn interruptible_if_long<R: Send>(
    py: Python<'_>,
    bytes: usize,
    work: impl FnOnce(Interrupt<'_>) -> Result<R> + Send,
) -> PyResult<R> {
    if bytes < SHORT_BYTES { work(Interrupt::NEVER).map_err(to_py) } else { interruptible(py, work) }
}

/// Checks signals in one of many iterations of a loop over Python objects; `iteration` counts from 0.
pub(crate) fn check_at(py: Python<'_>, iteration: usize) -> PyResult<()> {
    if iteration % OBJECTS == OBJECTS - 1 { py.check_signals() } else { Ok(()) }
}

/// Returns the items as a Python list, checking signals while building it.
pub(crate) fn list<'py, T: IntoPyObject<'py>>(
    py: Python<'py>,
    items: impl IntoIterator<Item = PyResult<T>>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for (index, item) in items.into_iter().enumerate() {
        check_at(py, index)?;
        list.append(item?)?;
    }
    Ok(list)
}
