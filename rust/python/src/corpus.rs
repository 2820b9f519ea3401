//! Files as documents and lines.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bpe_llama::Interrupt;
use bpe_llama::corpus::{CorpusOptions, FileLines, OnError, Skipped};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arguments::new_bytes;
use crate::error::to_py;
use crate::interrupt::interruptible;
use crate::named::{self, item};

/// The number of rows skipped, and the error message of the first.
pub(crate) type SkippedRows = (u64, Option<String>);

/// Returns the skipped rows as Python expects them.
pub(crate) fn skipped_rows(skipped: &Skipped) -> SkippedRows {
    (skipped.rows, skipped.first.clone())
}

/// How files are read as documents: a dict on the Python side.
pub(crate) struct Reading {
    separator: Option<String>,
    field: String,
    skips_bad_rows: bool,
}

impl<'py> FromPyObject<'_, 'py> for Reading {
    type Error = PyErr;

    fn extract(dict: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self {
            separator: item(dict, "separator")?,
            field: item(dict, "field")?,
            skips_bad_rows: item(dict, "skips_bad_rows")?,
        })
    }
}

impl Reading {
    pub(crate) fn into_core(self, special_tokens: Vec<String>) -> CorpusOptions {
        let on_error = if self.skips_bad_rows { OnError::Skip } else { OnError::Raise };
        CorpusOptions { separator: self.separator, field: self.field, special_tokens, on_error }
    }
}

/// The lines of a file, bytes with their ends, decompressed where its name ends in `.gz` or `.zst`.
#[pyclass(frozen, name = "FileLines", module = "bpe_llama._core")]
pub(crate) struct PyFileLines(Mutex<FileLines>);

#[pymethods]
impl PyFileLines {
    #[new]
    fn new(#[pyo3(from_py_with = named::path)] path: PathBuf) -> PyResult<Self> {
        FileLines::open(&path).map(|lines| Self(Mutex::new(lines))).map_err(to_py)
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let next =
            |interrupt: Interrupt<'_>| self.0.lock().unwrap_or_else(PoisonError::into_inner).next_line(interrupt);
        interruptible(py, next)?.map(|line| new_bytes(py, &line)).transpose()
    }
}

/// Adds the names of this file to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyFileLines>()
}
