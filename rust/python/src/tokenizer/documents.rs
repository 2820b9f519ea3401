//! Documents of files to ids.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bpe_llama::corpus::CorpusReader;
use bpe_llama::{DocumentEncoder, EncodeOptions, EncodedDocuments};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use super::PyTokenizer;
use crate::arguments::{List, Specials, Threads, prepare_arrays, thread_count};
use crate::corpus::{Reading, SkippedRows, skipped_rows};
use crate::error::to_py;
use crate::interrupt::interruptible;
use crate::named;
use crate::text::Texts;

/// Ids, ends, bytes and files: the fields of `EncodedDocuments`.
type Arrays<'py> =
    (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>);

/// Documents of files to ids, with `begins` and `ends` around each; `Tokenizer.encode_corpus` drives it.
#[pyclass(frozen, name = "DocumentEncoder", module = "bpe_llama._core")]
pub(crate) struct PyDocumentEncoder {
    encoder: Mutex<DocumentEncoder>,
    allowed_special: Specials,
}

impl PyDocumentEncoder {
    /// Calls `work` with the encoder, without the GIL.
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut DocumentEncoder, EncodeOptions<'_>) -> bpe_llama::Result<R> + Send,
    ) -> PyResult<R> {
        interruptible(py, |interrupt| {
            let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
            self.allowed_special
                .view(|allowed| work(&mut encoder, EncodeOptions { allowed, interrupt, ..EncodeOptions::default() }))
        })
    }
}

#[pymethods]
impl PyDocumentEncoder {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "those of the Python class")]
    fn new(
        py: Python<'_>,
        tokenizer: &PyTokenizer,
        paths: List<PathBuf>,
        reading: Reading,
        begins: List<u32>,
        ends: List<u32>,
        #[pyo3(from_py_with = named::num_threads)] num_threads: Option<Threads>,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
    ) -> PyResult<Self> {
        prepare_arrays(py)?;
        let tokenizer = tokenizer.shared();
        let tokens = tokenizer.added_tokens();
        let options = reading.into_core(tokens.iter().map(|token| token.content.clone()).collect());
        let corpus = CorpusReader::new(paths.0, tokenizer.pretokenizer().clone(), options).map_err(to_py)?;
        let encoder = DocumentEncoder::new(tokenizer, corpus, begins.0, ends.0, thread_count(num_threads));
        Ok(Self { encoder: Mutex::new(encoder), allowed_special })
    }

    /// Return the next documents as four arrays, or `None` after the last one.
    ///
    /// They are: the ids, uint32; where each document that ends here ends in them; the bytes of its text, then those of
    /// the document that goes on in the next batch; the index of its file.
    fn next_batch<'py>(&self, py: Python<'py>) -> PyResult<Option<Arrays<'py>>> {
        let encoded = self.with(py, DocumentEncoder::next_batch)?;
        py.check_signals()?;
        Ok(encoded.map(|encoded| arrays(py, encoded)))
    }

    /// Return the arrays of `next_batch` for texts, each of which is one document.
    fn encode_texts<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::texts)] texts: Texts,
    ) -> PyResult<Arrays<'py>> {
        let texts = texts.iter().map(str::to_owned).collect();
        Ok(arrays(py, self.with(py, |encoder, options| encoder.encode_texts(texts, options))?))
    }

    /// Read some of the next documents without encoding them, and return how many are left to skip.
    fn skip(&self, py: Python<'_>, documents: u64) -> PyResult<u64> {
        self.with(py, |encoder, _| encoder.skip(documents))
    }

    /// Return how many bytes of the files were read.
    fn bytes_read(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |encoder, _| Ok(encoder.corpus().bytes_read()))
    }

    /// Return how many rows were skipped, and what is wrong with the first.
    fn skipped(&self, py: Python<'_>) -> PyResult<SkippedRows> {
        self.with(py, |encoder, _| Ok(skipped_rows(encoder.corpus().skipped())))
    }
}

fn arrays(py: Python<'_>, encoded: EncodedDocuments) -> Arrays<'_> {
    let EncodedDocuments { ids, ends, bytes, files } = encoded;
    (ids.into_pyarray(py), ends.into_pyarray(py), bytes.into_pyarray(py), files.into_pyarray(py))
}
