//! What pieces were encoded to, so that a word met again costs one look-up.
//!
//! Two direct-mapped tables whose entries hold key and ids inline: a hit touches one cache line, a collision replaces
//! what stood there. The size is fixed, so memory is bounded whatever the text.

/// A piece of up to 15 bytes, its length in the top byte: equal keys are equal pieces.
pub(crate) type ShortKey = [u64; 2];

/// Up to 31 bytes, likewise.
pub(crate) type LongKey = [u64; 4];

pub(crate) const SHORT_BYTES: usize = 15;
pub(crate) const LONG_BYTES: usize = 31;

/// How many ids an entry holds at most.
const SHORT_IDS: usize = 3;
const LONG_IDS: usize = 7;

/// The last element is how many of the others are ids.
pub(crate) type ShortIds = [u32; SHORT_IDS + 1];
pub(crate) type LongIds = [u32; LONG_IDS + 1];

#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct ShortEntry {
    key: ShortKey,
    ids: ShortIds,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct LongEntry {
    key: LongKey,
    ids: LongIds,
}

const SHORT_BITS: u32 = 18;
const LONG_BITS: u32 = 15;

/// The tables of one thread: 8 MiB of short pieces and 2 MiB of long ones.
pub(crate) struct PieceCache {
    short: Box<[ShortEntry; 1 << SHORT_BITS]>,
    long: Box<[LongEntry; 1 << LONG_BITS]>,
}

impl Default for PieceCache {
    fn default() -> Self {
        // Key 0 is a piece of length 0, which is never looked up: zeroed memory is an empty table.
        Self {
            short: boxed(ShortEntry { key: [0; 2], ids: [0; SHORT_IDS + 1] }),
            long: boxed(LongEntry { key: [0; 4], ids: [0; LONG_IDS + 1] }),
        }
    }
}

/// Returns a table of one value, made on the heap: it would not fit the stack.
fn boxed<T: Copy, const N: usize>(value: T) -> Box<[T; N]> {
    match vec![value; N].into_boxed_slice().try_into() {
        Ok(table) => table,
        Err(_) => unreachable!("the vector has the table's length"),
    }
}

impl PieceCache {
    #[inline]
    pub(crate) fn get_short(&self, key: ShortKey) -> Option<ShortIds> {
        let entry = &self.short[short_slot(key)];
        (entry.key == key).then_some(entry.ids)
    }

    pub(crate) fn put_short(&mut self, key: ShortKey, ids: &[u32]) {
        if ids.len() <= SHORT_IDS {
            let entry = &mut self.short[short_slot(key)];
            entry.key = key;
            entry.ids[..ids.len()].copy_from_slice(ids);
            entry.ids[SHORT_IDS] = ids.len() as u32;
        }
    }

    #[inline]
    pub(crate) fn get_long(&self, key: LongKey) -> Option<LongIds> {
        let entry = &self.long[long_slot(key)];
        (entry.key == key).then_some(entry.ids)
    }

    pub(crate) fn put_long(&mut self, key: LongKey, ids: &[u32]) {
        if ids.len() <= LONG_IDS {
            let entry = &mut self.long[long_slot(key)];
            entry.key = key;
            entry.ids[..ids.len()].copy_from_slice(ids);
            entry.ids[LONG_IDS] = ids.len() as u32;
        }
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

/// Set in the top byte of the key of a part of a piece, which whole pieces must not be taken for.
const PART: u64 = 1 << 63;

/// Returns the key of `bytes[start..start + length]`, at most 15 bytes, as a whole piece or as a part of one.
#[inline]
pub(crate) fn short_key(bytes: &[u8], start: usize, length: usize, is_part: bool) -> ShortKey {
    let [low, high] = match bytes.get(start..start + 16) {
        Some(window) => [word(window, 0), word(window, 8)],
        None => last_words(bytes, start),
    };
    let mask = MASKS[length & 15];
    [low & mask[0], (high & mask[1]) | (length as u64) << 56 | if is_part { PART } else { 0 }]
}

/// The sixteen bytes that the end of the text cuts short, zeros after it.
#[cold]
fn last_words(bytes: &[u8], start: usize) -> ShortKey {
    let mut window = [0; 16];
    let rest = &bytes[start..];
    window[..rest.len()].copy_from_slice(rest);
    [word(&window, 0), word(&window, 8)]
}

/// Returns the little-endian word of the eight bytes from `at` on.
#[inline]
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

/// Returns the key of a piece of at most 31 bytes.
pub(crate) fn long_key(piece: &[u8]) -> LongKey {
    let mut window = [0; 32];
    window[..piece.len()].copy_from_slice(piece);
    window[31] = piece.len() as u8;
    [0, 8, 16, 24].map(|at| word(&window, at))
}

#[inline]
fn short_slot(key: ShortKey) -> usize {
    (fold(key[0] ^ 0x9E37_79B9_7F4A_7C15, key[1] ^ 0xD1B5_4A32_D192_ED03) >> (64 - SHORT_BITS)) as usize
}

#[inline]
fn long_slot(key: LongKey) -> usize {
    let low = fold(key[0] ^ 0x9E37_79B9_7F4A_7C15, key[1] ^ 0xD1B5_4A32_D192_ED03);
    let high = fold(key[2] ^ 0x8CB9_2BA7_2F3D_8DD7, key[3] ^ 0xAAAA_AAAA_5555_5555);
    (fold(low ^ 0xD6E8_FEB8_6659_FD93, high ^ 0xA24B_AED4_963E_E407) >> (64 - LONG_BITS)) as usize
}

/// Both halves of the 128-bit product, mixed: every input bit reaches every output bit.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}
