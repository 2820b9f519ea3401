//! Rust errors to Python exceptions, in one place.

use bpe_llama::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyKeyError, PyKeyboardInterrupt, PyOSError, PyValueError};

/// Maps a core error to the Python exception its documentation names.
pub(crate) fn to_py(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::NotFound(_) => PyKeyError::new_err(message),
        // errno and path first, so that Python picks FileNotFoundError and its siblings.
        Error::Io { path, source } => match source.raw_os_error() {
            Some(errno) => {
                // As in Python: errno apart from the message, and the path as a str.
                let words = source.to_string();
                let words = words.strip_suffix(&format!(" (os error {errno})")).unwrap_or(&words);
                PyOSError::new_err((errno, words.to_owned(), path.into_os_string()))
            }
            None => PyOSError::new_err(message),
        },
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        _ => PyValueError::new_err(message),
    }
}

/// Maps an error of the sampler or the kernels to `ValueError`.
pub(crate) fn value_error(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}
