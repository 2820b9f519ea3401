//! Tokenizers to files, and their parts as JSON.

use std::path::PathBuf;

use bpe_llama::write_atomically;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::PyTokenizer;
use crate::error::to_py;
use crate::named;

#[pymethods]
impl PyTokenizer {
    fn save_sentencepiece(&self, py: Python<'_>, #[pyo3(from_py_with = named::path)] path: PathBuf) -> PyResult<()> {
        let save = || write_atomically(&path, self.inner.to_sentencepiece()?);
        py.detach(save).map_err(to_py)
    }

    fn sentencepiece_model<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.inner.sentencepiece_model().map(|model| PyBytes::new(py, model))
    }

    fn added_tokens_json(&self) -> PyResult<String> {
        self.inner.added_tokens_json().map_err(to_py)
    }

    fn components_json(&self) -> Option<String> {
        self.inner.components_json()
    }

    fn template(&self, pair: bool) -> Vec<(Option<u32>, Option<&'static str>, Option<u32>)> {
        self.inner.template_items(pair)
    }

    fn to_own_json(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.inner.to_own_json()).map_err(to_py)
    }

    fn to_huggingface(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.inner.to_huggingface()).map_err(to_py)
    }

    fn save_huggingface(&self, py: Python<'_>, #[pyo3(from_py_with = named::path)] path: PathBuf) -> PyResult<()> {
        let save = || write_atomically(&path, self.inner.to_huggingface()?.as_bytes());
        py.detach(save).map_err(to_py)
    }

    fn check_tiktoken(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.check_tiktoken()).map_err(to_py)
    }

    fn save_tiktoken(&self, py: Python<'_>, #[pyo3(from_py_with = named::path)] path: PathBuf) -> PyResult<()> {
        let save = || write_atomically(&path, self.inner.to_tiktoken()?.as_bytes());
        py.detach(save).map_err(to_py)
    }
}
