//! Tokens by id and name, and the properties of a tokenizer.

use bpe_llama::AddedToken;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use super::PyTokenizer;
use crate::arguments::extract_id;
use crate::error::to_py;
use crate::interrupt::list;
use crate::named::{self, Argument, wrong_type, wrong_value};

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
    /// Return the name of a token as a `tokenizer.json` spells it; `KeyError` for an id that no token has.
    ///
    /// An added token is its text; others are spelled in GPT-2's byte alphabet, or with `▁` for a space.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.id_to_token(220)
    ///     'Ġ'
    fn id_to_token(&self, id: &Bound<'_, PyAny>) -> PyResult<String> {
        self.inner.id_to_token(extract_id(id)?).map_err(to_py)
    }

    /// Return the number of tokens, added ones included.
    fn __len__(&self) -> usize {
        self.inner.token_count()
    }

    /// Return the bytes of one token, special or not; `KeyError` for an id that no token has.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.id_to_bytes(257)
    ///     b'low'
    fn id_to_bytes<'py>(&self, py: Python<'py>, id: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        self.token_bytes(py, extract_id(id)?)
    }

    /// Return the id of a token, special or not, or `None`.
    ///
    /// Bytes are what the token stands for. A `str` is its name, as `id_to_token` gives it: the text of an added token
    /// first, then `Ġw` or `▁w` as a `tokenizer.json` spells it. Where no token is called so, it is text.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.token_to_id("low"), tok.token_to_id(b" "), tok.token_to_id("high")
    ///     (257, 220, None)
    fn token_to_id(&self, token: &Bound<'_, PyAny>) -> PyResult<Option<u32>> {
        if token.is_instance_of::<PyString>() {
            return Ok(self.inner.token_to_id(<&str>::read("token", token)?));
        }
        let bytes = token.cast::<PyBytes>().map_err(|_| wrong_type("token", "bytes or a str", token))?;
        Ok(self.inner.bytes_to_id(bytes.as_bytes()))
    }

    /// Token bytes to id, special tokens left out.
    #[getter]
    fn mergeable_ranks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let ranks = PyDict::new(py);
        for (token, id) in self.inner.tokens() {
            ranks.set_item(PyBytes::new(py, token), id)?;
        }
        Ok(ranks)
    }

    /// The merges, best first.
    #[getter]
    fn merges<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let pairs = self.inner.merges().into_iter();
        let bytes = |id| self.token_bytes(py, id);
        list(py, pairs.map(|(left, right)| Ok((bytes(left)?, bytes(right)?))))
    }

    /// The largest id plus one, special tokens included: the rows an embedding needs.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    /// The regex whose matches are the pieces.
    #[getter]
    fn pattern(&self) -> &str {
        self.inner.pretokenizer().pattern()
    }

    /// The name of the pattern, such as `"cl100k"`, if it has one.
    #[getter]
    fn pattern_name(&self) -> Option<&str> {
        self.inner.pretokenizer().name()
    }

    /// Special tokens to id.
    #[getter]
    fn special_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.added(py, |token| token.special)
    }

    /// Special tokens to id, and what else a `tokenizer.json` adds to its vocabulary: always found in text.
    #[getter]
    fn added_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.added(py, |_| true)
    }

    /// About how many bytes each encoding thread may use to remember pieces: 60 MiB unless set, at least 1 MiB.
    ///
    /// A small text uses little of it. Setting it forgets what is remembered; ids never depend on it.
    ///
    /// Raises:
    ///     ValueError: When set below 1 MiB.
    #[getter]
    fn cache_bytes(&self) -> usize {
        self.inner.cache_limit()
    }

    #[setter]
    fn set_cache_bytes(&self, bytes: &Bound<'_, PyAny>) -> PyResult<()> {
        let limit = if bytes.lt(0).unwrap_or(false) { 0 } else { named::cache_bytes::<usize>(bytes)? };
        if limit < MIN_CACHE {
            return Err(wrong_value("cache_bytes", &format!("at least {MIN_CACHE}"), bytes));
        }
        self.inner.set_cache_limit(limit);
        Ok(())
    }

    /// The id that begins a text.
    #[getter]
    fn bos_id(&self) -> Option<u32> {
        self.inner.bos_id()
    }

    /// The id that ends a text.
    #[getter]
    fn eos_id(&self) -> Option<u32> {
        self.inner.eos_id()
    }

    /// The id that fills short rows, where the tokenizer's files name one.
    #[getter]
    fn pad_id(&self) -> Option<u32> {
        self.inner.special_ids().pad
    }

    /// The id that stands for what no token does, where the tokenizer's files name one.
    #[getter]
    fn unk_id(&self) -> Option<u32> {
        self.inner.special_ids().unk
    }

    /// How text is encoded: `"fast"`, or `"general"`, step by step as a `tokenizer.json` spells it.
    ///
    /// Both give the same ids; `general_because` says which part of the file no faster way is known for.
    #[getter]
    fn pipeline(&self) -> &'static str {
        if self.inner.general_because().is_some() { "general" } else { "fast" }
    }

    /// Whether added tokens may be looked for in normalized text.
    #[getter]
    fn normalizes_added_tokens(&self) -> bool {
        self.inner.normalizes_added_tokens()
    }

    /// The part of the tokenizer's file for which `pipeline` is `"general"`, or `None`.
    #[getter]
    fn general_because(&self) -> Option<&str> {
        self.inner.general_because()
    }
}
