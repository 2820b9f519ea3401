//! `Tokenizer`. Every file converts the arguments and results of one group of its methods.

mod build;
mod decode;
pub(crate) mod decode_stream;
pub(crate) mod documents;
mod encode;
mod ids;
pub(crate) mod pretokenize;
mod properties;
mod save;
pub(crate) mod token_file;

use std::sync::Arc;

use bpe_llama::Tokenizer;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use self::ids::IdInts;

#[pyclass(frozen, subclass, name = "Tokenizer", module = "bpe_llama._core")]
pub(crate) struct PyTokenizer {
    inner: Arc<Tokenizer>,
    ints: Arc<IdInts>,
}

impl PyTokenizer {
    pub(crate) fn new(inner: Tokenizer) -> Self {
        Self { ints: Arc::new(IdInts::new(inner.vocab_size())), inner: Arc::new(inner) }
    }

    pub(crate) fn shared(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.inner)
    }

    /// Returns ids as a Python list.
    fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        self.ints.list(py, ids)
    }
}

#[pymethods]
impl PyTokenizer {
    #[new]
    #[pyo3(signature = (core, **_attributes))]
    fn py_new(core: &Self, _attributes: Option<&Bound<'_, PyDict>>) -> Self {
        Self { inner: Arc::clone(&core.inner), ints: Arc::clone(&core.ints) }
    }
}
