//! Ids to text one at a time, for streaming.

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
    pub(crate) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let state = Mutex::new(tokenizer.decode_stream());
        Self { tokenizer, state }
    }
}

#[pymethods]
impl DecodeStream {
    fn push(&self, id: &Bound<'_, PyAny>) -> PyResult<String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.tokenizer.decode_next(&mut state, extract_id(id)?).map_err(to_py)
    }

    fn flush(&self) -> String {
        self.tokenizer.decode_end(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
