//! Tokenizers in the formats of files, and their parts as JSON.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::PyTokenizer;
use crate::arguments::new_bytes;
use crate::error::{detached, to_py};
use crate::named;

#[pymethods]
impl PyTokenizer {
    /// Return the bytes of a SentencePiece model.
    ///
    /// Args:
    ///     config_beside: Whether a `tokenizer_config.json` beside the file names the added tokens and the
    ///         post-processor that a model does not hold.
    ///
    /// Raises:
    ///     ValueError: If this tokenizer keeps no model; or if it has such a token or post-processor, and
    ///         `config_beside` is false. The message names why.
    #[pyo3(signature = (*, config_beside=false))]
    fn to_sentencepiece<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::config_beside)] config_beside: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        new_bytes(py, self.inner.to_sentencepiece(config_beside).map_err(to_py)?)
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

    /// Raise `ValueError` if tiktoken cannot express this tokenizer; the message names why.
    fn check_tiktoken(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, || self.inner.check_tiktoken())?.map_err(to_py)
    }

    /// Return tiktoken's list of ranks: a line with a token's bytes in base64 and its rank, in order.
    ///
    /// Raises:
    ///     ValueError: As `check_tiktoken`.
    fn to_tiktoken(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || self.inner.to_tiktoken())?.map_err(to_py)
    }
}
