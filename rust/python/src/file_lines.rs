//! A file's lines, decompressed.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bpe_llama::documents::FileLines;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::to_py;

#[pyclass(frozen, name = "FileLines", module = "bpe_llama._core")]
pub(crate) struct PyFileLines(Mutex<FileLines>);

#[pymethods]
impl PyFileLines {
    #[new]
    fn new(path: PathBuf) -> PyResult<Self> {
        FileLines::open(&path).map(|lines| Self(Mutex::new(lines))).map_err(to_py)
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let line = py.detach(|| self.0.lock().unwrap_or_else(PoisonError::into_inner).next());
        Ok(line.transpose().map_err(to_py)?.map(|line| PyBytes::new(py, &line)))
    }
}
