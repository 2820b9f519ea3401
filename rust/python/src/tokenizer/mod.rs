//! `Tokenizer`. Every file converts the arguments and results of one group of its methods.

mod build;
mod decode;
pub(crate) mod decode_stream;
pub(crate) mod documents;
mod encode;
mod encode_batch;
mod ids;
pub(crate) mod pretokenize;
mod properties;
mod save;

use std::sync::Arc;

use bpe_llama::Tokenizer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use self::ids::IdInts;
use crate::named::wrong_type;

/// The compiled tokenizer. Users have its subclass `bpe_llama.Tokenizer`, whose class methods make one.
///
/// Where a text is taken, a `str` with lone surrogates is encoded as tiktoken does: as U+FFFD. `allowed_special`
/// is a collection of special tokens, `disallowed_special` of strings; either may be `"all"` special tokens.
///
/// Example:
///     >>> from bpe_llama import Tokenizer
///     >>> tok = Tokenizer.train_from_iterator(["low lower lowest"] * 3, vocab_size=260, progress=False)
///     >>> tok.encode("low"), tok.vocab_size
///     ([257], 260)
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
    #[pyo3(signature = (core=None, **_attributes), text_signature = "(core, **_attributes)")]
    fn py_new(core: Option<&Bound<'_, PyAny>>, _attributes: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let expected = "a tokenizer, which Tokenizer.from_file, from_pretrained, from_name and train return";
        let Some(given) = core else {
            return Err(PyTypeError::new_err(format!("core is missing; expected {expected}")));
        };
        let core = given.cast::<Self>().map_err(|_| wrong_type("core", expected, given))?.get();
        Ok(Self { inner: Arc::clone(&core.inner), ints: Arc::clone(&core.ints) })
    }
}
