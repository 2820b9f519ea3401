//! Ids to bytes, and ids to text as they come.

use std::borrow::Cow;

use crate::sentencepiece::{Decoding, SentencePieceModel};
use crate::utf8::is_continuation;
use crate::{Error, Interrupt, Result, Tokenizer};

/// Ids between two interrupt checks, where a token is no more than its bytes.
const PAUSE_EVERY: usize = 1 << 20;

impl Tokenizer {
    /// Returns the bytes of all tokens, one after another; without the space that SentencePiece puts first.
    ///
    /// Where a `tokenizer.json` has another decoder than `ByteLevel`, they are those of the text it gives.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        self.decode(ids, false, Interrupt::NEVER)
    }

    /// Returns the bytes of [`Tokenizer::decode_bytes`], special tokens left out if `skip_special`.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has; what the interrupt check returns.
    pub fn decode(&self, ids: &[u32], skip_special: bool, interrupt: Interrupt<'_>) -> Result<Vec<u8>> {
        if let Some(pipeline) = self.pipeline.as_ref().filter(|pipeline| !pipeline.decodes_bytes()) {
            return Ok(pipeline.decode(ids, &self.added, skip_special, interrupt)?.into_bytes());
        }
        if let Some(model) = self.sentencepiece() {
            return model.decode(&self.kept(ids, skip_special), false, &self.added, interrupt);
        }
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        if !skip_special && !self.drops_space() {
            for ids in ids.chunks(PAUSE_EVERY) {
                interrupt.check()?;
                for &id in ids {
                    bytes.extend_from_slice(self.id_to_bytes(id)?);
                }
            }
            return Ok(bytes);
        }
        let mut at_start = self.drops_space();
        for (turn, &id) in ids.iter().enumerate() {
            interrupt.check_at(turn)?;
            let token = self.id_to_bytes(id)?;
            if !(skip_special && self.added.is_left_out(id)) {
                bytes.extend_from_slice(if at_start {
                    self.without_first_space(id, token, &mut at_start)
                } else {
                    token
                });
            }
        }
        Ok(bytes)
    }

    /// Returns the text of tokens, in which bytes that are no UTF-8 are U+FFFD: SentencePiece's vocabularies put one for
    /// each byte, others one for each start of a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_lossy(&self, ids: &[u32], skip_special: bool, interrupt: Interrupt<'_>) -> Result<String> {
        let bytes = match self.sentencepiece() {
            Some(model) => model.decode(&self.kept(ids, skip_special), true, &self.added, interrupt)?,
            None => self.decode(ids, skip_special, interrupt)?,
        };
        let mut stream = Utf8Stream::new(self.decodes_as_sentencepiece());
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(error) => Ok(stream.push(error.as_bytes()) + &stream.flush()),
        }
    }

    /// Returns the ids without those of special tokens, if they are to be left out.
    fn kept<'i>(&self, ids: &'i [u32], skip_special: bool) -> Cow<'i, [u32]> {
        if skip_special {
            ids.iter().copied().filter(|&id| !self.added.is_left_out(id)).collect()
        } else {
            Cow::Borrowed(ids)
        }
    }

    /// Returns whether decoding is no more than putting the bytes of tokens together.
    pub(crate) fn decodes_bytes(&self) -> bool {
        self.pipeline.as_ref().is_none_or(|pipeline| pipeline.decodes_bytes())
    }

    /// Returns what turns ids into text as they come, special tokens left out if `skip_special`.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        let utf8 = Utf8Stream::new(self.decodes_as_sentencepiece());
        let way = if !self.decodes_bytes() {
            Way::Window(Window::default())
        } else if self.sentencepiece().is_some() {
            Way::Model(utf8, Decoding::new(true))
        } else {
            Way::Bytes { utf8, at_start: self.drops_space() }
        };
        DecodeStream { way, skip_special }
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

/// Turns ids into text one at a time, holding back what is not yet a whole character.
///
/// The parts put together are [`Tokenizer::decode_lossy`] of all ids. Where a `tokenizer.json` spells unknown characters as
/// tokens of bytes, a run of them is held back until it ends, since one byte too many makes U+FFFD of the whole run.
#[derive(Debug, Clone)]
pub struct DecodeStream {
    way: Way,
    skip_special: bool,
}

#[derive(Debug, Clone)]
enum Way {
    Bytes {
        utf8: Utf8Stream,
        /// Whether a space that begins the next token is left out.
        at_start: bool,
    },
    /// A SentencePiece model decodes itself.
    Model(Utf8Stream, Decoding),
    /// The decoder of a `tokenizer.json` looks at neighbours.
    Window(Window),
}

/// The last ids, and what they were decoded to when text was given out last.
#[derive(Debug, Clone, Default)]
struct Window {
    ids: Vec<u32>,
    shown: String,
    /// How many of the ids had come by then.
    shown_ids: usize,
}

impl DecodeStream {
    /// Returns the text that is complete now that this id of the tokenizer has come.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has; [`Error::InvalidArgument`] if the decoder of a `tokenizer.json`
    /// changes, now that this id has come, text that was given out before.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        let is_left_out = self.skip_special && tokenizer.added.is_left_out(id);
        match &mut self.way {
            Way::Window(window) => window.push(tokenizer, id, self.skip_special),
            _ if is_left_out => Ok(String::new()),
            Way::Bytes { utf8, at_start } => {
                let token = tokenizer.id_to_bytes(id)?;
                Ok(utf8.push(if *at_start { tokenizer.without_first_space(id, token, at_start) } else { token }))
            }
            Way::Model(utf8, decoding) => match tokenizer.sentencepiece() {
                Some(model) => Ok(utf8.push(&model.decode_next(decoding, id, &tokenizer.added)?)),
                None => Ok(String::new()),
            },
        }
    }

    /// Returns the text that is left when no more ids come: U+FFFD for a character that never ended, or nothing.
    ///
    /// # Errors
    /// As [`DecodeStream::push`].
    pub fn flush(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        Ok(match &mut self.way {
            Way::Bytes { utf8, .. } => utf8.flush(),
            Way::Model(utf8, decoding) => {
                let end = |model: &SentencePieceModel| model.decode_end(decoding, Interrupt::NEVER);
                let rest = tokenizer.sentencepiece().map(end).transpose()?.unwrap_or_default();
                utf8.push(&rest) + &utf8.flush()
            }
            Way::Window(window) => {
                let window = std::mem::take(window);
                let text = tokenizer.decode_text(&window.ids, self.skip_special)?;
                window.new_part(&text)?.to_owned()
            }
        })
    }
}

impl Window {
    /// Decodes the ids since the text before the last, since decoders look at neighbours, and gives out what is new.
    ///
    /// Source: `DecodeStream` of Hugging Face `tokenizers`.
    fn push(&mut self, tokenizer: &Tokenizer, id: u32, skip_special: bool) -> Result<String> {
        if let Some(pipeline) = &tokenizer.pipeline {
            if skip_special && pipeline.is_special(id, &tokenizer.added) {
                return Ok(String::new());
            }
            if pipeline.is_byte_of_run(id, &tokenizer.added) {
                self.ids.push(id);
                return Ok(String::new());
            }
        }
        self.ids.push(id);
        let text = tokenizer.decode_text(&self.ids, skip_special)?;
        let new = self.new_part(&text)?.to_owned();
        if new.is_empty() || new.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.ids.drain(..self.shown_ids);
        self.shown = tokenizer.decode_text(&self.ids, skip_special)?;
        self.shown_ids = self.ids.len();
        Ok(new)
    }

    /// Returns what comes behind the text that was given out.
    fn new_part<'t>(&self, text: &'t str) -> Result<&'t str> {
        text.strip_prefix(self.shown.as_str()).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "the decoder of this tokenizer changed text that was given out, {:?}, to {text:?}: it cannot be streamed",
                self.shown
            ))
        })
    }
}

impl Tokenizer {
    fn decode_text(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        String::from_utf8(self.decode(ids, skip_special, Interrupt::NEVER)?)
            .map_err(|error| Error::Format(error.to_string()))
    }
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
        if !is_continuation(tail[0]) {
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
