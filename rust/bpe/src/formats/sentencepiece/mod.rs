//! SentencePiece's `tokenizer.model`, and the pieces of one in a GGUF file.
//!
//! `file.rs` reads a model and writes pieces as one. Where byte-level merging gives the same ids and texts (Llama 2,
//! Mistral 7B), `merged.rs` makes a vocabulary of it; else the model encodes itself, as `crate::sentencepiece` defines.

mod file;
mod merged;

use hashbrown::HashSet;

use self::file::{ModelFile, write_pieces};
use crate::byte_alphabet::byte_of;
use crate::normalize::SPACE;
use crate::sentencepiece::{Normalizer, Options, Rules, SentencePieceModel};
use crate::{AddedToken, Error, Pretokenizer, Result, SpecialIds, Tokenizer, Vocab};

/// One entry of a SentencePiece vocabulary; its id is its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its text, with `▁` for a space.
    pub text: String,
    /// The higher, the sooner it is merged.
    pub score: f32,
    /// What it is for.
    pub kind: PieceKind,
}

/// What a piece is for: the numbers are those of `tokenizer.model` and of GGUF's `token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// An ordinary token.
    Normal = 1,
    /// Stands for what no token does.
    Unknown = 2,
    /// Controls the model, and is never text.
    Control = 3,
    /// Taken whole wherever its text occurs.
    UserDefined = 4,
    /// Text never becomes it.
    Unused = 5,
    /// Stands for one byte.
    Byte = 6,
}

impl PieceKind {
    /// Returns the kind of a number.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not 1 to 6.
    pub fn from_number(number: u64) -> Result<Self> {
        Ok(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return Err(Error::Format(format!("a piece is of type {number}; expected 1 to 6"))),
        })
    }
}

impl Tokenizer {
    /// Returns the tokenizer in SentencePiece's `tokenizer.model`.
    ///
    /// Ids, offsets and texts are SentencePiece's. What lies between special tokens, where they are allowed, is encoded
    /// as a text of its own. Where byte-level merging gives the same ids (Llama 2, Mistral 7B) it is used, which is
    /// faster.
    ///
    /// # Errors
    /// [`Error::Format`] if it is damaged, or its model is not of the type BPE.
    ///
    /// # Source
    /// SentencePiece 0.2.3: `src/sentencepiece_model.proto`, `normalizer.cc`, `bpe_model.cc`,
    /// `sentencepiece_processor.cc`.
    pub fn from_sentencepiece(model: &[u8]) -> Result<Self> {
        let file = ModelFile::read(model)?;
        let options = file.options()?;
        let (prefix, collapse) = (options.normalizer.add_dummy_prefix, options.normalizer.remove_extra_whitespaces);
        if file.is_of_gguf {
            return Self::from_pieces(file.pieces, prefix, collapse);
        }
        let (is_plain, names) = (file.is_plain(&options), file.special_names());
        let model = SentencePieceModel::new(&file.pieces, options, model.to_vec())?;
        let [bos, eos, pad, unknown] = &names;
        let [bos, eos, pad] = [bos, eos, pad].map(|name| model.id_of(name, PieceKind::Control));
        let ends = SpecialIds { bos, eos, pad, unk: model.id_of(unknown, PieceKind::Unknown) };
        let merged = if is_plain { Self::from_merged_pieces(file.pieces, prefix, collapse).ok() } else { None };
        let tokenizer = match merged {
            Some(tokenizer) => tokenizer.decoding_as_sentencepiece(),
            None => Self::from_model(model)?,
        };
        tokenizer.with_special_ids(ends)
    }

    /// Returns the `tokenizer.model` that this tokenizer was read from.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if none is kept: byte-level merging expresses it, or it was read from another file.
    pub fn to_sentencepiece(&self) -> Result<&[u8]> {
        let refuse =
            |why: &str| Err(Error::InvalidArgument(format!("this vocabulary cannot be saved as .model: {why}")));
        match self.sentencepiece() {
            None => refuse("it keeps no SentencePiece model; save it as tokenizer.json"),
            Some(model) if model.rules() == Rules::LlamaCpp => {
                refuse("its pieces come from a GGUF file, where llama.cpp's rules give other ids than SentencePiece's")
            }
            Some(model) => Ok(model.source()),
        }
    }

    /// Returns the tokenizer that encodes and decodes as this model does.
    fn from_model(model: SentencePieceModel) -> Result<Self> {
        let (mut tokens, mut added, mut decode_only) = (Vec::new(), Vec::new(), HashSet::new());
        let mut known = HashSet::new();
        for (id, text, kind) in model.pieces() {
            let bytes = match kind {
                PieceKind::Control | PieceKind::Unknown => {
                    added.push(AddedToken::special(text, id));
                    continue;
                }
                PieceKind::Byte => byte_of(text).into_iter().collect(),
                _ => text.replace(SPACE, " ").into_bytes(),
            };
            let is_text = matches!(kind, PieceKind::Normal | PieceKind::UserDefined) && !text.contains(' ');
            if is_text && known.insert(bytes.clone()) {
                tokens.push((bytes, id));
                continue;
            }
            decode_only.insert(id);
            tokens.push((bytes, id));
        }
        // A byte's piece is found by its byte if no other piece is.
        for (bytes, id) in &tokens {
            if model.kind(*id) == Some(PieceKind::Byte) && known.insert(bytes.clone()) {
                decode_only.remove(id);
            }
        }
        let vocab = Vocab::of_sentencepiece_model(tokens, |id| decode_only.contains(&id))?;
        let spaces = model.spaces();
        let tokenizer = Self::new(vocab, Pretokenizer::whole()?, added, false)?;
        Ok(tokenizer.with_spaces(spaces).with_sentencepiece(model))
    }

    /// Returns the tokenizer of the SentencePiece pieces that a GGUF file holds, as llama.cpp encodes by them.
    ///
    /// `prefix` puts a space before a text, `collapse` removes spaces at both ends and makes several in a row one, which
    /// llama.cpp itself does not do for such pieces.
    ///
    /// # Errors
    /// [`Error::Format`] if one of the 256 bytes has no piece, a score is no number, or two pieces have one text.
    ///
    /// # Source
    /// `llm_tokenizer_spm_session` in `src/llama-vocab.cpp` of llama.cpp.
    pub fn from_pieces(mut pieces: Vec<Piece>, prefix: bool, collapse: bool) -> Result<Self> {
        for (piece, id) in pieces.iter_mut().zip(0u32..) {
            if piece.score.is_nan() {
                return Err(Error::Format(format!("piece {id} has the score {}", piece.score)));
            }
            // Of zero and minus zero neither is higher.
            piece.score += 0.0;
        }
        let is_plain = !pieces.iter().any(|piece| matches!(piece.kind, PieceKind::Unused | PieceKind::UserDefined));
        if is_plain && let Ok(tokenizer) = Self::from_merged_pieces(pieces.clone(), prefix, collapse) {
            return Ok(tokenizer);
        }
        let normalizer = Normalizer {
            add_dummy_prefix: prefix,
            remove_extra_whitespaces: collapse,
            keeps_bytes: true,
            ..Normalizer::default()
        };
        let options = Options {
            normalizer,
            denormalizer: None,
            byte_fallback: true,
            unknown_surface: String::new(),
            rules: Rules::LlamaCpp,
        };
        let source = write_pieces(&pieces, prefix, collapse);
        Self::from_model(SentencePieceModel::new(&pieces, options, source)?)
    }
}
