//! Ids of pieces to text.

use super::model::{Rules, SentencePieceModel};
use super::normalizer::{Call, ESCAPED_SPACE, REPLACEMENT};
use super::piece::PieceKind;
use crate::Result;
use crate::interrupt::Interrupt;
use crate::special::AddedTokens;

/// The state of decoding.
#[derive(Debug, Clone)]
pub(crate) struct Decoding {
    /// Text decoded and not yet returned.
    text: Vec<u8>,
    /// The bytes of byte pieces that are not yet a complete character.
    bytes: Vec<u8>,
    /// Whether no text has been decoded.
    is_empty: bool,
    /// Whether a leading space of the next piece is dropped.
    at_start: bool,
    /// Whether bytes of invalid UTF-8 become U+FFFD, as in SentencePiece, or remain unchanged.
    replaces: bool,
}

impl Decoding {
    /// Returns the state before the first id. With `replaces`, bytes of invalid UTF-8 become U+FFFD.
    pub(crate) fn new(replaces: bool) -> Self {
        Self { text: Vec::new(), bytes: Vec::new(), is_empty: true, at_start: true, replaces }
    }

    fn push(&mut self, text: &[u8]) {
        self.is_empty &= text.is_empty();
        self.text.extend_from_slice(text);
    }

    /// Appends the bytes of byte pieces to the text: all of them, or those that further bytes cannot change.
    fn flush_bytes(&mut self, all: bool) {
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
    /// Returns the text of these ids. Control pieces have no text; an added token is decoded to its content.
    ///
    /// With `replaces`, bytes of invalid UTF-8 become U+FFFD, as in SentencePiece.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] for an id without a piece and without an added token; the error of the interrupt
    /// check.
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
        for (index, &id) in ids.iter().enumerate() {
            interrupt.check_at(index)?;
            self.decode_id(&mut decoding, id, added)?;
        }
        self.decode_end(&mut decoding, interrupt)
    }

    /// Returns the text that one more id completes.
    pub(crate) fn decode_next(&self, decoding: &mut Decoding, id: u32, added: &AddedTokens) -> Result<Vec<u8>> {
        self.decode_id(decoding, id, added)?;
        decoding.flush_bytes(false);
        // The rules of a denormalizer can depend on the text that follows.
        Ok(if self.denormalizer.is_some() { Vec::new() } else { std::mem::take(&mut decoding.text) })
    }

    /// Returns the rest of the text after the last id.
    pub(crate) fn decode_end(&self, decoding: &mut Decoding, interrupt: Interrupt<'_>) -> Result<Vec<u8>> {
        decoding.flush_bytes(true);
        let text = std::mem::take(&mut decoding.text);
        let Some(denormalizer) = &self.denormalizer else { return Ok(text) };
        let begins_with_space = denormalizer.add_dummy_prefix;
        let call = Call { protected: None, begins_with_space, with_positions: false, interrupt };
        Ok(denormalizer.apply(&text, call)?.bytes)
    }

    fn decode_id(&self, decoding: &mut Decoding, id: u32, added: &AddedTokens) -> Result<()> {
        let (Some(piece), Some(kind)) = (self.piece(id), self.kind(id)) else {
            let text = added.bytes_of(id).ok_or_else(|| not_found!("id {id} is not in this vocabulary"))?;
            decoding.flush_bytes(true);
            decoding.push(text);
            return Ok(());
        };
        if kind == PieceKind::Byte {
            decoding.bytes.extend(self.byte_of(id));
            return Ok(());
        }
        decoding.flush_bytes(true);
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
            // If white space was removed, all leading spaces are dropped, else only the added one.
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
