//! Ids to text one at a time, for streaming.

use std::sync::{Arc, Mutex, PoisonError};

use bpe_llama::{Tokenizer, Utf8Stream};
use pyo3::prelude::*;

use crate::arguments::extract_id;
use crate::error::to_py;

#[pyclass(frozen, module = "bpe_llama._core")]
pub(crate) struct DecodeStream {
    tokenizer: Arc<Tokenizer>,
    state: Mutex<Utf8Stream>,
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
        let bytes = self.tokenizer.id_to_bytes(extract_id(id)?).map_err(to_py)?;
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner).push(bytes))
    }

    fn flush(&self) -> String {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}
