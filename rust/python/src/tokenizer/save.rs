//! Tokenizers to files, and their parts as JSON.

use std::path::PathBuf;

use bpe_llama::write_atomically;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::PyTokenizer;
use crate::error::{detached, to_py};
use crate::named;

#[pymethods]
impl PyTokenizer {
    /// Write a SentencePiece model; `Tokenizer.save` calls this for a path that ends in `.model`.
    fn save_sentencepiece(&self, py: Python<'_>, #[pyo3(from_py_with = named::path)] path: PathBuf) -> PyResult<()> {
        let save = || write_atomically(&path, self.inner.to_sentencepiece()?);
        detached(py, save)?.map_err(to_py)
    }

    /// Return the SentencePiece model that encodes, where byte-level merging cannot express it; else `None`.
    fn sentencepiece_model<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.inner.sentencepiece_model().map(|model| PyBytes::new(py, model))
    }

    /// Return the added tokens as a `tokenizer.json` lists them.
    fn added_tokens_json(&self) -> PyResult<String> {
        self.inner.added_tokens_json().map_err(to_py)
    }

    /// Return what a `tokenizer.json` said beyond tokens and merges, or `None` if it was read from none.
    ///
    /// As JSON: `truncation`, `padding`, `normalizer`, `pre_tokenizer` and `ignore_merges`.
    fn components_json(&self) -> Option<String> {
        self.inner.components_json()
    }

    /// Return what the post-processor makes of a text or a pair, in order.
    ///
    /// Each place is a special token's id, or `"A"` or `"B"` for a text; and its type id, `None` where the texts have 0
    /// and 1.
    fn template(
        &self,
        #[pyo3(from_py_with = named::pair)] pair: bool,
    ) -> Vec<(Option<u32>, Option<&'static str>, Option<u32>)> {
        self.inner.template_items(pair)
    }

    /// Return a `tokenizer.json` for `build_from_own_json` alone, which can hold any tokenizer.
    fn to_own_json(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || self.inner.to_own_json())?.map_err(to_py)
    }

    /// Return the text of a `tokenizer.json`, which gives the same ids in `tokenizers` and transformers.
    ///
    /// Raises:
    ///     ValueError: If the format cannot express this tokenizer; the message names why.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
    ///     >>> import json
    ///     >>> json.loads(tok.to_huggingface())["model"]["type"]
    ///     'BPE'
    fn to_huggingface(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || self.inner.to_huggingface())?.map_err(to_py)
    }

    /// Write a `tokenizer.json`, atomically; `Tokenizer.save` calls this for a path that ends in `.json`.
    ///
    /// Raises:
    ///     ValueError: As `to_huggingface`.
    fn save_huggingface(&self, py: Python<'_>, #[pyo3(from_py_with = named::path)] path: PathBuf) -> PyResult<()> {
        let save = || write_atomically(&path, self.inner.to_huggingface()?.as_bytes());
        detached(py, save)?.map_err(to_py)
    }

    /// Raise `ValueError` if tiktoken cannot express this tokenizer; the message names why.
    fn check_tiktoken(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || self.inner.check_tiktoken())?.map_err(to_py)
    }

    /// Write a list of ranks, atomically; `Tokenizer.save` calls this for a path that ends in `.tiktoken`.
    ///
    /// Raises:
    ///     ValueError: As `check_tiktoken`.
    fn save_tiktoken(&self, py: Python<'_>, #[pyo3(from_py_with = named::path)] path: PathBuf) -> PyResult<()> {
        let save = || write_atomically(&path, self.inner.to_tiktoken()?.as_bytes());
        detached(py, save)?.map_err(to_py)
    }
}
