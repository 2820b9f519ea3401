//! Pieces of up to 15 bytes as 128-bit keys: comparing and hashing them touches no other memory.

/// The most bytes that a key holds.
pub(crate) const INLINE_BYTES: usize = 15;

/// The bytes of a piece in little-endian order, zero-padded, with its length in the top byte: equal keys are equal pieces.
pub(crate) type InlineKey = [u64; 2];

/// `MASKS[n]` selects the first `n` of 16 bytes.
const MASKS: [InlineKey; 16] = {
    let mut masks = [[0; 2]; 16];
    let mut n = 1;
    while n < 16 {
        let mask = (1u128 << (8 * n)) - 1;
        masks[n] = [mask as u64, (mask >> 64) as u64];
        n += 1;
    }
    masks
};

/// Returns the key of `text[start..start + length]`; `length` is at most [`INLINE_BYTES`].
///
/// Given the whole text rather than the piece alone, it is one 16-byte load and a mask.
#[inline(always)]
pub(crate) fn inline_key(text: &[u8], start: usize, length: usize) -> InlineKey {
    let [low, high] = match text.get(start..start + 16) {
        Some(window) => [word(window, 0), word(window, 8)],
        None => last_words(text, start),
    };
    let mask = MASKS[length & 15];
    [low & mask[0], (high & mask[1]) | (length as u64) << 56]
}

/// Returns the 16 bytes from `start` on, zero-padded where the text ends before.
#[inline]
fn last_words(text: &[u8], start: usize) -> InlineKey {
    if let Some(window) = text.last_chunk::<16>() {
        let words = u128::from_le_bytes(*window) >> (8 * (start + 16 - text.len()));
        return [words as u64, (words >> 64) as u64];
    }
    let mut window = [0; 16];
    let rest = &text[start..];
    window[..rest.len()].copy_from_slice(rest);
    [word(&window, 0), word(&window, 8)]
}

/// Returns the little-endian word of the eight bytes at `at`.
#[inline(always)]
pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}
