//! Ids to bytes, and bytes to text as they come.

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
