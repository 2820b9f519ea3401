//! Ids to bytes and to text, at once (this file) or incrementally (`stream.rs`, `utf8_stream.rs`).

mod stream;
mod utf8_stream;

pub use self::stream::DecodeStream;
pub use self::utf8_stream::Utf8Stream;

use std::borrow::Cow;
use std::collections::TryReserveError;

use crate::{Error, Interrupt, Result, Tokenizer};

/// Ids between two interrupt checks, if decoding only concatenates bytes.
const CHECK_IDS: usize = 1 << 20;

impl Tokenizer {
    /// Returns the concatenated bytes of tokens, without SentencePiece's space prefix.
    ///
    /// If a `tokenizer.json` has another decoder than `ByteLevel`, they are the bytes of the text that it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id without a token; [`Error::OutOfMemory`].
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        self.decode(ids, false, Interrupt::NEVER)
    }

    /// Returns the bytes of [`Tokenizer::decode_bytes`], without special tokens if `skip_special`.
    ///
    /// # Errors
    /// As [`Tokenizer::decode_bytes`]; what the interrupt check returns.
    pub fn decode(&self, ids: &[u32], skip_special: bool, interrupt: Interrupt<'_>) -> Result<Vec<u8>> {
        if let Some(pipeline) = self.pipeline.as_ref().filter(|pipeline| !pipeline.decodes_bytes()) {
            return Ok(pipeline.decode(ids, &self.added, skip_special, interrupt)?.into_bytes());
        }
        if let Some(model) = self.sentencepiece() {
            return model.decode(&self.without_skipped(ids, skip_special), false, &self.added, interrupt);
        }
        let mut bytes = Vec::new();
        bytes.try_reserve(ids.len().saturating_mul(4)).map_err(|_| out_of_memory(ids))?;
        if !skip_special && !self.drops_space() {
            for chunk in ids.chunks(CHECK_IDS) {
                interrupt.check()?;
                for &id in chunk {
                    append(&mut bytes, self.id_to_bytes(id)?).map_err(|_| out_of_memory(ids))?;
                }
            }
            return Ok(bytes);
        }
        let mut at_start = self.drops_space();
        for (index, &id) in ids.iter().enumerate() {
            interrupt.check_at(index)?;
            let token = self.id_to_bytes(id)?;
            if !(skip_special && self.added.is_skipped(id)) {
                let token = if at_start { self.without_first_space(id, token, &mut at_start) } else { token };
                append(&mut bytes, token).map_err(|_| out_of_memory(ids))?;
            }
        }
        Ok(bytes)
    }

    /// Returns the text of tokens, with U+FFFD for invalid UTF-8: for each byte in a SentencePiece vocabulary, otherwise for
    /// each maximal prefix of a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_lossy(&self, ids: &[u32], skip_special: bool, interrupt: Interrupt<'_>) -> Result<String> {
        let bytes = match self.sentencepiece() {
            Some(model) => model.decode(&self.without_skipped(ids, skip_special), true, &self.added, interrupt)?,
            None => self.decode(ids, skip_special, interrupt)?,
        };
        let mut stream = Utf8Stream::new(self.decodes_as_sentencepiece());
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(error) => Ok(stream.push(error.as_bytes()) + &stream.flush()),
        }
    }

    /// Returns the ids, without special tokens if `skip_special`.
    fn without_skipped<'i>(&self, ids: &'i [u32], skip_special: bool) -> Cow<'i, [u32]> {
        if skip_special {
            ids.iter().copied().filter(|&id| !self.added.is_skipped(id)).collect()
        } else {
            Cow::Borrowed(ids)
        }
    }

    /// Returns whether decoding only concatenates the bytes of tokens.
    pub(crate) fn decodes_bytes(&self) -> bool {
        self.pipeline.as_ref().is_none_or(|pipeline| pipeline.decodes_bytes())
    }

    /// Returns the bytes of a token at the start of a text, and sets `at_start` for the next token.
    ///
    /// # Source
    /// `SentencePieceProcessor::DecodeOptimized` in `src/sentencepiece_processor.cc` of SentencePiece 0.2.3: if spaces
    /// collapse, each token loses a leading space until there is text; a byte token is never a space.
    fn without_first_space<'t>(&self, id: u32, token: &'t [u8], at_start: &mut bool) -> &'t [u8] {
        let is_byte = || self.vocab().byte_fallback().is_some_and(|bytes| bytes.contains(&id));
        let token = match token {
            [b' ', rest @ ..] if !(self.decodes_as_sentencepiece() && is_byte()) => rest,
            _ => token,
        };
        let collapses = self.spaces().is_some_and(|spaces| spaces.collapse);
        *at_start = self.decodes_as_sentencepiece() && collapses && token.is_empty();
        token
    }

    fn drops_space(&self) -> bool {
        self.spaces().is_some_and(|spaces| spaces.drop_first)
    }
}

/// Appends the bytes of a token, which can be long: a few ids of a file's longest token can exceed all memory.
#[inline]
fn append(bytes: &mut Vec<u8>, token: &[u8]) -> std::result::Result<(), TryReserveError> {
    if bytes.capacity() - bytes.len() < token.len() {
        bytes.try_reserve(token.len())?;
    }
    bytes.extend_from_slice(token);
    Ok(())
}

#[cold]
fn out_of_memory(ids: &[u32]) -> Error {
    Error::OutOfMemory(format!("there is no memory for the text of {} ids", ids.len()))
}
