//! What pieces are looked up by.

/// A piece of up to 15 bytes, its length in the top byte: equal keys are equal pieces.
pub(super) type ShortKey = [u64; 2];

pub(crate) const SHORT_BYTES: usize = 15;

/// What a piece is looked up by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Probe {
    pub(super) key: ShortKey,
    pub(super) hash: u64,
}

/// Set in the top byte of the key of a part of a piece, which whole pieces must not be taken for.
const PART: u64 = 1 << 63;

/// The key of a piece too long for one: no short piece has it, nor an empty entry.
pub(super) const LONG: ShortKey = [0, 0x7F << 56];

impl Probe {
    /// Returns the probe of the piece `bytes[start..end]`.
    #[inline(always)]
    pub(super) fn new(bytes: &[u8], start: usize, end: usize) -> Self {
        let length = end - start;
        if length > SHORT_BYTES {
            return Self { key: LONG, hash: hash_long(&bytes[start..end]) };
        }
        let key = short_key(bytes, start, length);
        Self { key, hash: hash_short(key) }
    }

    /// Returns the probe of a part, of at most 15 bytes, of a piece.
    pub(crate) fn of_part(part: &[u8]) -> Self {
        let [low, high] = short_key(part, 0, part.len());
        let key = [low, high | PART];
        Self { key, hash: hash_short(key) }
    }
}

/// `MASKS[n]` keeps the first `n` bytes of sixteen.
const MASKS: [ShortKey; 16] = {
    let mut masks = [[0; 2]; 16];
    let mut n = 1;
    while n < 16 {
        let mask = (1u128 << (8 * n)) - 1;
        masks[n] = [mask as u64, (mask >> 64) as u64];
        n += 1;
    }
    masks
};

/// Returns the key of `bytes[start..start + length]`, at most 15 bytes.
#[inline(always)]
fn short_key(bytes: &[u8], start: usize, length: usize) -> ShortKey {
    let [low, high] = match bytes.get(start..start + 16) {
        Some(window) => [word(window, 0), word(window, 8)],
        None => last_words(bytes, start),
    };
    let mask = MASKS[length & 15];
    [low & mask[0], (high & mask[1]) | (length as u64) << 56]
}

/// The sixteen bytes that the end of the text cuts short, zeros after it.
#[inline]
fn last_words(bytes: &[u8], start: usize) -> ShortKey {
    if let Some(window) = bytes.last_chunk::<16>() {
        let words = u128::from_le_bytes(*window) >> (8 * (start + 16 - bytes.len()));
        return [words as u64, (words >> 64) as u64];
    }
    let mut window = [0; 16];
    let rest = &bytes[start..];
    window[..rest.len()].copy_from_slice(rest);
    [word(&window, 0), word(&window, 8)]
}

/// Returns the little-endian word of the eight bytes from `at` on.
#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

#[inline(always)]
pub(super) fn hash_short(key: ShortKey) -> u64 {
    fold(key[0] ^ 0x9E37_79B9_7F4A_7C15, key[1] ^ 0xD1B5_4A32_D192_ED03)
}

/// Returns the hash, not 0, of at least 16 bytes.
#[inline(never)]
fn hash_long(piece: &[u8]) -> u64 {
    let mut hash = piece.len() as u64;
    let chunks = piece.chunks_exact(16);
    for window in chunks.chain(piece.last_chunk::<16>().map(|last| &last[..])) {
        hash = fold(word(window, 0) ^ 0x9E37_79B9_7F4A_7C15 ^ hash, word(window, 8) ^ 0xD1B5_4A32_D192_ED03);
    }
    hash | 1 << 63
}

/// Both halves of the 128-bit product, mixed: every input bit reaches every output bit.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}
