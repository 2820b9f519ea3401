//! The structure of UTF-8: lead bytes, continuation bytes and the lengths that lead bytes announce.

/// Returns whether a byte continues a character: `10xxxxxx`.
#[inline(always)]
pub(crate) fn is_continuation(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}

/// Returns the length in bytes of the character that begins with `lead`; 1 for a continuation byte.
#[inline]
pub(crate) fn char_len(lead: u8) -> usize {
    match lead {
        0..0xC0 => 1,
        0xC0..0xE0 => 2,
        0xE0..0xF0 => 3,
        _ => 4,
    }
}

/// Returns the number of characters in UTF-8 text.
pub(crate) fn char_count(text: &[u8]) -> usize {
    text.iter().filter(|&&byte| !is_continuation(byte)).count()
}
