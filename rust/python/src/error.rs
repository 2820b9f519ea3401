//! Converts Rust errors to Python exceptions.

use std::any::Any;
use std::fmt::Display;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bpe_llama::Error;
use pyo3::exceptions::{PyKeyError, PyKeyboardInterrupt, PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// Converts an error of the tokenizer to the exception that its documentation names.
#[cold]
#[inline(never)]
pub(crate) fn to_py(error: Error) -> PyErr {
    let message = shortened(error.to_string());
    match error {
        Error::NotFound(_) => PyKeyError::new_err(message),
        // With errno first, OSError becomes FileNotFoundError or another subclass.
        Error::Io { path, source } => match source.raw_os_error() {
            Some(errno) => {
                // Python's own messages have the errno in front, so the suffix with it goes.
                let text = source.to_string();
                let text = text.strip_suffix(&format!(" (os error {errno})")).unwrap_or(&text);
                PyOSError::new_err((errno, text.to_owned(), path.into_os_string()))
            }
            None if source.kind() == ErrorKind::OutOfMemory => PyMemoryError::new_err(message),
            None => PyOSError::new_err(message),
        },
        Error::OutOfMemory(_) => PyMemoryError::new_err(message),
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        _ => PyValueError::new_err(message),
    }
}

/// Returns the message of an error, of a long one the two ends: it may repeat a text that a caller or a file gave.
fn shortened(message: String) -> String {
    const LONGEST: usize = 4000;
    let length = message.chars().count();
    if length <= LONGEST {
        return message;
    }
    let start: String = message.chars().take(LONGEST / 2).collect();
    let end: String = message.chars().skip(length - LONGEST / 2).collect();
    format!("{start} ... {end}")
}

/// Converts an error of the sampler or the kernels, which only report invalid arguments.
pub(crate) fn value_error(error: impl Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Returns what the core's `work` returns, or an exception where it unwinds: `MemoryError`, or `RuntimeError` for a panic.
///
/// `PyO3` would raise `PanicException`, which `except Exception` does not catch.
pub(crate) fn caught<R>(work: impl FnOnce() -> R) -> PyResult<R> {
    // What is unwound stays consistent: locks are taken whether poisoned or not, and half-made results are dropped.
    catch_unwind(AssertUnwindSafe(work)).map_err(unwound)
}

/// As [`caught`], without the GIL.
pub(crate) fn detached<R: Send>(py: Python<'_>, work: impl FnOnce() -> R + Send) -> PyResult<R> {
    py.detach(|| caught(work))
}

/// The size below which a kernel returns before another thread could use the GIL.
const RELEASE_SIZE: usize = 1 << 15;

/// Runs a kernel; without the GIL, unless its input, of `size` elements or bytes, is small.
pub(crate) fn run_kernel<E: Display + Send>(
    py: Python<'_>,
    size: usize,
    work: impl FnOnce() -> Result<(), E> + Send,
) -> PyResult<()> {
    if size < RELEASE_SIZE { caught(work) } else { detached(py, work) }?.map_err(value_error)
}

#[cold]
fn unwound(payload: Box<dyn Any + Send>) -> PyErr {
    let payload = match payload.downcast::<Error>() {
        Ok(error) => return to_py(*error),
        Err(payload) => payload,
    };
    let message =
        payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("no message");
    PyRuntimeError::new_err(format!("the core panicked, which is a bug in bpe_llama; please report it: {message}"))
}
