//! The keys and hashes of pieces.

use crate::inline_key::{INLINE_BYTES, InlineKey, inline_key, word};

/// The key and hash of a piece.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Probe {
    pub(super) key: InlineKey,
    pub(super) hash: u64,
}

/// Set in the top byte of a fragment's key: a whole piece of the same bytes may have other ids.
const FRAGMENT: u64 = 1 << 63;

/// The key of every long piece: no short piece and no empty entry has it.
pub(super) const LONG: InlineKey = [0, 0x7F << 56];

impl Probe {
    /// Returns the probe of the piece `bytes[start..end]`.
    #[inline(always)]
    pub(super) fn new(bytes: &[u8], start: usize, end: usize) -> Self {
        let length = end - start;
        if length > INLINE_BYTES {
            return Self { key: LONG, hash: hash_long(&bytes[start..end]) };
        }
        let key = inline_key(bytes, start, length);
        Self { key, hash: hash_short(key) }
    }

    /// Returns the probe of a fragment of a piece, of at most 15 bytes.
    pub(crate) fn of_fragment(fragment: &[u8]) -> Self {
        let [low, high] = inline_key(fragment, 0, fragment.len());
        let key = [low, high | FRAGMENT];
        Self { key, hash: hash_short(key) }
    }
}

#[inline(always)]
pub(super) fn hash_short(key: InlineKey) -> u64 {
    fold(key[0] ^ 0x9E37_79B9_7F4A_7C15, key[1] ^ 0xD1B5_4A32_D192_ED03)
}

/// Returns the hash of at least 16 bytes, which is not 0.
#[inline(never)]
fn hash_long(piece: &[u8]) -> u64 {
    let mut hash = piece.len() as u64;
    let chunks = piece.chunks_exact(16);
    for window in chunks.chain(piece.last_chunk::<16>().map(|last| &last[..])) {
        hash = fold(word(window, 0) ^ 0x9E37_79B9_7F4A_7C15 ^ hash, word(window, 8) ^ 0xD1B5_4A32_D192_ED03);
    }
    hash | 1 << 63
}

/// Returns both halves of the 128-bit product, combined: every input bit affects every output bit.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}
