//! The tokenizer.

use std::path::PathBuf;
use std::sync::Arc;

use bpe_llama::formats::{Piece, PieceKind};
use bpe_llama::train::Trained;
use bpe_llama::{
    AddedToken, EncodeOptions, Interrupt, Pretokenizer, Result, SpecialIds, SpecialSet, Tokenizer, Vocab,
    write_atomically,
};
use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use crate::arguments::{
    IdRows, Specials, Text, Texts, Threads, extract_id, prepare_arrays, read_ids, thread_count, type_error,
};
use crate::decode_stream::DecodeStream;
use crate::error::to_py;
use crate::ids::IdInts;
use crate::interrupt::{interruptible, list};

/// Below this many bytes the GIL is kept: giving it up and taking it back costs more than the work.
const KEEP_GIL: usize = 2048;

/// The smallest cache that may be asked for.
const LEAST_CACHE: usize = 1 << 20;

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
}

/// Ids of many texts in one run, and where each begins.
type Rows<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<i64>>);

/// An added token's content and its flags: special, `single_word`, `lstrip`, `rstrip`, `normalized`.
type Added = (String, bool, bool, bool, bool, bool);

/// Runs `work` without the GIL, and so that Ctrl-C stops it, where there is enough of it.
fn run<R: Send>(py: Python<'_>, bytes: usize, work: impl FnOnce(Interrupt<'_>) -> Result<R> + Send) -> PyResult<R> {
    if bytes < KEEP_GIL { work(Interrupt::NEVER).map_err(to_py) } else { interruptible(py, work) }
}

fn special_tokens(tokens: Option<Vec<(String, u32)>>) -> Vec<AddedToken> {
    tokens.unwrap_or_default().into_iter().map(|(content, id)| AddedToken::special(content, id)).collect()
}

/// Returns the added token of its text, id, and whether it is special, swallows white space to its left, to its right.
fn added_token((content, id, special, lstrip, rstrip): (String, u32, bool, bool, bool)) -> AddedToken {
    AddedToken { special, lstrip, rstrip, ..AddedToken::special(content, id) }
}

impl PyTokenizer {
    /// Checks the special-token arguments and calls `work` with the options they amount to.
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
            // "all" means all but the allowed ones, as in tiktoken.
            (Specials::All, Specials::Only(names)) if !names.is_empty() => Some(self.special_names_without(names)),
            (Specials::All, Specials::All) => Some(Specials::default()),
            _ => None,
        };
        let refused = rest.as_ref().unwrap_or(disallowed);
        let bytes = texts.iter().map(|text| text.len()).sum();
        refused.view(|set| match set {
            SpecialSet::None => Ok(()),
            _ => run(py, bytes, |interrupt| {
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
            run(py, text.len(), |interrupt| {
                self.inner.encode_into(text, EncodeOptions { interrupt, ..options }, &mut ids)
            })?;
            Ok(ids)
        })
    }

    fn added<'py>(&self, py: Python<'py>, want: impl Fn(&AddedToken) -> bool) -> PyResult<Bound<'py, PyDict>> {
        let tokens = PyDict::new(py);
        for token in self.inner.added_tokens().iter().filter(|token| want(token)) {
            tokens.set_item(&token.content, token.id)?;
        }
        Ok(tokens)
    }

    fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        self.ints.list(py, ids)
    }

    /// Returns the ids of an argument, as far as the first that is beyond this vocabulary.
    fn ids(&self, value: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        read_ids(value, self.inner.vocab_size())
    }

    fn decode_text<'py>(
        &self,
        py: Python<'py>,
        ids: &[u32],
        errors: &str,
        skip: bool,
    ) -> PyResult<Bound<'py, PyString>> {
        if errors == "replace" {
            let text = run(py, ids.len() * 4, |interrupt| self.inner.decode_lossy(ids, skip, interrupt))?;
            return Ok(PyString::new(py, &text));
        }
        let bytes = run(py, ids.len() * 4, |interrupt| self.inner.decode(ids, skip, interrupt))?;
        if let Ok(text) = std::str::from_utf8(&bytes) {
            return Ok(PyString::new(py, text));
        }
        Ok(PyBytes::new(py, &bytes).call_method1("decode", ("utf-8", errors))?.cast_into()?)
    }
}

#[pymethods]
impl PyTokenizer {
    #[new]
    #[pyo3(signature = (core, **_attributes))]
    fn py_new(core: &Self, _attributes: Option<&Bound<'_, PyDict>>) -> Self {
        Self { inner: Arc::clone(&core.inner), ints: Arc::clone(&core.ints) }
    }

    #[staticmethod]
    #[pyo3(signature = (ranks, pattern, special_tokens=None))]
    fn build_from_ranks(
        ranks: &Bound<'_, PyDict>,
        pattern: &str,
        special_tokens: Option<Vec<(String, u32)>>,
    ) -> PyResult<Self> {
        let mut tokens = Vec::with_capacity(ranks.len());
        for (token, rank) in ranks {
            let token: Vec<u8> =
                token.cast::<PyBytes>().map_err(|_| type_error("tokens as bytes", &token))?.as_bytes().to_vec();
            let rank = rank
                .extract()
                .map_err(|_| PyValueError::new_err(format!("rank {rank} of token {token:?} is not an id")))?;
            tokens.push((token, rank));
        }
        let vocab = Vocab::from_ranks(tokens).map_err(to_py)?;
        Self::assemble(vocab, pattern, special_tokens)
    }

    #[staticmethod]
    #[pyo3(signature = (tokens, merges, pattern, special_tokens=None))]
    fn build_from_merges(
        tokens: Vec<Vec<u8>>,
        merges: Vec<(u32, u32)>,
        pattern: &str,
        special_tokens: Option<Vec<(String, u32)>>,
    ) -> PyResult<Self> {
        let tokens = tokens.into_iter().zip(0..).collect();
        let vocab = Vocab::from_merges(tokens, merges, false).map_err(to_py)?;
        Self::assemble(vocab, pattern, special_tokens)
    }

    fn extended(
        &self,
        tokens: Vec<Vec<u8>>,
        merges: Vec<(u32, u32)>,
        pattern: &str,
        special_tokens: Vec<String>,
    ) -> PyResult<Self> {
        let pretokenizer = Pretokenizer::new(pattern).map_err(to_py)?;
        let trained = Trained { tokens, merges };
        self.inner.extended(&trained, pretokenizer, &special_tokens).map(Self::new).map_err(to_py)
    }

    #[staticmethod]
    #[pyo3(signature = (path, pattern, special_tokens=None))]
    fn build_from_tiktoken(
        py: Python<'_>,
        path: PathBuf,
        pattern: &str,
        special_tokens: Option<Vec<(String, u32)>>,
    ) -> PyResult<Self> {
        let vocab = py.detach(|| Vocab::from_tiktoken_file(&path)).map_err(to_py)?;
        Self::assemble(vocab, pattern, special_tokens)
    }

    #[staticmethod]
    fn build_from_huggingface(py: Python<'_>, json: &[u8]) -> PyResult<Self> {
        py.detach(|| Tokenizer::from_huggingface(json)).map(Self::new).map_err(to_py)
    }

    #[staticmethod]
    fn build_from_own_json(py: Python<'_>, json: &[u8]) -> PyResult<Self> {
        py.detach(|| Tokenizer::from_own_json(json)).map(Self::new).map_err(to_py)
    }

    #[staticmethod]
    fn build_from_sentencepiece(py: Python<'_>, model: &[u8]) -> PyResult<Self> {
        py.detach(|| Tokenizer::from_sentencepiece(model)).map(Self::new).map_err(to_py)
    }

    fn save_sentencepiece(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let save = || write_atomically(&path, self.inner.to_sentencepiece()?);
        py.detach(save).map_err(to_py)
    }

    fn sentencepiece_model<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.inner.sentencepiece_model().map(|model| PyBytes::new(py, model))
    }

    #[staticmethod]
    fn build_from_pieces(pieces: Vec<(String, f32, u64)>, prefix: bool, collapse: bool) -> PyResult<Self> {
        let piece = |(text, score, kind)| Ok(Piece { text, score, kind: PieceKind::from_number(kind)? });
        let pieces = pieces.into_iter().map(piece).collect::<bpe_llama::Result<_>>();
        pieces.and_then(|pieces| Tokenizer::from_pieces(pieces, prefix, collapse)).map(Self::new).map_err(to_py)
    }

    #[staticmethod]
    fn build_from_gguf(
        py: Python<'_>,
        tokens: Vec<String>,
        merges: Vec<(u32, u32)>,
        patterns: Vec<String>,
        ignore_merges: bool,
        added: Vec<(String, u32, bool, bool, bool)>,
    ) -> PyResult<Self> {
        let added = added.into_iter().map(added_token).collect();
        py.detach(|| Tokenizer::from_gguf(&tokens, merges, &patterns, ignore_merges, added))
            .map(Self::new)
            .map_err(to_py)
    }

    #[staticmethod]
    fn build_from_gguf_pieces(
        py: Python<'_>,
        pieces: Vec<(String, f32, u64)>,
        prefix: bool,
        added: Vec<(String, u32, bool, bool, bool)>,
    ) -> PyResult<Self> {
        let piece = |(text, score, kind)| Ok(Piece { text, score, kind: PieceKind::from_number(kind)? });
        let pieces = pieces.into_iter().map(piece).collect::<bpe_llama::Result<_>>().map_err(to_py)?;
        let added = added.into_iter().map(added_token).collect();
        py.detach(|| Tokenizer::from_gguf_pieces(pieces, prefix, added)).map(Self::new).map_err(to_py)
    }

    #[staticmethod]
    fn build_from_gguf_characters(
        py: Python<'_>,
        pieces: Vec<(String, u64)>,
        merges: Vec<(u32, u32)>,
        added: Vec<(String, u32, bool, bool, bool)>,
    ) -> PyResult<Self> {
        let piece = |(text, kind)| Ok(Piece { text, score: 0.0, kind: PieceKind::from_number(kind)? });
        let pieces = pieces.into_iter().map(piece).collect::<bpe_llama::Result<_>>().map_err(to_py)?;
        let added = added.into_iter().map(added_token).collect();
        py.detach(|| Tokenizer::from_gguf_characters(pieces, merges, added)).map(Self::new).map_err(to_py)
    }

    fn with_bos_eos(&self, bos_id: Option<u32>, eos_id: Option<u32>) -> PyResult<Self> {
        self.inner.as_ref().clone().with_bos_eos(bos_id, eos_id).map(Self::new).map_err(to_py)
    }

    fn with_ends(
        &self,
        bos_id: Option<u32>,
        eos_id: Option<u32>,
        pad_id: Option<u32>,
        unk_id: Option<u32>,
    ) -> PyResult<Self> {
        let ends = SpecialIds { bos: bos_id, eos: eos_id, pad: pad_id, unk: unk_id };
        self.inner.as_ref().clone().with_special_ids(ends).map(Self::new).map_err(to_py)
    }

    fn with_template(&self, before: Option<u32>, after: Option<u32>) -> PyResult<Self> {
        self.inner.as_ref().clone().with_template(before, after).map(Self::new).map_err(to_py)
    }

    fn with_added_tokens(&self, tokens: Vec<Added>) -> PyResult<Self> {
        let token = |(content, special, single_word, lstrip, rstrip, normalized)| AddedToken {
            content,
            id: 0,
            special,
            single_word,
            lstrip,
            rstrip,
            normalized,
        };
        self.inner.with_added_tokens(tokens.into_iter().map(token).collect()).map(Self::new).map_err(to_py)
    }

    fn added_tokens_json(&self) -> PyResult<String> {
        self.inner.added_tokens_json().map_err(to_py)
    }

    fn components_json(&self) -> Option<String> {
        self.inner.components_json()
    }

    fn template(&self, pair: bool) -> Vec<(Option<u32>, Option<&'static str>, Option<u32>)> {
        self.inner.template_items(pair)
    }

    fn to_own_json(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.inner.to_own_json()).map_err(to_py)
    }

    fn to_huggingface(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.inner.to_huggingface()).map_err(to_py)
    }

    fn save_huggingface(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let save = || write_atomically(&path, self.inner.to_huggingface()?.as_bytes());
        py.detach(save).map_err(to_py)
    }

    fn save_tiktoken(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let save = || write_atomically(&path, self.inner.to_tiktoken()?.as_bytes());
        py.detach(save).map_err(to_py)
    }

    #[pyo3(signature = (text, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        bos: bool,
        eos: bool,
        allowed_special: Specials,
        disallowed_special: Specials,
    ) -> PyResult<Bound<'py, PyList>> {
        self.list(py, &self.encode_one(py, &text, (bos, eos), &allowed_special, &disallowed_special)?)
    }

    fn encode_ordinary<'py>(&self, py: Python<'py>, text: Text) -> PyResult<Bound<'py, PyList>> {
        let nothing = Specials::default();
        self.list(py, &self.encode_one(py, &text, (false, false), &nothing, &nothing)?)
    }

    #[pyo3(signature = (text, before))]
    fn encode_following<'py>(&self, py: Python<'py>, text: Text, before: Option<Text>) -> PyResult<Bound<'py, PyList>> {
        let before = before.as_deref();
        let ids = run(py, text.len(), |interrupt| self.inner.encode_following(&text, before, interrupt))?;
        self.list(py, &ids)
    }

    #[pyo3(signature = (text, dropout=None, seed=0, *, allowed_special=Specials::default()))]
    fn encode_with_dropout<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        dropout: Option<f64>,
        seed: u64,
        allowed_special: Specials,
    ) -> PyResult<Bound<'py, PyList>> {
        let dropout = dropout.or_else(|| self.inner.dropout().map(f64::from)).ok_or_else(|| {
            PyValueError::new_err("dropout is None, and the tokenizer's file names none; expected a number from 0 to 1")
        })?;
        let ids = allowed_special.view(|allowed| {
            run(py, text.len(), |interrupt| self.inner.encode_with_dropout(&text, allowed, dropout, seed, interrupt))
        })?;
        self.list(py, &ids)
    }

    fn encode_bytes<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyList>> {
        self.list(py, &run(py, data.len(), |interrupt| self.inner.encode_bytes(data, interrupt))?)
    }

    #[pyo3(signature = (text, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()))]
    fn encode_to_numpy<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        bos: bool,
        eos: bool,
        allowed_special: Specials,
        disallowed_special: Specials,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        prepare_arrays(py)?;
        Ok(self.encode_one(py, &text, (bos, eos), &allowed_special, &disallowed_special)?.into_pyarray(py))
    }

    #[pyo3(signature = (texts, num_threads=None, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()))]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python method")]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Texts,
        num_threads: Option<Threads>,
        bos: bool,
        eos: bool,
        allowed_special: Specials,
        disallowed_special: Specials,
    ) -> PyResult<Bound<'py, PyList>> {
        let threads = thread_count(num_threads);
        let texts: Vec<&str> = texts.iter().collect();
        let (ids, offsets) =
            self.with_options(py, &texts, (bos, eos), &allowed_special, &disallowed_special, |options| {
                interruptible(py, |interrupt| {
                    self.inner.encode_batch(&texts, EncodeOptions { interrupt, ..options }, threads)
                })
            })?;
        list(py, offsets.windows(2).map(|row| self.list(py, &ids[row[0] as usize..row[1] as usize])))
    }

    #[pyo3(signature = (texts, num_threads=None, *, bos=false, eos=false, allowed_special=Specials::default(), disallowed_special=Specials::default()))]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python method")]
    fn encode_batch_to_numpy<'py>(
        &self,
        py: Python<'py>,
        texts: Texts,
        num_threads: Option<Threads>,
        bos: bool,
        eos: bool,
        allowed_special: Specials,
        disallowed_special: Specials,
    ) -> PyResult<Rows<'py>> {
        prepare_arrays(py)?;
        let threads = thread_count(num_threads);
        let texts: Vec<&str> = texts.iter().collect();
        let (ids, offsets) =
            self.with_options(py, &texts, (bos, eos), &allowed_special, &disallowed_special, |options| {
                interruptible(py, |interrupt| {
                    self.inner.encode_batch(&texts, EncodeOptions { interrupt, ..options }, threads)
                })
            })?;
        Ok((ids.into_pyarray(py), offsets.into_pyarray(py)))
    }

    #[pyo3(signature = (text, *, allowed_special=Specials::default()))]
    fn encode_with_offsets<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        allowed_special: Specials,
    ) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>)> {
        let (ids, offsets) = allowed_special
            .view(|allowed| interruptible(py, |interrupt| self.inner.encode_with_offsets(&text, allowed, interrupt)))?;
        Ok((self.list(py, &ids)?, list(py, offsets.into_iter().map(Ok))?))
    }

    #[pyo3(signature = (text, *, allowed_special=Specials::default()))]
    fn count(&self, py: Python<'_>, text: Text, allowed_special: Specials) -> PyResult<usize> {
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
        text: Text,
        max_tokens: i64,
        allowed_special: Specials,
    ) -> PyResult<Bound<'py, PyString>> {
        let max_tokens = usize::try_from(max_tokens)
            .map_err(|_| PyValueError::new_err(format!("max_tokens must be at least 0, got {max_tokens}")))?;
        let kept = allowed_special.view(|allowed| {
            run(py, text.len(), |interrupt| self.inner.truncate(&text, max_tokens, allowed, interrupt))
        })?;
        Ok(PyString::new(py, kept))
    }

    #[pyo3(signature = (text, *, allowed_special=Specials::default()))]
    fn tokenize<'py>(&self, py: Python<'py>, text: Text, allowed_special: Specials) -> PyResult<Bound<'py, PyList>> {
        let nothing = Specials::default();
        let ids = self.encode_one(py, &text, (false, false), &allowed_special, &nothing)?;
        list(py, ids.into_iter().map(|id| self.id_to_bytes_inner(py, id)))
    }

    #[pyo3(signature = (ids, errors="replace", *, skip_special_tokens=false))]
    fn decode<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        errors: &str,
        skip_special_tokens: bool,
    ) -> PyResult<Bound<'py, PyString>> {
        self.decode_text(py, &self.ids(ids)?, errors, skip_special_tokens)
    }

    fn decode_bytes<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let ids = self.ids(ids)?;
        let bytes = run(py, ids.len() * 4, |interrupt| self.inner.decode(&ids, false, interrupt))?;
        Ok(PyBytes::new(py, &bytes))
    }

    #[pyo3(signature = (batch, errors="replace", *, skip_special_tokens=false))]
    fn decode_batch<'py>(
        &self,
        py: Python<'py>,
        batch: IdRows<'py>,
        errors: &str,
        skip_special_tokens: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, batch.map(|row| self.decode_text(py, &self.ids(row)?, errors, skip_special_tokens))?)
    }

    #[pyo3(signature = (*, skip_special_tokens=false))]
    fn decode_stream(&self, skip_special_tokens: bool) -> DecodeStream {
        DecodeStream::new(Arc::clone(&self.inner), skip_special_tokens)
    }

    fn id_to_token(&self, id: &Bound<'_, PyAny>) -> PyResult<String> {
        self.inner.id_to_token(extract_id(id)?).map_err(to_py)
    }

    fn __len__(&self) -> usize {
        self.inner.token_count()
    }

    fn id_to_bytes<'py>(&self, py: Python<'py>, id: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        self.id_to_bytes_inner(py, extract_id(id)?)
    }

    fn token_to_id(&self, token: &Bound<'_, PyAny>) -> PyResult<Option<u32>> {
        if let Ok(text) = token.cast::<PyString>() {
            return Ok(self.inner.token_to_id(&text.to_cow()?));
        }
        let bytes = token.cast::<PyBytes>().map_err(|_| type_error("bytes or a str", token))?;
        Ok(self.inner.bytes_to_id(bytes.as_bytes()))
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    #[getter]
    fn mergeable_ranks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let ranks = PyDict::new(py);
        for (token, id) in self.inner.tokens() {
            ranks.set_item(PyBytes::new(py, token), id)?;
        }
        Ok(ranks)
    }

    #[getter]
    fn merges<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let pairs = self.inner.merges().into_iter();
        let bytes = |id| self.id_to_bytes_inner(py, id);
        list(py, pairs.map(|(left, right)| Ok((bytes(left)?, bytes(right)?))))
    }

    #[getter]
    fn pattern(&self) -> &str {
        self.inner.pretokenizer().pattern()
    }

    #[getter]
    fn pattern_name(&self) -> Option<&str> {
        self.inner.pretokenizer().name()
    }

    #[getter]
    fn special_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.added(py, |token| token.special)
    }

    #[getter]
    fn added_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.added(py, |_| true)
    }

    #[getter]
    fn cache_bytes(&self) -> usize {
        self.inner.cache_limit()
    }

    #[setter]
    fn set_cache_bytes(&self, bytes: i64) -> PyResult<()> {
        let bytes = usize::try_from(bytes)
            .ok()
            .filter(|&bytes| bytes >= LEAST_CACHE)
            .ok_or_else(|| PyValueError::new_err(format!("cache_bytes must be at least {LEAST_CACHE}, got {bytes}")))?;
        self.inner.set_cache_limit(bytes);
        Ok(())
    }

    #[getter]
    fn bos_id(&self) -> Option<u32> {
        self.inner.bos_id()
    }

    #[getter]
    fn eos_id(&self) -> Option<u32> {
        self.inner.eos_id()
    }

    #[getter]
    fn pad_id(&self) -> Option<u32> {
        self.inner.special_ids().pad
    }

    #[getter]
    fn unk_id(&self) -> Option<u32> {
        self.inner.special_ids().unk
    }

    #[getter]
    fn pipeline(&self) -> &'static str {
        if self.inner.general_because().is_some() { "general" } else { "fast" }
    }

    #[getter]
    fn normalizes_added_tokens(&self) -> bool {
        self.inner.normalizes_added_tokens()
    }

    #[getter]
    fn general_because(&self) -> Option<&str> {
        self.inner.general_because()
    }
}

impl PyTokenizer {
    fn assemble(vocab: Vocab, pattern: &str, tokens: Option<Vec<(String, u32)>>) -> PyResult<Self> {
        let pretokenizer = Pretokenizer::new(pattern).map_err(to_py)?;
        Tokenizer::new(vocab, pretokenizer, special_tokens(tokens), false).map(Self::new).map_err(to_py)
    }

    fn id_to_bytes_inner<'py>(&self, py: Python<'py>, id: u32) -> PyResult<Bound<'py, PyBytes>> {
        self.inner.id_to_bytes(id).map(|bytes| PyBytes::new(py, bytes)).map_err(to_py)
    }
}
