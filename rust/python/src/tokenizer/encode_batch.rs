//! Many texts to ids.

use bpe_llama::EncodeOptions;
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::PyTokenizer;
use crate::arguments::{Specials, Threads, prepare_arrays, thread_count};
use crate::interrupt::{interruptible, list};
use crate::named;
use crate::text::Texts;

/// Less text than this is encoded on the calling thread.
const ONE_THREAD_BYTES: usize = 1 << 15;

/// The ids of many texts in one array, and the offset of each text.
type Rows<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<i64>>);

impl PyTokenizer {
    /// Returns the ids of many texts in one list, and the offset of each text. The texts' own memory is freed.
    fn encode_rows(
        &self,
        py: Python<'_>,
        texts: Texts,
        num_threads: Option<Threads>,
        ends: (bool, bool),
        allowed: &Specials,
        disallowed: &Specials,
    ) -> PyResult<(Vec<u32>, Vec<i64>)> {
        let texts: Vec<&str> = texts.iter().collect();
        // Asking for the number of processors reads files of the system: longer than a short text takes.
        let is_short = texts.iter().map(|text| text.len()).sum::<usize>() < ONE_THREAD_BYTES;
        let threads = if is_short { 1 } else { thread_count(num_threads) };
        self.with_options(py, &texts, ends, allowed, disallowed, |options| {
            interruptible(py, |interrupt| {
                self.inner.encode_batch(&texts, EncodeOptions { interrupt, ..options }, threads)
            })
        })
    }
}

#[pymethods]
impl PyTokenizer {
    /// Return the ids of each text.
    ///
    /// Args:
    ///     texts: Any iterable of `str`.
    ///     num_threads: By default one a processor; it never changes an id.
    ///     bos: As in `encode`.
    ///     eos: As in `encode`.
    ///     allowed_special: As in `encode`.
    ///     disallowed_special: As in `encode`.
    ///
    /// Raises:
    ///     TypeError: If `texts` is one `str`, or holds something else.
    ///     ValueError: As `encode`.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.encode_batch(["low", "low low"])
    ///     [[257], [257, 220, 257]]
    #[pyo3(
        signature = (texts, num_threads=None, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()),
        text_signature = "($self, texts, num_threads=None, *, bos=False, eos=False, allowed_special=(), disallowed_special=())"
    )]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python method")]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::texts)] texts: Texts,
        #[pyo3(from_py_with = named::num_threads)] num_threads: Option<Threads>,
        #[pyo3(from_py_with = named::bos)] bos: bool,
        #[pyo3(from_py_with = named::eos)] eos: bool,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
        #[pyo3(from_py_with = named::disallowed_special)] disallowed_special: Specials,
    ) -> PyResult<Bound<'py, PyList>> {
        let (ids, offsets) =
            self.encode_rows(py, texts, num_threads, (bos, eos), &allowed_special, &disallowed_special)?;
        list(py, offsets.windows(2).map(|row| self.list(py, &ids[row[0] as usize..row[1] as usize])))
    }

    /// Return the ids of all texts in one array, and where each text begins.
    ///
    /// Row `i` is `ids[offsets[i]:offsets[i + 1]]`; `ids` is uint32, shape (n,), `offsets` int64, shape
    /// (len(texts) + 1,). Arguments and errors are those of `encode_batch`.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> ids, offsets = tok.encode_batch_to_numpy(["low", "low low"])
    ///     >>> ids.tolist(), offsets.tolist()
    ///     ([257, 257, 220, 257], [0, 1, 4])
    #[pyo3(
        signature = (texts, num_threads=None, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()),
        text_signature = "($self, texts, num_threads=None, *, bos=False, eos=False, allowed_special=(), disallowed_special=())"
    )]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python method")]
    fn encode_batch_to_numpy<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::texts)] texts: Texts,
        #[pyo3(from_py_with = named::num_threads)] num_threads: Option<Threads>,
        #[pyo3(from_py_with = named::bos)] bos: bool,
        #[pyo3(from_py_with = named::eos)] eos: bool,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
        #[pyo3(from_py_with = named::disallowed_special)] disallowed_special: Specials,
    ) -> PyResult<Rows<'py>> {
        prepare_arrays(py)?;
        let (ids, offsets) =
            self.encode_rows(py, texts, num_threads, (bos, eos), &allowed_special, &disallowed_special)?;
        Ok((ids.into_pyarray(py), offsets.into_pyarray(py)))
    }
}
