//! Where a long text may be cut without changing its pieces.

use super::unicode::{LETTER, NUMBER, SYMBOL, WHITESPACE, class_at};

/// Returns an offset of at least `from` that is safe under every named pattern.
///
/// Between a letter or number and what follows it, if that is white space or punctuation: every pattern ends a piece
/// there whatever came before, and the letter or number before the cut is the same piece at the end of a text. The
/// apostrophe is left out, since `o200k` lets a word keep its contraction.
pub(super) fn chunk_boundary(text: &[u8], from: usize) -> Option<usize> {
    let is_start = |at: usize| text[at] & 0xc0 != 0x80;
    let mut at = from.min(text.len());
    while at > 0 && at < text.len() && !is_start(at) {
        at -= 1;
    }
    at = (0..at).rev().find(|&before| is_start(before)).unwrap_or(0);
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
