//! Ids to text, incrementally.

use std::sync::{Arc, Mutex, PoisonError};

use bpe_llama::Tokenizer;
use pyo3::prelude::*;

use crate::arguments::extract_id;
use crate::error::to_py;

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
    fn push(&self, id: &Bound<'_, PyAny>) -> PyResult<String> {
        let id = extract_id(id)?;
        self.state.lock().unwrap_or_else(PoisonError::into_inner).push(&self.tokenizer, id).map_err(to_py)
    }

    fn flush(&self) -> PyResult<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).flush(&self.tokenizer).map_err(to_py)
    }
}
