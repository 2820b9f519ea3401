//! Chunk boundaries: offsets where a text can be split without changing its pieces.

use super::unicode::{LETTER, NUMBER, SYMBOL, WHITESPACE, class_at};
use crate::utf8::is_continuation;

/// Returns a chunk boundary of every named pattern, at or after `from`.
///
/// It is between a letter or number and white space or punctuation. Every pattern ends a piece there, and the piece before
/// is the same at the end of a text. Apostrophes are excluded: in `o200k` a word includes its contraction.
pub(super) fn chunk_boundary(text: &[u8], from: usize) -> Option<usize> {
    let is_boundary = |at: usize| !is_continuation(text[at]);
    let mut at = from.min(text.len());
    while at > 0 && at < text.len() && !is_boundary(at) {
        at -= 1;
    }
    at = (0..at).rev().find(|&before| is_boundary(before)).unwrap_or(0);
    let mut before = 0;
    while at < text.len() {
        let (class, length) = class_at(text, at);
        let ends_piece = class & (WHITESPACE | SYMBOL) != 0 && text[at] != b'\'';
        if at >= from && ends_piece && before & (LETTER | NUMBER) != 0 {
            return Some(at);
        }
        before = class;
        at += length;
    }
    None
}
