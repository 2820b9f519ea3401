//! Unmergeable boundaries: character boundaries inside a piece that no token of the vocabulary spans.
//!
//! Scripts without spaces yield long pieces that never repeat, of characters that do. If no token contains any end of one
//! character followed by any start of the next, no merge crosses the boundary between them. So the piece can be split there
//! and each fragment encoded, and cached, alone.

use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashSet;

use crate::utf8::{char_len, is_continuation};
use crate::vocab::Vocab;

/// The pairs of adjacent characters, whole or in part, that some token contains.
pub(crate) struct UnmergeableBoundaries {
    /// The characters on both sides of every character boundary inside a token, as far as the token contains them.
    crossings: HashSet<u64, foldhash::fast::FixedState>,
    /// One bit for each pair of bytes, by `first << 8 | second`, that is adjacent at such a boundary.
    adjacent: Box<[u64; 1 << 10]>,
    /// A direct-mapped cache of answers: the bytes of a pair, with [`UNMERGEABLE`] set if no merge joins them.
    memo: Box<[AtomicU64]>,
}

const MEMO_BITS: u32 = 14;
const UNMERGEABLE: u64 = 1 << 63;

impl UnmergeableBoundaries {
    pub(crate) fn new(vocab: &Vocab) -> Self {
        let mut crossings = HashSet::default();
        let mut adjacent = Box::new([0; 1 << 10]);
        for (token, _) in vocab.tokens() {
            for cut in 1..token.len() {
                if is_continuation(token[cut]) || (token[cut] < 0x80 && token[cut - 1] < 0x80) {
                    continue;
                }
                let left = &token[..cut];
                let first = (cut.saturating_sub(4)..cut).rev().find(|&i| !is_continuation(token[i]));
                let left = &left[first.unwrap_or(cut.saturating_sub(4))..];
                let right = &token[cut..];
                let right = &right[..char_len(right[0]).min(right.len())];
                crossings.insert(crossing_key(left, right));
                let (word, bit) = adjacent_bit(token[cut - 1], token[cut]);
                adjacent[word] |= bit;
            }
        }
        let memo = (0..1 << MEMO_BITS).map(|_| AtomicU64::new(0)).collect();
        Self { crossings, adjacent, memo }
    }

    /// Returns the first unmergeable boundary inside `piece`, which must be UTF-8.
    ///
    /// Boundaries between two ASCII characters are not considered: some token contains almost every such pair.
    #[inline]
    pub(crate) fn next(&self, piece: &[u8]) -> Option<usize> {
        if piece.is_ascii() {
            return None;
        }
        let mut previous = 0;
        let mut at = char_len(*piece.first()?);
        while at < piece.len() {
            let end = at + char_len(piece[at]);
            if (piece[at] >= 0x80 || piece[previous] >= 0x80) && self.is_unmergeable(piece, previous, at, end) {
                return Some(at);
            }
            (previous, at) = (at, end);
        }
        None
    }

    /// Returns whether no token contains an end of `piece[start..at]` followed by a start of `piece[at..end]`.
    #[inline]
    fn is_unmergeable(&self, piece: &[u8], start: usize, at: usize, end: usize) -> bool {
        let (word, bit) = adjacent_bit(piece[at - 1], piece[at]);
        if self.adjacent[word] & bit == 0 {
            return true;
        }
        // Up to 7 bytes, the key is the pair itself: the lead bytes tell where the first character ends.
        let length = end - start;
        if length > 7 {
            return self.look_up(&piece[start..at], &piece[at..end]);
        }
        let window = if let Some(window) = piece.get(start..start + 8) {
            window.try_into().unwrap_or_default()
        } else {
            let mut window = [0; 8];
            window[..length].copy_from_slice(&piece[start..end]);
            window
        };
        let key = u64::from_le_bytes(window) & ((1 << (8 * length)) - 1);
        let slot = &self.memo[(key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - MEMO_BITS)) as usize];
        let known = slot.load(Ordering::Relaxed);
        if known & !UNMERGEABLE == key {
            return known & UNMERGEABLE != 0;
        }
        let unmergeable = self.look_up(&piece[start..at], &piece[at..end]);
        slot.store(key | if unmergeable { UNMERGEABLE } else { 0 }, Ordering::Relaxed);
        unmergeable
    }

    #[cold]
    fn look_up(&self, left: &[u8], right: &[u8]) -> bool {
        !(0..left.len())
            .any(|from| (1..=right.len()).any(|to| self.crossings.contains(&crossing_key(&left[from..], &right[..to]))))
    }
}

/// Returns the hash of both sides, up to 4 bytes each, and of their lengths.
fn crossing_key(left: &[u8], right: &[u8]) -> u64 {
    let mut key = (left.len() * 4 + right.len()) as u64;
    for &byte in left.iter().chain(right) {
        key = key.wrapping_mul(0x0100_0000_01B3).rotate_left(23) ^ u64::from(byte);
    }
    key
}

/// Returns the word and the bit of a pair of bytes.
fn adjacent_bit(first: u8, second: u8) -> (usize, u64) {
    (usize::from(first) << 2 | usize::from(second) >> 6, 1 << (second & 63))
}
