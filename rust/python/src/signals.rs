//! Ctrl-C while the core works without the GIL.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bpe_llama::{Error, Pause, Result};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::to_py;

/// How long Python is not asked again: it may give the GIL only when another thread's turn is over.
const QUIET: Duration = Duration::from_millis(20);

/// Python objects that are read or made between two looks at signals.
const ITEMS: usize = 1 << 14;

/// Runs `work` without the GIL, with a pause in which Python's signals are seen to: what a handler raises comes out.
pub(crate) fn interruptible<R: Send>(py: Python<'_>, work: impl FnOnce(Pause<'_>) -> Result<R> + Send) -> PyResult<R> {
    let raised = Mutex::new(None);
    let asked = Mutex::new(Instant::now());
    let ask = || {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.elapsed() < QUIET {
            return Ok(());
        }
        let signals: PyResult<()> = Python::attach(|py| {
            py.check_signals()?;
            Ok(())
        });
        *asked = Instant::now();
        signals.map_err(|error| {
            *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            Error::Interrupted
        })
    };
    let result = py.detach(|| work(Pause(Some(&ask))));
    let raised = raised.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.map_err(|error| raised.unwrap_or_else(|| to_py(error)))
}

/// Sees to signals at this turn of a loop over Python objects, counted from 0, if it is one of many.
pub(crate) fn check_at(py: Python<'_>, turn: usize) -> PyResult<()> {
    if turn % ITEMS == ITEMS - 1 { py.check_signals() } else { Ok(()) }
}

/// Returns the items as a list of Python's; signals are seen to while it is made.
pub(crate) fn list<'py, T: IntoPyObject<'py>>(
    py: Python<'py>,
    items: impl IntoIterator<Item = PyResult<T>>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for (number, item) in items.into_iter().enumerate() {
        check_at(py, number)?;
        list.append(item?)?;
    }
    Ok(list)
}
