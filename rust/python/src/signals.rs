//! Ctrl-C while the core works without the GIL.

use std::sync::{Mutex, PoisonError};

use bpe_llama::{Error, Pause, Result};
use pyo3::prelude::*;

use crate::error::to_py;

/// Runs `work` without the GIL, with a pause in which Python's signals are seen to: what a handler raises comes out.
pub(crate) fn interruptible<R: Send>(py: Python<'_>, work: impl FnOnce(Pause<'_>) -> Result<R> + Send) -> PyResult<R> {
    let raised = Mutex::new(None);
    let ask = || {
        let signals: PyResult<()> = Python::attach(|py| {
            py.check_signals()?;
            Ok(())
        });
        signals.map_err(|error| {
            *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            Error::Interrupted
        })
    };
    let result = py.detach(|| work(Pause(Some(&ask))));
    let raised = raised.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.map_err(|error| raised.unwrap_or_else(|| to_py(error)))
}
