//! Ids to text, incrementally.

use std::sync::{Arc, Mutex, PoisonError};

use bpe_llama::Tokenizer;
use pyo3::prelude::*;

use crate::arguments::extract_id;
use crate::error::to_py;

/// Text from ids that come one at a time; made by `Tokenizer.decode_stream`.
#[pyclass(frozen, module = "bpe_llama._core")]
pub(crate) struct DecodeStream {
    tokenizer: Arc<Tokenizer>,
    state: Mutex<bpe_llama::DecodeStream>,
}

impl DecodeStream {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let state = Mutex::new(tokenizer.decode_stream(skip_special));
        Self { tokenizer, state }
    }
}

#[pymethods]
impl DecodeStream {
    /// Return the text that is complete now that this id has come; `KeyError` for an id that no token has.
    fn push(&self, id: &Bound<'_, PyAny>) -> PyResult<String> {
        let id = extract_id(id)?;
        self.state.lock().unwrap_or_else(PoisonError::into_inner).push(&self.tokenizer, id).map_err(to_py)
    }

    /// Return what was held back: U+FFFD for a character that never ended, or nothing.
    fn flush(&self) -> PyResult<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).flush(&self.tokenizer).map_err(to_py)
    }
}
