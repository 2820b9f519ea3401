//! Pieces to text.

use super::normalizer::{Call, ESCAPED_SPACE, REPLACEMENT};
use super::{Rules, SentencePieceModel};
use crate::formats::PieceKind;
use crate::interrupt::Interrupt;
use crate::special::AddedTokens;
use crate::{Error, Result};

/// How far decoding has come.
#[derive(Debug, Clone)]
pub(crate) struct Decoding {
    /// What came out so far and is not yet taken.
    text: Vec<u8>,
    /// Bytes of byte pieces that are not yet a whole character.
    bytes: Vec<u8>,
    /// Whether no text came so far.
    is_empty: bool,
    /// Whether a space that begins the next piece is left out.
    at_start: bool,
    /// Whether a byte that is no UTF-8 becomes U+FFFD, as in SentencePiece, or stays.
    replaces: bool,
}

impl Decoding {
    /// Returns the beginning, in which bytes that are no UTF-8 become U+FFFD or stay.
    pub(crate) fn new(replaces: bool) -> Self {
        Self { text: Vec::new(), bytes: Vec::new(), is_empty: true, at_start: true, replaces }
    }

    fn push(&mut self, text: &[u8]) {
        self.is_empty &= text.is_empty();
        self.text.extend_from_slice(text);
    }

    /// Moves to the text what byte pieces made so far: all of it, or what more bytes cannot change.
    fn settle(&mut self, all: bool) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut rest = &bytes[..];
        if !self.replaces {
            self.push(rest);
            return;
        }
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(_) => {
                    self.push(rest);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.push(valid);
                    rest = after;
                    if error.error_len().is_none() && !all {
                        break;
                    }
                    self.push(REPLACEMENT);
                    rest = &rest[1..];
                }
            }
        }
        self.bytes.extend_from_slice(rest);
    }
}

impl SentencePieceModel {
    /// Returns the text of these ids. Control pieces have none; tokens that were added to the model are text as it stands.
    ///
    /// With `replaces`, a byte that is no UTF-8 becomes U+FFFD, as in SentencePiece.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that neither a piece nor an added token has; what the interrupt check returns.
    ///
    /// # Source
    /// `SentencePieceProcessor::DecodeOptimized` in `src/sentencepiece_processor.cc` of SentencePiece 0.2.3.
    pub(crate) fn decode(
        &self,
        ids: &[u32],
        replaces: bool,
        added: &AddedTokens,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<u8>> {
        let mut decoding = Decoding::new(replaces);
        decoding.text.reserve(ids.len() * 4);
        for (turn, &id) in ids.iter().enumerate() {
            interrupt.check_at(turn)?;
            self.decode_id(&mut decoding, id, added)?;
        }
        self.decode_end(&mut decoding, interrupt)
    }

    /// Returns the text that is complete now that one more id has come.
    ///
    /// # Errors
    /// As [`SentencePieceModel::decode`].
    pub(crate) fn decode_next(&self, decoding: &mut Decoding, id: u32, added: &AddedTokens) -> Result<Vec<u8>> {
        self.decode_id(decoding, id, added)?;
        decoding.settle(false);
        // What the rules of a denormalizer make of the end of a text may depend on what follows.
        Ok(if self.denormalizer.is_some() { Vec::new() } else { std::mem::take(&mut decoding.text) })
    }

    /// Returns the text that is left when no more ids come.
    ///
    /// # Errors
    /// What the interrupt check returns.
    pub(crate) fn decode_end(&self, decoding: &mut Decoding, interrupt: Interrupt<'_>) -> Result<Vec<u8>> {
        decoding.settle(true);
        let text = std::mem::take(&mut decoding.text);
        let Some(denormalizer) = &self.denormalizer else { return Ok(text) };
        let begins_with_space = denormalizer.add_dummy_prefix;
        let call = Call { protected: None, begins_with_space, with_places: false, interrupt };
        Ok(denormalizer.apply(&text, call)?.bytes)
    }

    fn decode_id(&self, decoding: &mut Decoding, id: u32, added: &AddedTokens) -> Result<()> {
        let (Some(piece), Some(kind)) = (self.piece(id), self.kind(id)) else {
            let text =
                added.bytes_of(id).ok_or_else(|| Error::NotFound(format!("id {id} is not in this vocabulary")))?;
            decoding.settle(true);
            decoding.push(text);
            return Ok(());
        };
        if kind == PieceKind::Byte {
            decoding.bytes.extend(self.byte_of(id));
            return Ok(());
        }
        decoding.settle(true);
        decoding.at_start &= decoding.is_empty;
        if kind == PieceKind::Control {
            return Ok(());
        }
        let mut text = piece.as_bytes();
        let mut was_space = false;
        if decoding.at_start
            && (self.normalizer.add_dummy_prefix || self.normalizer.remove_extra_whitespaces)
            && let Some(rest) = text.strip_prefix(ESCAPED_SPACE)
        {
            // Where white space was removed, no number of spaces begins a text; else it is one that was put there.
            (text, was_space) = (rest, !self.normalizer.remove_extra_whitespaces);
        }
        let is_llama_cpp = self.rules == Rules::LlamaCpp;
        if is_llama_cpp && kind == PieceKind::Unused {
            text = b"";
        }
        if is_llama_cpp && kind == PieceKind::UserDefined {
            decoding.push(text);
        } else if kind == PieceKind::Unknown {
            decoding.push(self.unknown_surface.as_bytes());
        } else {
            let mut rest = text;
            while let Some(at) = memchr::memmem::find(rest, ESCAPED_SPACE) {
                decoding.push(&rest[..at]);
                decoding.push(b" ");
                rest = &rest[at + ESCAPED_SPACE.len()..];
            }
            decoding.push(rest);
        }
        decoding.at_start &= decoding.is_empty && !was_space;
        Ok(())
    }
}
