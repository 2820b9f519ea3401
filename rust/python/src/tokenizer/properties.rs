//! Tokens by id and name, and the properties of a tokenizer.

use bpe_llama::AddedToken;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use super::PyTokenizer;
use crate::arguments::extract_id;
use crate::error::to_py;
use crate::interrupt::list;
use crate::named::{self, wrong_type, wrong_value};

/// The smallest limit on the cache, in bytes.
const MIN_CACHE: usize = 1 << 20;

impl PyTokenizer {
    pub(super) fn token_bytes<'py>(&self, py: Python<'py>, id: u32) -> PyResult<Bound<'py, PyBytes>> {
        self.inner.id_to_bytes(id).map(|bytes| PyBytes::new(py, bytes)).map_err(to_py)
    }

    /// Returns the added tokens that `want` selects, with their ids.
    fn added<'py>(&self, py: Python<'py>, want: impl Fn(&AddedToken) -> bool) -> PyResult<Bound<'py, PyDict>> {
        let tokens = PyDict::new(py);
        for token in self.inner.added_tokens().iter().filter(|token| want(token)) {
            tokens.set_item(&token.content, token.id)?;
        }
        Ok(tokens)
    }
}

#[pymethods]
impl PyTokenizer {
    fn id_to_token(&self, id: &Bound<'_, PyAny>) -> PyResult<String> {
        self.inner.id_to_token(extract_id(id)?).map_err(to_py)
    }

    fn __len__(&self) -> usize {
        self.inner.token_count()
    }

    fn id_to_bytes<'py>(&self, py: Python<'py>, id: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        self.token_bytes(py, extract_id(id)?)
    }

    fn token_to_id(&self, token: &Bound<'_, PyAny>) -> PyResult<Option<u32>> {
        if let Ok(text) = token.cast::<PyString>() {
            return Ok(self.inner.token_to_id(&text.to_cow()?));
        }
        let bytes = token.cast::<PyBytes>().map_err(|_| wrong_type("token", "bytes or a str", token))?;
        Ok(self.inner.bytes_to_id(bytes.as_bytes()))
    }

    #[getter]
    fn mergeable_ranks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let ranks = PyDict::new(py);
        for (token, id) in self.inner.tokens() {
            ranks.set_item(PyBytes::new(py, token), id)?;
        }
        Ok(ranks)
    }

    #[getter]
    fn merges<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let pairs = self.inner.merges().into_iter();
        let bytes = |id| self.token_bytes(py, id);
        list(py, pairs.map(|(left, right)| Ok((bytes(left)?, bytes(right)?))))
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    #[getter]
    fn pattern(&self) -> &str {
        self.inner.pretokenizer().pattern()
    }

    #[getter]
    fn pattern_name(&self) -> Option<&str> {
        self.inner.pretokenizer().name()
    }

    #[getter]
    fn special_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.added(py, |token| token.special)
    }

    #[getter]
    fn added_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.added(py, |_| true)
    }

    #[getter]
    fn cache_bytes(&self) -> usize {
        self.inner.cache_limit()
    }

    #[setter]
    fn set_cache_bytes(&self, bytes: &Bound<'_, PyAny>) -> PyResult<()> {
        let limit = named::cache_bytes::<usize>(bytes)?;
        if limit < MIN_CACHE {
            return Err(wrong_value("cache_bytes", &format!("at least {MIN_CACHE}"), bytes));
        }
        self.inner.set_cache_limit(limit);
        Ok(())
    }

    #[getter]
    fn bos_id(&self) -> Option<u32> {
        self.inner.bos_id()
    }

    #[getter]
    fn eos_id(&self) -> Option<u32> {
        self.inner.eos_id()
    }

    #[getter]
    fn pad_id(&self) -> Option<u32> {
        self.inner.special_ids().pad
    }

    #[getter]
    fn unk_id(&self) -> Option<u32> {
        self.inner.special_ids().unk
    }

    #[getter]
    fn pipeline(&self) -> &'static str {
        if self.inner.general_because().is_some() { "general" } else { "fast" }
    }

    #[getter]
    fn normalizes_added_tokens(&self) -> bool {
        self.inner.normalizes_added_tokens()
    }

    #[getter]
    fn general_because(&self) -> Option<&str> {
        self.inner.general_because()
    }
}
