//! Text to ids.

use std::collections::HashSet;

use bpe_llama::{EncodeOptions, SpecialSet};
use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::{PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PySlice, PyString};

use super::PyTokenizer;
use crate::arguments::{Specials, prepare_arrays};
use crate::interrupt::{interruptible, interruptible_if_long, interruptible_with_calls, list};
use crate::named::{self, Argument};
use crate::text::{GivenText, LongText, Text, TextInput};

impl PyTokenizer {
    /// Checks the special-token arguments and calls `work` with the resulting options.
    pub(super) fn with_options<R>(
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
        let names: HashSet<&String> = names.iter().collect();
        Specials::Only(special.map(|token| &token.content).filter(|name| !names.contains(name)).cloned().collect())
    }

    /// Returns the ids of one text.
    fn encode_one(
        &self,
        py: Python<'_>,
        text: TextInput<'_>,
        ends: (bool, bool),
        allowed: &Specials,
        disallowed: &Specials,
    ) -> PyResult<Vec<u32>> {
        let text = match text {
            TextInput::Whole(text) => text,
            TextInput::Long(string) => {
                if disallowed.is_empty()
                    && let Some(ids) = self.encode_long(py, LongText::new(&string)?, ends, allowed)?
                {
                    return Ok(ids);
                }
                Text::read("text", &string)?
            }
        };
        let text: &str = &text;
        self.with_options(py, &[text], ends, allowed, disallowed, |options| {
            let mut ids = Vec::new();
            interruptible_if_long(py, text.len(), |interrupt| {
                self.inner.encode_into(text, EncodeOptions { interrupt, ..options }, &mut ids)
            })?;
            Ok(ids)
        })
    }

    /// Returns the ids of a long text, read in parts; `None` if it holds surrogates, which a part may cut from each other.
    fn encode_long(
        &self,
        py: Python<'_>,
        mut text: LongText,
        ends: (bool, bool),
        allowed: &Specials,
    ) -> PyResult<Option<Vec<u32>>> {
        let encoded = self.with_options(py, &[], ends, allowed, &Specials::default(), |options| {
            interruptible_with_calls(py, |interrupt, pending| {
                let (length, mut ids) = (2 * text.len(), Vec::new());
                let next = |part: &mut String| Python::attach(|py| pending.store(text.read(py, part)));
                self.inner.encode_parts(length, next, EncodeOptions { interrupt, ..options }, &mut ids)?;
                Ok(ids)
            })
        });
        match encoded {
            Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(py) => Ok(None),
            encoded => encoded.map(Some),
        }
    }
}

#[pymethods]
impl PyTokenizer {
    /// Return the ids of a text.
    ///
    /// Text that looks like a special token is ordinary text, unless it is in `allowed_special`.
    ///
    /// Args:
    ///     text: Any `str`.
    ///     bos: Put `bos_id` first.
    ///     eos: Put `eos_id` last.
    ///     allowed_special: Special tokens that stand for themselves, or `"all"`.
    ///     disallowed_special: Strings that must not occur in the text, or `"all"` special tokens.
    ///
    /// Raises:
    ///     TypeError: If `text` is no `str`.
    ///     ValueError: If the text holds a disallowed string, `allowed_special` names an unknown token, `bos` or
    ///         `eos` is asked for where there is none, or a byte of the text has no token.
    ///
    /// Cost: linear in the text, whatever it holds.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=259, special_tokens=["<s>"], progress=False)
    ///     >>> tok.encode("low"), tok.encode("<s>low", allowed_special={"<s>"})
    ///     ([257], [258, 257])
    ///     >>> tok.encode("<s>")
    ///     [27, 82, 29]
    #[pyo3(
        signature = (text, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()),
        text_signature = "($self, text, *, bos=False, eos=False, allowed_special=(), disallowed_special=())"
    )]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: TextInput<'py>,
        #[pyo3(from_py_with = named::bos)] bos: bool,
        #[pyo3(from_py_with = named::eos)] eos: bool,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
        #[pyo3(from_py_with = named::disallowed_special)] disallowed_special: Specials,
    ) -> PyResult<Bound<'py, PyList>> {
        self.list(py, &self.encode_one(py, text, (bos, eos), &allowed_special, &disallowed_special)?)
    }

    /// Return the ids of a text in which nothing is special: `encode` without its options.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.encode_ordinary("low")
    ///     [257]
    fn encode_ordinary<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: TextInput<'py>,
    ) -> PyResult<Bound<'py, PyList>> {
        let nothing = Specials::default();
        self.list(py, &self.encode_one(py, text, (false, false), &nothing, &nothing)?)
    }

    /// Return the ids of `encode_ordinary` for a text that follows other text, or `None` for a special token.
    ///
    /// They differ where SentencePiece puts a space before a text: before one that follows text it puts none, but for
    /// the one that was left out at the end of that text where spaces collapse.
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

    /// Return the ids of a text where each merge is left out with a probability: BPE-dropout, for training.
    ///
    /// Args:
    ///     text: Any `str`.
    ///     dropout: From 0 to 1; by default what the tokenizer's file says, which `encode` never applies.
    ///     seed: The same seed gives the same ids.
    ///     allowed_special: Special tokens that stand for themselves.
    ///
    /// Raises:
    ///     ValueError: If `dropout` is out of range, or None where the file names none.
    ///
    /// Source: Provilkov et al. 2020, arXiv:1910.13267.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.encode_with_dropout("low", 0.0), tok.encode_with_dropout("low", 1.0)
    ///     ([257], [75, 78, 86])
    #[pyo3(
        signature = (text, dropout=None, seed=0, *, allowed_special=Specials::default()),
        text_signature = "($self, text, dropout=None, seed=0, *, allowed_special=())"
    )]
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

    /// Return the ids of any bytes, such that `decode_bytes` gives them back.
    ///
    /// The longest valid UTF-8 start is encoded as text; the rest is one piece with the last piece of that text, as in
    /// tiktoken. SentencePiece takes `▁` for a space, so that a space comes back for it. A normalizer of the file, such
    /// as Qwen's to NFC, changes text here as in `encode`, and changed text comes back.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.decode_bytes(tok.encode_bytes(b"low \xff"))
    ///     b'low \xff'
    fn encode_bytes<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::data)] data: &[u8],
    ) -> PyResult<Bound<'py, PyList>> {
        self.list(py, &interruptible_if_long(py, data.len(), |interrupt| self.inner.encode_bytes(data, interrupt))?)
    }

    /// Return the ids of bytes as one piece: the token they are, or with `merged` always what merging gives.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.encode_piece(b"low")
    ///     [257]
    #[pyo3(signature = (data, *, merged=false))]
    fn encode_piece<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::data)] data: &[u8],
        #[pyo3(from_py_with = named::merged)] merged: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let ids = interruptible(py, |interrupt| self.inner.encode_piece(data, merged, interrupt))?;
        self.list(py, &ids)
    }

    /// Return the ids of a text, shape (n,), uint32; arguments and errors are those of `encode`.
    ///
    /// The array takes over the memory that the ids were written to.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.encode_to_numpy("low low")
    ///     array([257, 220, 257], dtype=uint32)
    #[pyo3(
        signature = (text, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()),
        text_signature = "($self, text, *, bos=False, eos=False, allowed_special=(), disallowed_special=())"
    )]
    fn encode_to_numpy<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: TextInput<'py>,
        #[pyo3(from_py_with = named::bos)] bos: bool,
        #[pyo3(from_py_with = named::eos)] eos: bool,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
        #[pyo3(from_py_with = named::disallowed_special)] disallowed_special: Specials,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        prepare_arrays(py)?;
        Ok(self.encode_one(py, text, (bos, eos), &allowed_special, &disallowed_special)?.into_pyarray(py))
    }

    /// Return the ids, and for each the range of characters its bytes fall into: `text[start:end]`.
    ///
    /// Tokens that share a character both name it. They are ranges of `text` as it stands, also where the tokenizer
    /// normalizes it. Where a tokenizer's file says `trim_offsets`, white space at the ends of a token is left out, but
    /// with `add_prefix_space` not the space before the token `first`: the first one that the caller keeps.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.encode_with_offsets("low low")
    ///     ([257, 220, 257], [(0, 3), (3, 4), (4, 7)])
    #[pyo3(
        signature = (text, *, allowed_special=Specials::default(), first=0),
        text_signature = "($self, text, *, allowed_special=(), first=0)"
    )]
    fn encode_with_offsets<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: GivenText<'py>,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
        #[pyo3(from_py_with = named::first)] first: usize,
    ) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>)> {
        let (ids, mut offsets) = allowed_special.view(|allowed| {
            interruptible(py, |interrupt| self.inner.encode_with_offsets_from(&text.text, first, allowed, interrupt))
        })?;
        if let Some(places) = text.places()? {
            let place = |at: usize| places.get(at).copied().unwrap_or(at);
            for (start, end) in &mut offsets {
                (*start, *end) = (place(*start), place(*end));
            }
        }
        Ok((self.list(py, &ids)?, list(py, offsets.into_iter().map(Ok))?))
    }

    /// Return `len(encode(text))` without making the ids.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.count("low low")
    ///     3
    #[pyo3(
        signature = (text, *, allowed_special=Specials::default()),
        text_signature = "($self, text, *, allowed_special=())"
    )]
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

    /// Return the longest start of `text`, cut between tokens and between characters, of at most `max_tokens` ids.
    ///
    /// Raises:
    ///     ValueError: If `max_tokens` is negative.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.truncate("low low", 2)
    ///     'low '
    #[pyo3(
        signature = (text, max_tokens, *, allowed_special=Specials::default()),
        text_signature = "($self, text, max_tokens, *, allowed_special=())"
    )]
    fn truncate<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: GivenText<'py>,
        #[pyo3(from_py_with = named::max_tokens)] max_tokens: usize,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
    ) -> PyResult<Bound<'py, PyAny>> {
        let kept = allowed_special.view(|allowed| {
            interruptible_if_long(py, text.text.len(), |interrupt| {
                self.inner.truncate(&text.text, max_tokens, allowed, interrupt)
            })
        })?;
        if let Some(places) = text.places()? {
            return text.given.get_item(PySlice::new(py, 0, places[kept.chars().count()] as isize, 1));
        }
        Ok(PyString::new(py, kept).into_any())
    }

    /// Return the bytes of each token of a text; together they are the text.
    ///
    /// Example:
    ///     >>> from bpe_llama import Tokenizer
    ///     >>> tok = Tokenizer.train_from_iterator(["low"] * 3, vocab_size=258, progress=False)
    ///     >>> tok.tokenize("low lo")
    ///     [b'low', b' ', b'lo']
    #[pyo3(
        signature = (text, *, allowed_special=Specials::default()),
        text_signature = "($self, text, *, allowed_special=())"
    )]
    fn tokenize<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = named::text)] text: TextInput<'py>,
        #[pyo3(from_py_with = named::allowed_special)] allowed_special: Specials,
    ) -> PyResult<Bound<'py, PyList>> {
        let nothing = Specials::default();
        let ids = self.encode_one(py, text, (false, false), &allowed_special, &nothing)?;
        list(py, ids.into_iter().map(|id| self.token_bytes(py, id)))
    }
}
