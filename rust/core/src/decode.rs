//! Ids to bytes, and bytes to text as they come.

use crate::sentencepiece::Decoding;
use crate::{Result, Tokenizer};

impl Tokenizer {
    /// Returns the bytes of all tokens, one after another; without the space that SentencePiece puts first.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] for an id that no token has.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        if let Some(model) = self.sentencepiece() {
            return model.decode(ids, false);
        }
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let mut at_start = self.drops_space();
        for &id in ids {
            let token = self.id_to_bytes(id)?;
            bytes.extend_from_slice(if at_start { self.without_first_space(id, token, &mut at_start) } else { token });
        }
        Ok(bytes)
    }

    /// Returns the text of all tokens, in which bytes that are no UTF-8 are U+FFFD: SentencePiece's vocabularies put one
    /// for each byte, others one for each start of a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode_bytes`].
    pub fn decode_lossy(&self, ids: &[u32]) -> Result<String> {
        let bytes = match self.sentencepiece() {
            Some(model) => model.decode(ids, true)?,
            None => self.decode_bytes(ids)?,
        };
        let mut stream = Utf8Stream::new(self.decodes_as_sentencepiece());
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(error) => Ok(stream.push(error.as_bytes()) + &stream.flush()),
        }
    }

    /// Returns what [`Tokenizer::decode_next`] keeps from one id to the next.
    pub fn decode_stream(&self) -> DecodeStream {
        let model = self.sentencepiece().map(|_| Decoding::new(true));
        DecodeStream { utf8: Utf8Stream::new(self.decodes_as_sentencepiece()), at_start: self.drops_space(), model }
    }

    /// Returns the text that is complete now that one more id has come.
    ///
    /// The parts put together are [`Tokenizer::decode_lossy`] of all ids.
    ///
    /// # Errors
    /// As [`Tokenizer::decode_bytes`].
    pub fn decode_next(&self, stream: &mut DecodeStream, id: u32) -> Result<String> {
        if let (Some(model), Some(decoding)) = (self.sentencepiece(), &mut stream.model) {
            return Ok(stream.utf8.push(&model.decode_next(decoding, id)?));
        }
        let token = self.id_to_bytes(id)?;
        let at_start = &mut stream.at_start;
        Ok(stream.utf8.push(if *at_start { self.without_first_space(id, token, at_start) } else { token }))
    }

    /// Returns the text that is left when no more ids come: U+FFFD for a character that never ended, or nothing.
    pub fn decode_end(&self, stream: &mut DecodeStream) -> String {
        let mut text = String::new();
        if let (Some(model), Some(decoding)) = (self.sentencepiece(), &mut stream.model) {
            text = stream.utf8.push(&model.decode_end(decoding));
        }
        text + &stream.utf8.flush()
    }

    /// Returns a token that begins a text as it is decoded, and whether the next one still does.
    ///
    /// # Source
    /// `SentencePieceProcessor::DecodeOptimized` in `src/sentencepiece_processor.cc` of SentencePiece 0.2.3: where
    /// spaces collapse each token loses one until there is text; a byte's piece is no space.
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

/// How far the decoding of ids that come one at a time is: see [`Tokenizer::decode_next`].
#[derive(Debug, Clone)]
pub struct DecodeStream {
    utf8: Utf8Stream,
    /// Whether a space that begins the next token is left out.
    at_start: bool,
    model: Option<Decoding>,
}

/// Turns token bytes into text piece by piece, holding back what is not yet a whole character.
///
/// The pieces put together equal the lossy decoding of all the bytes: every byte sequence that is no UTF-8 becomes
/// U+FFFD, in the places where `String::from_utf8_lossy` puts it.
///
/// ```
/// let mut stream = bpe_llama::Utf8Stream::default();
/// assert_eq!(stream.push("é".as_bytes().split_at(1).0), "");
/// assert_eq!(stream.push("é".as_bytes().split_at(1).1), "é");
/// assert_eq!(stream.push(&[0xE2, 0x82]), "");
/// assert_eq!(stream.flush(), "\u{FFFD}");
/// ```
#[derive(Debug, Default, Clone)]
pub struct Utf8Stream {
    pending: Vec<u8>,
    /// Whether each byte that is no UTF-8 becomes U+FFFD, as in SentencePiece, and not each start of a character.
    replaces_each: bool,
}

impl Utf8Stream {
    /// Returns a stream in which each byte that is no UTF-8 becomes U+FFFD, if `replaces_each`.
    pub(crate) fn new(replaces_each: bool) -> Self {
        Self { pending: Vec::new(), replaces_each }
    }

    /// Returns the text that is complete now that `bytes` have come.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let keep = incomplete_tail(&self.pending);
        self.take(self.pending.len() - keep)
    }

    /// Returns what is left: U+FFFD for the start of a character that never ended, or nothing.
    pub fn flush(&mut self) -> String {
        self.take(self.pending.len())
    }

    fn take(&mut self, count: usize) -> String {
        let bytes = &self.pending[..count];
        let text = if self.replaces_each {
            let chunk =
                |chunk: std::str::Utf8Chunk<'_>| chunk.valid().to_owned() + &"\u{FFFD}".repeat(chunk.invalid().len());
            bytes.utf8_chunks().map(chunk).collect()
        } else {
            String::from_utf8_lossy(bytes).into_owned()
        };
        self.pending.drain(..count);
        text
    }
}

/// Returns how many bytes at the end are the valid start of a character that more bytes could complete.
fn incomplete_tail(bytes: &[u8]) -> usize {
    for length in 1..=bytes.len().min(3) {
        let tail = &bytes[bytes.len() - length..];
        if tail[0] & 0xC0 != 0x80 {
            let incomplete = std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none());
            return if incomplete { length } else { 0 };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::Utf8Stream;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_add_up_to_the_lossy_text(text in ".*", noise in prop::collection::vec(any::<u8>(), 0..20), cut in 1usize..5) {
            let mut bytes = text.into_bytes();
            bytes.extend(noise);
            let mut stream = Utf8Stream::default();
            let mut out: String = bytes.chunks(cut).map(|chunk| stream.push(chunk)).collect();
            out += &stream.flush();
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }
    }
}
