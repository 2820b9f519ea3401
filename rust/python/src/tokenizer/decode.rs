//! Ids to text.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use super::PyTokenizer;
use super::decode_stream::DecodeStream;
use crate::arguments::{Errors, IdRows, new_bytes, read_ids};
use crate::interrupt::interruptible_if_long;
use crate::named;

impl PyTokenizer {
    /// Returns the ids of an argument, up to the first that is out of range.
    fn read_ids(&self, value: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        read_ids(value, self.inner.vocab_size())
    }

    fn decode_text<'py>(
        &self,
        py: Python<'py>,
        ids: &[u32],
        errors: &str,
        skip: bool,
    ) -> PyResult<Bound<'py, PyString>> {
        if errors == "replace" {
            let text =
                interruptible_if_long(py, ids.len() * 4, |interrupt| self.inner.decode_lossy(ids, skip, interrupt))?;
            return Ok(PyString::new(py, &text));
        }
        let bytes = interruptible_if_long(py, ids.len() * 4, |interrupt| self.inner.decode(ids, skip, interrupt))?;
        if let Ok(text) = std::str::from_utf8(&bytes) {
            return Ok(PyString::new(py, text));
        }
        Ok(PyBytes::new(py, &bytes).call_method1("decode", ("utf-8", errors))?.cast_into()?)
    }
}

#[pymethods]
impl PyTokenizer {
    /// Return the text of ids.
    ///
    /// Args:
    ///     ids: Any iterable of ints: a list, a NumPy array, a tensor of one dimension.
    ///     errors: What becomes of bytes that are no UTF-8, as in `bytes.decode`.
    ///     skip_special_tokens: Leave special tokens out.
    ///
    /// Raises:
    ///     KeyError: For an id that no token has.
    ///     TypeError: If `ids` is no iterable of ints.
    ///     ValueError: If there is no error handler called `errors`.
    ///     UnicodeDecodeError: With `errors="strict"`, for bytes that are no UTF-8.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.decode([257, 220, 257])
    ///     'low low'
    #[pyo3(
        signature = (ids, errors=Errors::default(), *, skip_special_tokens=false),
        text_signature = "($self, ids, errors='replace', *, skip_special_tokens=False)"
    )]
    fn decode<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = named::errors)] errors: Errors<'_>,
        #[pyo3(from_py_with = named::skip_special_tokens)] skip_special_tokens: bool,
    ) -> PyResult<Bound<'py, PyString>> {
        self.decode_text(py, &self.read_ids(ids)?, &errors, skip_special_tokens)
    }

    /// Return the bytes of ids; `KeyError` for an id that no token has.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.decode_bytes([257])
    ///     b'low'
    fn decode_bytes<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let ids = self.read_ids(ids)?;
        let bytes = interruptible_if_long(py, ids.len() * 4, |interrupt| self.inner.decode(&ids, false, interrupt))?;
        new_bytes(py, &bytes)
    }

    /// Return the text of each row of ids, as `decode` does.
    ///
    /// Rows come from any iterable, a 2-D array, a tensor or a generator among them. An error names the row.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.decode_batch([[257], [257, 220, 257]])
    ///     ['low', 'low low']
    #[pyo3(
        signature = (batch, errors=Errors::default(), *, skip_special_tokens=false),
        text_signature = "($self, batch, errors='replace', *, skip_special_tokens=False)"
    )]
    fn decode_batch<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::batch)] batch: IdRows<'py>,
        #[pyo3(from_py_with = named::errors)] errors: Errors<'_>,
        #[pyo3(from_py_with = named::skip_special_tokens)] skip_special_tokens: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, batch.map(|row| self.decode_text(py, &self.read_ids(row)?, &errors, skip_special_tokens))?)
    }

    /// Return a decoder that takes ids one at a time and holds back characters not yet complete.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> stream = tok.decode_stream()
    ///     >>> [stream.push(id) for id in tok.encode("é!")], stream.flush()
    ///     (['', 'é', '!'], '')
    #[pyo3(signature = (*, skip_special_tokens=false))]
    fn decode_stream(
        &self,
        #[pyo3(from_py_with = named::skip_special_tokens)] skip_special_tokens: bool,
    ) -> DecodeStream {
        DecodeStream::new(Arc::clone(&self.inner), skip_special_tokens)
    }
}
