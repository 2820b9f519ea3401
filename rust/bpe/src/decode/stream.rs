//! Ids to text, incrementally.

use super::utf8_stream::Utf8Stream;
use crate::sentencepiece::{Decoding, SentencePieceModel};
use crate::{Error, Interrupt, Result, Tokenizer};

/// Decodes ids to text one at a time: an incomplete character is held back.
///
/// The parts concatenate to [`Tokenizer::decode_lossy`] of all ids. If a `tokenizer.json` has byte fallback, a run of byte
/// tokens is held back until it ends, since one invalid byte turns the whole run into U+FFFD.
#[derive(Debug, Clone)]
pub struct DecodeStream {
    decoder: Decoder,
    skip_special: bool,
}

#[derive(Debug, Clone)]
enum Decoder {
    Bytes {
        utf8: Utf8Stream,
        /// Whether a space at the start of the next token is dropped.
        at_start: bool,
    },
    /// The decoder of a SentencePiece model.
    Model(Utf8Stream, Decoding),
    /// The decoder of a `tokenizer.json`, which depends on neighbouring tokens.
    Window(Window),
}

/// The last ids, and their text when text was last returned.
#[derive(Debug, Clone, Default)]
struct Window {
    ids: Vec<u32>,
    returned: String,
    /// The number of ids that `returned` is the text of.
    returned_ids: usize,
}

impl DecodeStream {
    /// Appends an id of `tokenizer` and returns the text that it completes.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id without a token; [`Error::InvalidArgument`] if this id makes the decoder of a
    /// `tokenizer.json` change text that was already returned.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        let is_skipped = self.skip_special && tokenizer.added.is_skipped(id);
        match &mut self.decoder {
            Decoder::Window(window) => window.push(tokenizer, id, self.skip_special),
            _ if is_skipped => Ok(String::new()),
            Decoder::Bytes { utf8, at_start } => {
                let token = tokenizer.id_to_bytes(id)?;
                Ok(utf8.push(if *at_start { tokenizer.without_first_space(id, token, at_start) } else { token }))
            }
            Decoder::Model(utf8, decoding) => match tokenizer.sentencepiece() {
                Some(model) => Ok(utf8.push(&model.decode_next(decoding, id, &tokenizer.added)?)),
                None => Ok(String::new()),
            },
        }
    }

    /// Returns the rest of the text after the last id: U+FFFD for an incomplete character, or nothing.
    ///
    /// # Errors
    /// As [`DecodeStream::push`].
    pub fn flush(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        Ok(match &mut self.decoder {
            Decoder::Bytes { utf8, .. } => utf8.flush(),
            Decoder::Model(utf8, decoding) => {
                let end = |model: &SentencePieceModel| model.decode_end(decoding, Interrupt::NEVER);
                let rest = tokenizer.sentencepiece().map(end).transpose()?.unwrap_or_default();
                utf8.push(&rest) + &utf8.flush()
            }
            Decoder::Window(window) => {
                let window = std::mem::take(window);
                let text = tokenizer.decode_text(&window.ids, self.skip_special)?;
                window.new_part(&text)?.to_owned()
            }
        })
    }
}

impl Window {
    /// Decodes the ids that may affect the new text, and returns what follows the text already returned.
    ///
    /// If the decoder depends on the whole text, all ids are decoded each time: the time is quadratic in their number.
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
        let decoded = tokenizer.decode_text(&self.ids, skip_special);
        if decoded.is_err() {
            self.ids.pop(); // an unknown id: the next ones are decoded without it
        }
        let text = decoded?;
        let new = self.new_part(&text)?.to_owned();
        if new.is_empty() || new.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        if tokenizer.pipeline.as_ref().is_none_or(|pipeline| pipeline.decodes_by_parts()) {
            self.ids.drain(..self.returned_ids);
            self.returned = tokenizer.decode_text(&self.ids, skip_special)?;
        } else {
            self.returned = text;
        }
        self.returned_ids = self.ids.len();
        Ok(new)
    }

    /// Returns the text after the part that was already returned.
    fn new_part<'t>(&self, text: &'t str) -> Result<&'t str> {
        text.strip_prefix(self.returned.as_str()).ok_or_else(|| {
            invalid!(
                "the decoder of this tokenizer changed text already returned, {:?}, to {text:?}: it cannot be streamed",
                self.returned
            )
        })
    }
}

impl Tokenizer {
    /// Returns an incremental decoder, which omits special tokens if `skip_special`.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        let utf8 = Utf8Stream::new(self.decodes_as_sentencepiece());
        let decoder = if !self.decodes_bytes() {
            Decoder::Window(Window::default())
        } else if self.sentencepiece().is_some() {
            Decoder::Model(utf8, Decoding::new(true))
        } else {
            Decoder::Bytes { utf8, at_start: self.drops_space() }
        };
        DecodeStream { decoder, skip_special }
    }

    fn decode_text(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        String::from_utf8(self.decode(ids, skip_special, Interrupt::NEVER)?)
            .map_err(|error| Error::Format(error.to_string()))
    }
}
