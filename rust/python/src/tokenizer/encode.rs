//! Text to ids.

use bpe_llama::{EncodeOptions, SpecialSet};
use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use super::PyTokenizer;
use crate::arguments::{Specials, Text, Texts, Threads, places_before_joining, prepare_arrays, thread_count};
use crate::error::to_py;
use crate::interrupt::{interruptible, interruptible_if_long, list};
use crate::named::{self, Argument};

/// Less text than this is encoded on the calling thread.
const ONE_THREAD_BYTES: usize = 1 << 15;

/// The ids of many texts in one array, and the offset of each text.
type Rows<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<i64>>);

impl PyTokenizer {
    /// Checks the special-token arguments and calls `work` with the resulting options.
    fn with_options<R>(
        &self,
        py: Python<'_>,
        texts: &[&str],
        (bos, eos): (bool, bool),
        allowed: &Specials,
        disallowed: &Specials,
        work: impl FnOnce(EncodeOptions<'_>) -> PyResult<R>,
    ) -> PyResult<R> {
        let missing = |name: &str| {
            PyValueError::new_err(format!(
                "{name}=True, but this tokenizer has no {name} token; its special tokens are {:?}",
                self.inner.added_tokens().iter().map(|token| &token.content).collect::<Vec<_>>()
            ))
        };
        let bos = if bos { Some(self.inner.bos_id().ok_or_else(|| missing("bos"))?) } else { None };
        let eos = if eos { Some(self.inner.eos_id().ok_or_else(|| missing("eos"))?) } else { None };
        let rest = match (disallowed, allowed) {
            // As in tiktoken, "all" excludes the allowed tokens.
            (Specials::All, Specials::Only(names)) if !names.is_empty() => Some(self.special_names_without(names)),
            (Specials::All, Specials::All) => Some(Specials::default()),
            _ => None,
        };
        let refused = rest.as_ref().unwrap_or(disallowed);
        let bytes = texts.iter().map(|text| text.len()).sum();
        refused.view(|set| match set {
            SpecialSet::None => Ok(()),
            _ => interruptible_if_long(py, bytes, |interrupt| {
                texts.iter().try_for_each(|text| self.inner.refuse_special(text, set, interrupt))
            }),
        })?;
        allowed.view(|allowed| work(EncodeOptions { allowed, bos, eos, ..EncodeOptions::default() }))
    }

    fn special_names_without(&self, names: &[String]) -> Specials {
        let special = self.inner.added_tokens().iter().filter(|token| token.special);
        Specials::Only(special.map(|token| token.content.clone()).filter(|name| !names.contains(name)).collect())
    }

    /// Returns the ids of one text.
    fn encode_one(
        &self,
        py: Python<'_>,
        text: &str,
        ends: (bool, bool),
        allowed: &Specials,
        disallowed: &Specials,
    ) -> PyResult<Vec<u32>> {
        self.with_options(py, &[text], ends, allowed, disallowed, |options| {
            let mut ids = Vec::new();
            interruptible_if_long(py, text.len(), |interrupt| {
                self.inner.encode_into(text, EncodeOptions { interrupt, ..options }, &mut ids)
            })?;
            Ok(ids)
        })
    }

    /// Returns the ids of many texts in one list, and the offset of each text.
    fn encode_rows(
        &self,
        py: Python<'_>,
        texts: &Texts,
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
    #[pyo3(signature = (text, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: Text,
        #[pyo3(from_py_with = named::bos)] bos: bool,
        #[pyo3(from_py_with = named::eos)] eos: bool,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
        #[pyo3(from_py_with = named::disallowed_special)] disallowed_special: Specials,
    ) -> PyResult<Bound<'py, PyList>> {
        self.list(py, &self.encode_one(py, &text, (bos, eos), &allowed_special, &disallowed_special)?)
    }

    fn encode_ordinary<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: Text,
    ) -> PyResult<Bound<'py, PyList>> {
        let nothing = Specials::default();
        self.list(py, &self.encode_one(py, &text, (false, false), &nothing, &nothing)?)
    }

    #[pyo3(signature = (text, before))]
    fn encode_following<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: Text,
        #[pyo3(from_py_with = named::before)] before: Option<Text>,
    ) -> PyResult<Bound<'py, PyList>> {
        let before = before.as_deref();
        let ids =
            interruptible_if_long(py, text.len(), |interrupt| self.inner.encode_following(&text, before, interrupt))?;
        self.list(py, &ids)
    }

    #[pyo3(signature = (text, dropout=None, seed=0, *, allowed_special=Specials::default()))]
    fn encode_with_dropout<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: Text,
        #[pyo3(from_py_with = named::dropout)] dropout: Option<f64>,
        #[pyo3(from_py_with = named::seed)] seed: u64,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
    ) -> PyResult<Bound<'py, PyList>> {
        let dropout = dropout.or_else(|| self.inner.dropout().map(f64::from)).ok_or_else(|| {
            PyValueError::new_err("dropout is None, and the tokenizer's file names none; expected a number from 0 to 1")
        })?;
        let ids = allowed_special.view(|allowed| {
            interruptible_if_long(py, text.len(), |interrupt| {
                self.inner.encode_with_dropout(&text, allowed, dropout, seed, interrupt)
            })
        })?;
        self.list(py, &ids)
    }

    fn encode_bytes<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::data)] data: &[u8],
    ) -> PyResult<Bound<'py, PyList>> {
        self.list(py, &interruptible_if_long(py, data.len(), |interrupt| self.inner.encode_bytes(data, interrupt))?)
    }

    #[pyo3(signature = (data, *, merged=false))]
    fn encode_piece<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::data)] data: &[u8],
        #[pyo3(from_py_with = named::merged)] merged: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let ids = py.detach(|| self.inner.encode_piece(data, merged)).map_err(to_py)?;
        self.list(py, &ids)
    }

    #[pyo3(signature = (text, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()))]
    fn encode_to_numpy<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: Text,
        #[pyo3(from_py_with = named::bos)] bos: bool,
        #[pyo3(from_py_with = named::eos)] eos: bool,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
        #[pyo3(from_py_with = named::disallowed_special)] disallowed_special: Specials,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        prepare_arrays(py)?;
        Ok(self.encode_one(py, &text, (bos, eos), &allowed_special, &disallowed_special)?.into_pyarray(py))
    }

    #[pyo3(signature = (texts, num_threads=None, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()))]
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
            self.encode_rows(py, &texts, num_threads, (bos, eos), &allowed_special, &disallowed_special)?;
        list(py, offsets.windows(2).map(|row| self.list(py, &ids[row[0] as usize..row[1] as usize])))
    }

    #[pyo3(signature = (texts, num_threads=None, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()))]
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
            self.encode_rows(py, &texts, num_threads, (bos, eos), &allowed_special, &disallowed_special)?;
        Ok((ids.into_pyarray(py), offsets.into_pyarray(py)))
    }

    #[pyo3(signature = (text, *, allowed_special=Specials::default(), first=0))]
    fn encode_with_offsets<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
        #[pyo3(from_py_with = named::first)] first: usize,
    ) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>)> {
        let given = text;
        let text = Text::read("text", given)?;
        let (ids, mut offsets) = allowed_special.view(|allowed| {
            interruptible(py, |interrupt| self.inner.encode_with_offsets_from(&text, first, allowed, interrupt))
        })?;
        if matches!(text, Text::Owned(_)) {
            let places = places_before_joining(given)?;
            let place = |at: usize| places.get(at).copied().unwrap_or(at);
            for (start, end) in &mut offsets {
                (*start, *end) = (place(*start), place(*end));
            }
        }
        Ok((self.list(py, &ids)?, list(py, offsets.into_iter().map(Ok))?))
    }

    #[pyo3(signature = (text, *, allowed_special=Specials::default()))]
    fn count(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = named::text)] text: Text,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
    ) -> PyResult<usize> {
        allowed_special.view(|allowed| {
            interruptible(py, |interrupt| {
                self.inner.count(&text, EncodeOptions { allowed, interrupt, ..EncodeOptions::default() })
            })
        })
    }

    #[pyo3(signature = (text, max_tokens, *, allowed_special=Specials::default()))]
    fn truncate<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: Text,
        #[pyo3(from_py_with = named::max_tokens)] max_tokens: usize,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
    ) -> PyResult<Bound<'py, PyString>> {
        let kept = allowed_special.view(|allowed| {
            interruptible_if_long(py, text.len(), |interrupt| {
                self.inner.truncate(&text, max_tokens, allowed, interrupt)
            })
        })?;
        Ok(PyString::new(py, kept))
    }

    #[pyo3(signature = (text, *, allowed_special=Specials::default()))]
    fn tokenize<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: Text,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
    ) -> PyResult<Bound<'py, PyList>> {
        let nothing = Specials::default();
        let ids = self.encode_one(py, &text, (false, false), &allowed_special, &nothing)?;
        list(py, ids.into_iter().map(|id| self.token_bytes(py, id)))
    }
}
