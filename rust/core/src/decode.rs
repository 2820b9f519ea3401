//! Ids to bytes, and ids to text as they come.

use crate::{Error, Result, Tokenizer};

impl Tokenizer {
    /// Returns the bytes of all tokens, one after another; without the space that SentencePiece puts first.
    ///
    /// Where a `tokenizer.json` has another decoder than `ByteLevel`, they are those of the text it gives.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        self.decode(ids, false)
    }

    /// Returns the bytes of [`Tokenizer::decode_bytes`], special tokens left out if `skip_special`.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<Vec<u8>> {
        if let Some(pipeline) = self.pipeline.as_ref().filter(|pipeline| !pipeline.decodes_bytes()) {
            return Ok(pipeline.decode(ids, &self.added, skip_special)?.into_bytes());
        }
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            let token = self.id_to_bytes(id)?;
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(token);
            }
        }
        if self.drops_space() && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        Ok(bytes)
    }

    /// Returns whether decoding is no more than putting the bytes of tokens together.
    pub(crate) fn decodes_bytes(&self) -> bool {
        self.pipeline.as_ref().is_none_or(|pipeline| pipeline.decodes_bytes())
    }

    /// Returns what turns ids into text as they come, special tokens left out if `skip_special`.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream {
        let way = if self.decodes_bytes() {
            Way::Bytes(Utf8Stream::new(self.drops_space()))
        } else {
            Way::Window(Window::default())
        };
        DecodeStream { way, skip_special }
    }

    fn drops_space(&self) -> bool {
        self.spaces().is_some_and(|spaces| spaces.drop_first)
    }
}

/// Turns ids into text one at a time, holding back what is not yet a whole character.
#[derive(Debug, Clone)]
pub struct DecodeStream {
    way: Way,
    skip_special: bool,
}

#[derive(Debug, Clone)]
enum Way {
    Bytes(Utf8Stream),
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
    /// [`Error::NotFound`] for an id that no token has.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        match &mut self.way {
            Way::Bytes(stream) => {
                let bytes = tokenizer.id_to_bytes(id)?;
                Ok(if self.skip_special && tokenizer.is_special(id) { String::new() } else { stream.push(bytes) })
            }
            Way::Window(window) => window.push(tokenizer, id, self.skip_special),
        }
    }

    /// Returns what was held back.
    pub fn flush(&mut self, tokenizer: &Tokenizer) -> String {
        match &mut self.way {
            Way::Bytes(stream) => stream.flush(),
            Way::Window(window) => {
                let window = std::mem::take(window);
                let text = tokenizer.decode_text(&window.ids, self.skip_special).unwrap_or_default();
                text.strip_prefix(&window.shown).unwrap_or_default().to_owned()
            }
        }
    }
}

impl Window {
    /// Decodes the ids since the text before the last, since decoders look at neighbours, and gives out what is new.
    ///
    /// Source: `DecodeStream` of Hugging Face `tokenizers`.
    fn push(&mut self, tokenizer: &Tokenizer, id: u32, skip_special: bool) -> Result<String> {
        tokenizer.id_to_bytes(id)?;
        self.ids.push(id);
        let text = tokenizer.decode_text(&self.ids, skip_special)?;
        let new = text.strip_prefix(&self.shown).filter(|new| !new.is_empty() && !new.ends_with('\u{fffd}'));
        let Some(new) = new.map(str::to_owned) else { return Ok(String::new()) };
        self.ids.drain(..self.shown_ids);
        self.shown = tokenizer.decode_text(&self.ids, skip_special)?;
        self.shown_ids = self.ids.len();
        Ok(new)
    }
}

impl Tokenizer {
    fn decode_text(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        String::from_utf8(self.decode(ids, skip_special)?).map_err(|error| Error::Format(error.to_string()))
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
    /// Whether a space that comes first is left out.
    drops_space: bool,
}

impl Utf8Stream {
    /// Returns a stream that leaves out a space that comes first, if `drops_space`.
    pub(crate) fn new(drops_space: bool) -> Self {
        Self { pending: Vec::new(), drops_space }
    }

    /// Returns the text that is complete now that `bytes` have come.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let is_dropped = self.drops_space && bytes.first() == Some(&b' ');
        self.drops_space &= bytes.is_empty();
        let bytes = if is_dropped { &bytes[1..] } else { bytes };
        self.pending.extend_from_slice(bytes);
        let keep = incomplete_tail(&self.pending);
        let done = self.pending.len() - keep;
        let text = String::from_utf8_lossy(&self.pending[..done]).into_owned();
        self.pending.drain(..done);
        text
    }

    /// Returns what is left: U+FFFD for the start of a character that never ended, or nothing.
    pub fn flush(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
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
