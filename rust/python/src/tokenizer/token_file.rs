//! Files of ids.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bpe_llama::corpus::{Chunk, CorpusReader};
use bpe_llama::{EncodeOptions, TokenFile, Tokenizer};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::PyTokenizer;
use crate::arguments::{List, Specials, Threads, thread_count};
use crate::corpus::{Reading, SkippedRows, skipped_rows};
use crate::error::{detached, to_py};
use crate::interrupt::interruptible;
use crate::named;
use crate::text::Texts;

/// A `.npy` file of ids that documents are appended to; `Tokenizer.encode_files` drives it.
#[pyclass(frozen, name = "TokenFile", module = "bpe_llama._core")]
pub(crate) struct PyTokenFile {
    tokenizer: Arc<Tokenizer>,
    end: Option<u32>,
    threads: usize,
    allowed_special: Specials,
    /// `None` once finished or abandoned.
    file: Mutex<Option<TokenFile>>,
}

impl PyTokenFile {
    /// Calls `work` with the file and its encoding options, without the GIL.
    fn with_file<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut TokenFile, EncodeOptions<'_>) -> bpe_llama::Result<R> + Send,
    ) -> PyResult<R> {
        let done = interruptible(py, |interrupt| {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            self.allowed_special.view(|allowed| {
                let options = EncodeOptions { allowed, eos: self.end, interrupt, ..EncodeOptions::default() };
                file.as_mut().map(|file| work(file, options)).transpose()
            })
        })?;
        done.ok_or_else(|| PyValueError::new_err("the token file is closed"))
    }

    /// Must be called without the GIL: a thread that holds the lock may be waiting for it.
    fn take(&self) -> Option<TokenFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl PyTokenFile {
    #[new]
    fn new(
        py: Python<'_>,
        tokenizer: &PyTokenizer,
        #[pyo3(from_py_with = named::path)] path: PathBuf,
        end: Option<u32>,
        #[pyo3(from_py_with = named::num_threads)] num_threads: Option<Threads>,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
    ) -> PyResult<Self> {
        let tokenizer = tokenizer.shared();
        let ids = tokenizer.vocab_size().max(end.map_or(0, |end| end as usize + 1));
        let file = detached(py, || TokenFile::create(&path, ids))?.map_err(to_py)?;
        Ok(Self { tokenizer, end, threads: thread_count(num_threads), allowed_special, file: Mutex::new(Some(file)) })
    }

    /// Append the documents of files; return how many rows were skipped, and what is wrong with the first.
    fn add_files(
        &self,
        py: Python<'_>,
        paths: List<PathBuf>,
        reading: Reading,
        on_progress: Option<Py<PyAny>>,
    ) -> PyResult<SkippedRows> {
        let tokens = self.tokenizer.added_tokens();
        let special_tokens = tokens.iter().map(|token| token.content.clone()).collect();
        let options = reading.into_core(special_tokens);
        let mut corpus = CorpusReader::new(paths.0, self.tokenizer.pretokenizer().clone(), options).map_err(to_py)?;
        let total = corpus.total_bytes();
        while self
            .with_file(py, |file, options| self.tokenizer.encode_documents(&mut corpus, options, self.threads, file))?
        {
            py.check_signals()?;
            if let Some(on_progress) = &on_progress {
                on_progress.call1(py, ("encode", corpus.bytes_read(), total))?;
            }
        }
        Ok(skipped_rows(corpus.skipped()))
    }

    /// Append texts, each of which is one document.
    fn add_texts(&self, py: Python<'_>, #[pyo3(from_py_with = named::texts)] texts: Texts) -> PyResult<()> {
        let chunk = |text: &str| Chunk { document: 0, text: text.to_owned(), is_last: true };
        let chunks: Vec<Chunk> = texts.iter().map(chunk).collect();
        self.with_file(py, |file, options| self.tokenizer.encode_chunks(&chunks, options, self.threads, file))
    }

    /// Return the number of ids, now that the file stands at its path.
    fn finish(&self, py: Python<'_>) -> PyResult<u64> {
        let finished = detached(py, || self.take().map(TokenFile::finish))?;
        finished.ok_or_else(|| PyValueError::new_err("the token file is closed"))?.map_err(to_py)
    }

    /// Remove what was written.
    fn abandon(&self, py: Python<'_>) {
        py.detach(|| drop(self.take()));
    }
}
