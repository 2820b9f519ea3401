//! Tokenizers from vocabularies and files, and copies with other settings.

use std::path::PathBuf;

use bpe_llama::formats::{Piece, PieceKind};
use bpe_llama::train::Trained;
use bpe_llama::{AddedToken, Pretokenizer, Result, SpecialIds, Tokenizer, Vocab};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};

use super::PyTokenizer;
use crate::arguments::List;
use crate::error::{detached, to_py};
use crate::named::{self, shown};

/// A SentencePiece piece: text, score, kind.
type PieceArgs = (String, f32, u64);

/// An added token: content, id, special, `lstrip`, `rstrip`.
type AddedArgs = (String, u32, bool, bool, bool);

/// An added token without an id: content, special, `single_word`, `lstrip`, `rstrip`, `normalized`.
type AddedFlags = (String, bool, bool, bool, bool, bool);

fn read_pieces(pieces: impl IntoIterator<Item = PieceArgs>) -> PyResult<Vec<Piece>> {
    let piece = |(text, score, kind)| Ok(Piece { text, score, kind: PieceKind::from_number(kind)? });
    pieces.into_iter().map(piece).collect::<Result<_>>().map_err(to_py)
}

fn added_token((content, id, special, lstrip, rstrip): AddedArgs) -> AddedToken {
    AddedToken { special, lstrip, rstrip, ..AddedToken::special(content, id) }
}

impl PyTokenizer {
    fn assemble(vocab: Vocab, pattern: &str, tokens: Option<List<(String, u32)>>) -> PyResult<Self> {
        let pretokenizer = Pretokenizer::new(pattern).map_err(to_py)?;
        let tokens = tokens.map_or_else(Vec::new, |tokens| tokens.0).into_iter();
        let tokens = tokens.map(|(content, id)| AddedToken::special(content, id)).collect();
        Tokenizer::new(vocab, pretokenizer, tokens, false).map(Self::new).map_err(to_py)
    }
}

#[pymethods]
impl PyTokenizer {
    /// Return the tokenizer with these ranks, which are the ids; `Tokenizer.from_ranks` calls this.
    #[staticmethod]
    #[pyo3(signature = (ranks, pattern, special_tokens=None))]
    fn build_from_ranks(
        ranks: &Bound<'_, PyDict>,
        #[pyo3(from_py_with = named::pattern)] pattern: &str,
        special_tokens: Option<List<(String, u32)>>,
    ) -> PyResult<Self> {
        let mut tokens = Vec::with_capacity(ranks.len());
        for (token, rank) in ranks {
            let bytes = token.cast::<PyBytes>().map_err(|_| {
                PyTypeError::new_err(format!("ranks holds the token {}; expected bytes", shown(&token)))
            })?;
            let rank = rank.extract().map_err(|_| {
                let (token, rank) = (shown(&token), shown(&rank));
                PyValueError::new_err(format!("ranks gives {token} the rank {rank}; expected an id, an int"))
            })?;
            tokens.push((bytes.as_bytes().to_vec(), rank));
        }
        let vocab = Vocab::from_ranks(tokens).map_err(to_py)?;
        Self::assemble(vocab, pattern, special_tokens)
    }

    /// Return the tokenizer with these tokens, by id, and merges, as pairs of ids, best first.
    #[staticmethod]
    #[pyo3(signature = (tokens, merges, pattern, special_tokens=None))]
    fn build_from_merges(
        tokens: List<PyBackedBytes>,
        merges: List<(u32, u32)>,
        #[pyo3(from_py_with = named::pattern)] pattern: &str,
        special_tokens: Option<List<(String, u32)>>,
    ) -> PyResult<Self> {
        let tokens = tokens.0.iter().map(|token| token.to_vec()).zip(0..).collect();
        let vocab = Vocab::from_merges(tokens, merges.0, false).map_err(to_py)?;
        Self::assemble(vocab, pattern, special_tokens)
    }

    /// Return this tokenizer with more tokens, merges and special tokens; `bpe_llama.training` calls this.
    fn extended(
        &self,
        tokens: List<PyBackedBytes>,
        merges: List<(u32, u32)>,
        #[pyo3(from_py_with = named::pattern)] pattern: &str,
        special_tokens: List<String>,
    ) -> PyResult<Self> {
        let pretokenizer = Pretokenizer::new(pattern).map_err(to_py)?;
        let tokens = tokens.0.iter().map(|token| token.to_vec()).collect();
        let trained = Trained { tokens, merges: merges.0 };
        self.inner.extended(&trained, pretokenizer, &special_tokens.0).map(Self::new).map_err(to_py)
    }

    /// Return the tokenizer with the ranks of a `.tiktoken` file; `Tokenizer.from_tiktoken` calls this.
    #[staticmethod]
    #[pyo3(signature = (path, pattern, special_tokens=None))]
    fn build_from_tiktoken(
        py: Python<'_>,
        #[pyo3(from_py_with = named::path)] path: PathBuf,
        #[pyo3(from_py_with = named::pattern)] pattern: &str,
        special_tokens: Option<List<(String, u32)>>,
    ) -> PyResult<Self> {
        let vocab = detached(py, || Vocab::from_tiktoken_file(&path))?.map_err(to_py)?;
        Self::assemble(vocab, pattern, special_tokens)
    }

    /// Return the tokenizer of a `tokenizer.json`, given as bytes; `Tokenizer.from_huggingface` calls this.
    #[staticmethod]
    fn build_from_huggingface(py: Python<'_>, json: &[u8]) -> PyResult<Self> {
        detached(py, || Tokenizer::from_huggingface(json))?.map(Self::new).map_err(to_py)
    }

    /// Return the tokenizer that `to_own_json` wrote.
    #[staticmethod]
    fn build_from_own_json(py: Python<'_>, json: &[u8]) -> PyResult<Self> {
        detached(py, || Tokenizer::from_own_json(json))?.map(Self::new).map_err(to_py)
    }

    /// Return the tokenizer of a SentencePiece model, given as bytes; `Tokenizer.from_file` calls this.
    #[staticmethod]
    fn build_from_sentencepiece(py: Python<'_>, model: &[u8]) -> PyResult<Self> {
        detached(py, || Tokenizer::from_sentencepiece(model))?.map(Self::new).map_err(to_py)
    }

    /// Return the byte-level tokenizer of a GGUF file's metadata; `Tokenizer.from_gguf` calls this.
    #[staticmethod]
    fn build_from_gguf(
        py: Python<'_>,
        tokens: List<String>,
        merges: List<(u32, u32)>,
        patterns: List<String>,
        ignore_merges: bool,
        added: List<AddedArgs>,
    ) -> PyResult<Self> {
        let added = added.0.into_iter().map(added_token).collect();
        detached(py, || Tokenizer::from_gguf(&tokens.0, merges.0, &patterns.0, ignore_merges, added))?
            .map(Self::new)
            .map_err(to_py)
    }

    /// Return the SentencePiece tokenizer of a GGUF file's metadata; `Tokenizer.from_gguf` calls this.
    #[staticmethod]
    fn build_from_gguf_pieces(
        py: Python<'_>,
        pieces: List<PieceArgs>,
        prefix: bool,
        added: List<AddedArgs>,
    ) -> PyResult<Self> {
        let pieces = read_pieces(pieces.0)?;
        let added = added.0.into_iter().map(added_token).collect();
        detached(py, || Tokenizer::from_gguf_pieces(pieces, prefix, added))?.map(Self::new).map_err(to_py)
    }

    /// Return the tokenizer of a GGUF file whose merges begin with characters; `Tokenizer.from_gguf` calls this.
    #[staticmethod]
    fn build_from_gguf_characters(
        py: Python<'_>,
        pieces: List<(String, u64)>,
        merges: List<(u32, u32)>,
        added: List<AddedArgs>,
    ) -> PyResult<Self> {
        let pieces = read_pieces(pieces.0.into_iter().map(|(text, kind)| (text, 0.0, kind)))?;
        let added = added.0.into_iter().map(added_token).collect();
        detached(py, || Tokenizer::from_gguf_characters(pieces, merges.0, added))?.map(Self::new).map_err(to_py)
    }

    /// Return the tokenizer with other special ids: begin, end, padding, unknown; `None` for no such id.
    ///
    /// Raises:
    ///     ValueError: If an id is outside the vocabulary.
    fn with_ends(
        &self,
        #[pyo3(from_py_with = named::bos_id)] bos_id: Option<u32>,
        #[pyo3(from_py_with = named::eos_id)] eos_id: Option<u32>,
        #[pyo3(from_py_with = named::pad_id)] pad_id: Option<u32>,
        #[pyo3(from_py_with = named::unk_id)] unk_id: Option<u32>,
    ) -> PyResult<Self> {
        let ids = SpecialIds { bos: bos_id, eos: eos_id, pad: pad_id, unk: unk_id };
        self.inner.as_ref().clone().with_special_ids(ids).map(Self::new).map_err(to_py)
    }

    /// Return the tokenizer with a post-processor that puts these ids around each text; `None` puts nothing.
    fn with_template(
        &self,
        #[pyo3(from_py_with = named::before)] before: Option<u32>,
        #[pyo3(from_py_with = named::after)] after: Option<u32>,
    ) -> PyResult<Self> {
        self.inner.as_ref().clone().with_template(before, after).map(Self::new).map_err(to_py)
    }

    /// Return the tokenizer with more added tokens: content, special, single_word, lstrip, rstrip, normalized.
    fn with_added_tokens(&self, tokens: List<AddedFlags>) -> PyResult<Self> {
        let token = |(content, special, single_word, lstrip, rstrip, normalized)| {
            let token = AddedToken::special(content, 0);
            AddedToken { special, single_word, lstrip, rstrip, normalized, ..token }
        };
        self.inner.with_added_tokens(tokens.0.into_iter().map(token).collect()).map(Self::new).map_err(to_py)
    }
}
