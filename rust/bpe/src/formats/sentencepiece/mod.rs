//! SentencePiece's `tokenizer.model`, and the SentencePiece pieces of a GGUF file.
//!
//! | file | |
//! |---|---|
//! | `model_file.rs` | the fields of a model file, read and written |
//! | `byte_level.rs` | a vocabulary over bytes, if its merges give the same ids (Llama 2, Mistral 7B) |
//! | `splits.rs` | pre-tokenizers for SentencePiece vocabularies |
//!
//! Any other model is encoded by [`crate::sentencepiece`].

mod byte_level;
mod model_file;
mod splits;

pub(super) use self::splits::{isolate, require_space, words_or_whole};

use hashbrown::HashSet;

use self::model_file::{ModelFile, OF_GGUF, write_pieces};
use crate::byte_alphabet::byte_of;
use crate::normalize::METASPACE;
use crate::sentencepiece::{Normalizer, Options, Piece, PieceKind, Rules, SentencePieceModel};
use crate::{AddedToken, Pretokenizer, Result, SpecialIds, Tokenizer, Vocab};

impl Tokenizer {
    /// Returns the tokenizer of SentencePiece's `tokenizer.model`.
    ///
    /// Ids, offsets and texts equal SentencePiece's. Each segment between allowed special tokens is encoded as a text
    /// of its own. Byte-level merges, which are faster, are used if they give the same ids (Llama 2, Mistral 7B).
    ///
    /// # Errors
    /// [`crate::Error::Format`] if the file is damaged, or its model is not BPE.
    ///
    /// # Source
    /// SentencePiece 0.2.3: `src/sentencepiece_model.proto`, `normalizer.cc`, `bpe_model.cc`,
    /// `sentencepiece_processor.cc`.
    pub fn from_sentencepiece(model: &[u8]) -> Result<Self> {
        let of_gguf = model.strip_prefix(OF_GGUF);
        let file = ModelFile::read(of_gguf.unwrap_or(model))?;
        let options = file.options()?;
        let (prefix, collapse) = (options.normalizer.add_dummy_prefix, options.normalizer.remove_extra_whitespaces);
        if of_gguf.is_some() {
            return Self::from_pieces(file.pieces, prefix, collapse);
        }
        let (is_plain, names) = (file.is_plain(&options), file.special_names());
        let model = SentencePieceModel::new(&file.pieces, options, model.to_vec())?;
        let [bos, eos, pad, unknown] = &names;
        let [bos, eos, pad] = [bos, eos, pad].map(|name| model.id_of(name, PieceKind::Control));
        let ends = SpecialIds { bos, eos, pad, unk: model.id_of(unknown, PieceKind::Unknown) };
        let byte_level = if is_plain { Self::from_byte_level_pieces(file.pieces, prefix, collapse).ok() } else { None };
        let tokenizer = match byte_level {
            Some(tokenizer) => tokenizer.decoding_as_sentencepiece(),
            None => Self::from_model(model)?,
        };
        tokenizer.with_special_ids(ends)
    }

    /// Returns the `tokenizer.model` that this tokenizer was read from.
    ///
    /// With `config_beside`, a `tokenizer_config.json` beside it is to name the added tokens and the post-processor that the
    /// file does not hold.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if the file is not stored: byte-level merges replace it, or the tokenizer was
    /// read from another format. Without `config_beside`, likewise for what the file does not hold.
    pub fn to_sentencepiece(&self, config_beside: bool) -> Result<&[u8]> {
        let refuse = |why: &str| Err(invalid!("this vocabulary cannot be saved as .model: {why}"));
        let Some(model) = self.sentencepiece() else {
            return refuse("it keeps no SentencePiece model; save it as tokenizer.json");
        };
        if model.rules() == Rules::LlamaCpp {
            return refuse(
                "its pieces come from a GGUF file, where llama.cpp's rules give other ids than SentencePiece's",
            );
        }
        let of_model = |token: &AddedToken| {
            let is_piece = matches!(model.kind(token.id), Some(PieceKind::Control | PieceKind::Unknown));
            is_piece && *token == AddedToken::special(&token.content, token.id)
        };
        if config_beside {
            return Ok(model.source());
        }
        let what = if let Some(token) = self.added_tokens().iter().find(|token| !of_model(token)) {
            format!("the added token {:?}", token.content)
        } else if let Some(id) = self.template.special_ids().next() {
            format!("the post-processor, which adds {:?},", String::from_utf8_lossy(self.id_to_bytes(id)?))
        } else {
            return Ok(model.source());
        };
        refuse(&format!("{what} cannot be stored in such a file; save to a folder: its tokenizer_config.json holds it"))
    }

    /// Returns the tokenizer that encodes and decodes by this model.
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
                _ => text.replace(METASPACE, " ").into_bytes(),
            };
            let is_text = matches!(kind, PieceKind::Normal | PieceKind::UserDefined) && !text.contains(' ');
            if is_text && known.insert(bytes.clone()) {
                tokens.push((bytes, id));
                continue;
            }
            decode_only.insert(id);
            tokens.push((bytes, id));
        }
        // The byte piece is the token of its byte if no other piece is.
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

    /// Returns the tokenizer of the SentencePiece pieces of a GGUF file, with the ids of llama.cpp.
    ///
    /// `prefix` adds a space before a text. `collapse` removes spaces at both ends and collapses runs of spaces, which
    /// llama.cpp does not do for such pieces.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if one of the 256 bytes has no piece, a score is NaN, or two pieces have the same text.
    ///
    /// # Source
    /// `llm_tokenizer_spm_session` in `src/llama-vocab.cpp` of llama.cpp.
    pub fn from_pieces(mut pieces: Vec<Piece>, prefix: bool, collapse: bool) -> Result<Self> {
        for (piece, id) in pieces.iter_mut().zip(0u32..) {
            if piece.score.is_nan() {
                return Err(malformed!("piece {id} has the score {}", piece.score));
            }
            // Zero and minus zero are the same score.
            piece.score += 0.0;
        }
        let is_plain = !pieces.iter().any(|piece| matches!(piece.kind, PieceKind::Unused | PieceKind::UserDefined));
        if is_plain && let Ok(tokenizer) = Self::from_byte_level_pieces(pieces.clone(), prefix, collapse) {
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
