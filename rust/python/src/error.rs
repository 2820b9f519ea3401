//! Converts Rust errors to Python exceptions.

use bpe_llama::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyKeyError, PyKeyboardInterrupt, PyMemoryError, PyOSError, PyValueError};

/// Converts an error of the tokenizer to the exception that its documentation names.
pub(crate) fn to_py(error: Error) -> PyErr {
    let message = error.to_string();
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
            None => PyOSError::new_err(message),
        },
        Error::OutOfMemory(_) => PyMemoryError::new_err(message),
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        _ => PyValueError::new_err(message),
    }
}

/// Converts an error of the sampler or the kernels, which only report invalid arguments.
pub(crate) fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}
