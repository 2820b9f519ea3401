//! Word counts and training.

use std::borrow::Borrow;
use std::path::PathBuf;

use bpe_llama::Result;
use bpe_llama::corpus::{CorpusReader, Skipped};
use bpe_llama::pretokenize::Pretokenizer;
use bpe_llama::train::{Batch, OnProgress, Progress, TieOrder, TrainOptions, WordCounts as Counts};
use bpe_llama::train::{count_batches, count_files, train};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyTuple};

use crate::arguments::{List, Threads, new_bytes, thread_count};
use crate::corpus::{Reading, SkippedRows, skipped_rows};
use crate::error::{detached, to_py};
use crate::interrupt::{PendingError, interruptible};
use crate::named::{self, item, wrong_type};
use crate::text::{Text, iter_texts};
use crate::tokenizer::PyTokenizer;

/// Runs `work` without the GIL. Its function reports progress and checks signals; a Python exception in it is raised.
fn run<T: Send>(
    py: Python<'_>,
    on_progress: Option<&Py<PyAny>>,
    work: impl FnOnce(OnProgress<'_>, &PendingError) -> Result<T> + Send,
) -> PyResult<T> {
    let pending = PendingError::default();
    let result = detached(py, || {
        let mut on_progress = |progress| {
            Python::attach(|py| pending.store(py.check_signals().and_then(|()| report(py, on_progress, progress))))
        };
        work(&mut on_progress, &pending)
    })?;
    pending.raise(result)
}

fn report(py: Python<'_>, on_progress: Option<&Py<PyAny>>, progress: Progress) -> PyResult<()> {
    let Some(on_progress) = on_progress else { return Ok(()) };
    match progress {
        Progress::Counting { bytes, read, total } => on_progress.call1(py, ("count", read.unwrap_or(bytes), total)),
        Progress::Merging { done, total } => on_progress.call1(py, ("merge", done, total)),
        _ => return Ok(()),
    }?;
    Ok(())
}

/// What determines the words of a text, and the number of threads: a dict on the Python side.
struct Splitting {
    pattern: String,
    special_tokens: Vec<String>,
    num_threads: Option<Threads>,
}

impl<'py> FromPyObject<'_, 'py> for Splitting {
    type Error = PyErr;

    fn extract(dict: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self {
            pattern: item(dict, "pattern")?,
            special_tokens: item(dict, "special_tokens")?,
            num_threads: item(dict, "num_threads")?,
        })
    }
}

fn from_files(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    splitting: Splitting,
    reading: Reading,
    on_progress: Option<&Py<PyAny>>,
) -> PyResult<(Counts, Skipped)> {
    run(py, on_progress, |on_progress, _| {
        let splitter = Pretokenizer::new(&splitting.pattern)?;
        let num_threads = thread_count(splitting.num_threads);
        let mut corpus = CorpusReader::new(paths, splitter, reading.into_core(splitting.special_tokens))?;
        let counts = count_files(&mut corpus, num_threads, on_progress)?;
        Ok((counts, corpus.skipped().clone()))
    })
}

fn from_iterator(texts: &Bound<'_, PyAny>, splitting: &Splitting, on_progress: Option<&Py<PyAny>>) -> PyResult<Counts> {
    let iterator = iter_texts("texts", texts)?.unbind();
    let mut index = 0;
    run(texts.py(), on_progress, |on_progress, pending| {
        let mut next_batch = || {
            let batch = Python::attach(|py| fill_batch(iterator.bind(py), &mut index));
            pending.store(batch).map(|batch| (!batch.is_empty()).then_some(batch))
        };
        let splitter = Pretokenizer::new(&splitting.pattern)?;
        count_batches(
            &splitter,
            &splitting.special_tokens,
            thread_count(splitting.num_threads),
            &mut next_batch,
            on_progress,
        )
    })
}

/// Moves texts from the iterator to a batch until it is full.
fn fill_batch(iterator: &Bound<'_, PyIterator>, index: &mut usize) -> PyResult<Batch> {
    let mut batch = Batch::default();
    for text in iterator.clone() {
        batch.push(&Text::of(&text?, |text| wrong_type(&format!("texts[{index}]"), "a str", text))?);
        *index += 1;
        if batch.is_full() {
            break;
        }
    }
    Ok(batch)
}

/// What to train: a dict on the Python side.
struct Options {
    vocab_size: usize,
    num_special_tokens: usize,
    min_frequency: u64,
    max_token_length: Option<usize>,
    ties_by_byte_value: bool,
    base: Option<Py<PyTokenizer>>,
}

impl<'py> FromPyObject<'_, 'py> for Options {
    type Error = PyErr;

    fn extract(dict: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self {
            vocab_size: item(dict, "vocab_size")?,
            num_special_tokens: item(dict, "num_special_tokens")?,
            min_frequency: item(dict, "min_frequency")?,
            max_token_length: item(dict, "max_token_length")?,
            ties_by_byte_value: item(dict, "ties_by_byte_value")?,
            base: dict.get_item("base")?.extract()?,
        })
    }
}

impl Options {
    /// Converts the options and checks them.
    fn into_core(self) -> PyResult<TrainOptions> {
        let options = self;
        let options = TrainOptions {
            vocab_size: options.vocab_size,
            special_tokens: options.num_special_tokens,
            min_frequency: options.min_frequency,
            max_token_length: options.max_token_length,
            tie_order: if options.ties_by_byte_value { TieOrder::ByteValues } else { TieOrder::Ids },
            base: options.base.map(|base| base.get().shared().base()).transpose().map_err(to_py)?,
        };
        options.check().map_err(to_py)?;
        Ok(options)
    }
}

/// Tokens by id, and merges as pairs of ids.
type Vocabulary<'py> = (Vec<Bound<'py, PyBytes>>, Vec<Bound<'py, PyTuple>>);

/// Returns the vocabulary learned from counts; those given by value are freed before the merges.
fn learn<'py>(
    py: Python<'py>,
    counts: impl Borrow<Counts> + Send,
    options: &TrainOptions,
    on_progress: Option<&Py<PyAny>>,
) -> PyResult<Vocabulary<'py>> {
    let trained = run(py, on_progress, |on_progress, _| train(counts, options, on_progress))?;
    let tokens = trained.tokens.iter().map(|token| PyBytes::new(py, token)).collect();
    let merges = trained.merges.into_iter().map(|pair| pair.into_pyobject(py)).collect::<PyResult<_>>()?;
    Ok((tokens, merges))
}

/// The compiled word counts; `bpe_llama.WordCounts` wraps and documents them.
#[pyclass(frozen, module = "bpe_llama._core")]
pub(crate) struct WordCounts(Counts);

#[pymethods]
impl WordCounts {
    /// Return the counts of the words in files, and what was skipped; `WordCounts.from_files` calls this.
    #[staticmethod]
    fn from_files(
        py: Python<'_>,
        paths: List<PathBuf>,
        splitting: Splitting,
        reading: Reading,
        on_progress: Option<Py<PyAny>>,
    ) -> PyResult<(Self, SkippedRows)> {
        let (counts, skipped) = from_files(py, paths.0, splitting, reading, on_progress.as_ref())?;
        Ok((Self(counts), skipped_rows(&skipped)))
    }

    /// Return the counts of the words in texts; `bpe_llama.WordCounts.from_iterator` calls this.
    #[staticmethod]
    fn from_iterator(texts: &Bound<'_, PyAny>, splitting: Splitting, on_progress: Option<Py<PyAny>>) -> PyResult<Self> {
        from_iterator(texts, &splitting, on_progress.as_ref()).map(Self)
    }

    /// Return the counts that `to_bytes` returned.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, #[pyo3(from_py_with = named::data)] data: &[u8]) -> PyResult<Self> {
        interruptible(py, |interrupt| Counts::from_bytes(data, interrupt)).map(Self)
    }

    /// Return the counts in a file that holds the bytes of `to_bytes`.
    #[staticmethod]
    fn load(py: Python<'_>, #[pyo3(from_py_with = named::path)] path: PathBuf) -> PyResult<Self> {
        interruptible(py, |interrupt| Counts::load(&path, interrupt)).map(Self)
    }

    /// Return the counts in their file format.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        interruptible(py, |interrupt| self.0.to_bytes(interrupt)).and_then(|bytes| new_bytes(py, &bytes))
    }

    fn __add__(&self, py: Python<'_>, other: &Self) -> PyResult<Self> {
        interruptible(py, |interrupt| {
            let mut sum = self.0.clone();
            sum.merge(&other.0, interrupt).map(|()| Self(sum))
        })
    }

    /// Return at most so many counts that sum to these; the hash of a word selects its part.
    fn split(&self, py: Python<'_>, #[pyo3(from_py_with = named::parts)] parts: usize) -> PyResult<Vec<Self>> {
        Ok(detached(py, || self.0.split(parts))?.into_iter().map(Self).collect())
    }

    /// Return the counts of the words that occur `min_count` times or more.
    fn pruned(&self, py: Python<'_>, #[pyo3(from_py_with = named::min_count)] min_count: u64) -> PyResult<Self> {
        interruptible(py, |interrupt| self.0.pruned(min_count, interrupt)).map(Self)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// The number of words in the text.
    #[getter]
    fn total(&self) -> u64 {
        self.0.total()
    }

    /// The regex that split the text.
    #[getter]
    fn pattern(&self) -> &str {
        self.0.pattern()
    }

    /// The special tokens that end words.
    #[getter]
    fn special_tokens(&self) -> Vec<String> {
        self.0.special_tokens().to_vec()
    }

    /// Return the `n` most frequent words, or all, with their counts; ties by bytes.
    fn most_common<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::n)] n: Option<usize>,
    ) -> PyResult<Vec<(Bound<'py, PyBytes>, u64)>> {
        let words = interruptible(py, |interrupt| self.0.most_common(n.unwrap_or(usize::MAX), interrupt))?;
        Ok(words.into_iter().map(|(word, count)| (PyBytes::new(py, &word), count)).collect())
    }
}

/// Return the tokens and merges learned from counts; `bpe_llama.training` calls this.
#[pyfunction]
fn train_merges<'py>(
    py: Python<'py>,
    counts: &WordCounts,
    options: Options,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<Vocabulary<'py>> {
    learn(py, &counts.0, &options.into_core()?, on_progress.as_ref())
}

/// Return the tokens and merges learned from files, and what was skipped; `bpe_llama.training` calls this.
///
/// Counting and training are one call, so that the memory of the counts is freed before the merges.
#[pyfunction]
fn train_from_files(
    py: Python<'_>,
    paths: List<PathBuf>,
    splitting: Splitting,
    reading: Reading,
    options: Options,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<(Vocabulary<'_>, SkippedRows)> {
    let options = options.into_core()?;
    let (counts, skipped) = from_files(py, paths.0, splitting, reading, on_progress.as_ref())?;
    Ok((learn(py, counts, &options, on_progress.as_ref())?, skipped_rows(&skipped)))
}

/// Return the tokens and merges learned from texts, in one call, as `train_from_files` does.
#[pyfunction]
fn train_from_iterator<'py>(
    texts: &Bound<'py, PyAny>,
    splitting: Splitting,
    options: Options,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<Vocabulary<'py>> {
    let options = options.into_core()?;
    let counts = from_iterator(texts, &splitting, on_progress.as_ref())?;
    learn(texts.py(), counts, &options, on_progress.as_ref())
}

/// Adds the names of this file to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<WordCounts>()?;
    module.add_function(wrap_pyfunction!(train_merges, module)?)?;
    module.add_function(wrap_pyfunction!(train_from_files, module)?)?;
    module.add_function(wrap_pyfunction!(train_from_iterator, module)?)
}
