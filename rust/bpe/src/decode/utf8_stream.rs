//! Bytes to text, incrementally.

use crate::utf8::is_continuation;

/// Decodes bytes to text incrementally: an incomplete character is held back until its last byte arrives.
///
/// The parts concatenate to the lossy decoding of all bytes: invalid UTF-8 becomes U+FFFD as in
/// [`String::from_utf8_lossy`].
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
    /// Whether each invalid byte becomes U+FFFD, as in SentencePiece, instead of each maximal prefix of a character.
    replaces_each: bool,
}

impl Utf8Stream {
    /// Returns a stream that replaces each invalid byte if `replaces_each`, otherwise each maximal prefix of a character.
    pub(crate) fn new(replaces_each: bool) -> Self {
        Self { pending: Vec::new(), replaces_each }
    }

    /// Appends bytes and returns the text that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let keep = incomplete_tail(&self.pending);
        self.take(self.pending.len() - keep)
    }

    /// Returns the rest: U+FFFD for an incomplete character, or nothing.
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

/// Returns the number of bytes at the end that are a valid prefix of a character.
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
        fn parts_concatenate_to_the_lossy_text(text in ".*", noise in prop::collection::vec(any::<u8>(), 0..20), cut in 1usize..5) {
            let mut bytes = text.into_bytes();
            bytes.extend(noise);
            let mut stream = Utf8Stream::default();
            let mut out: String = bytes.chunks(cut).map(|chunk| stream.push(chunk)).collect();
            out += &stream.flush();
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }
    }
}
