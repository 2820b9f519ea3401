//! Places inside a piece that no token of the vocabulary spans.
//!
//! Scripts without spaces give long pieces that never repeat, while their characters do. Between two characters that
//! no token holds side by side, no merge can ever happen, so the piece can be cut there and each part encoded alone.

use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashSet;

use crate::vocab::Vocab;

/// Which pairs of neighbouring characters some token holds side by side, whole or in part.
pub(crate) struct Boundaries {
    /// Both sides of every character boundary inside a token, each cut to what the token shows of that character.
    crossings: HashSet<u64, foldhash::fast::FixedState>,
    /// Answers for pairs already asked for: the pair's key, its lowest bit 1 where they may be cut apart.
    memo: Vec<AtomicU64>,
}

const MEMO_BITS: u32 = 14;

impl Boundaries {
    pub(crate) fn new(vocab: &Vocab) -> Self {
        let mut crossings = HashSet::default();
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
            }
        }
        Self { crossings, memo: (0..1 << MEMO_BITS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Returns the first place, within `piece`, before a character that no merge joins to the one before it.
    ///
    /// Between two ASCII characters nothing is looked up and nothing is cut: almost all of them are held by some token.
    pub(crate) fn next_cut(&self, piece: &[u8]) -> Option<usize> {
        let mut at = char_len(*piece.first()?);
        let mut previous = 0;
        while at < piece.len() {
            let end = (at + char_len(piece[at])).min(piece.len());
            if (piece[at] >= 0x80 || piece[previous] >= 0x80) && self.apart(&piece[previous..at], &piece[at..end]) {
                return Some(at);
            }
            (previous, at) = (at, end);
        }
        None
    }

    /// Returns whether no token holds any end of `left` and any start of `right` side by side.
    fn apart(&self, left: &[u8], right: &[u8]) -> bool {
        let key = pair_key(left, right);
        // Two characters take at most 8 bytes; their lead bytes tell where one ends, so the key is the pair itself.
        let slot = &self.memo[(key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - MEMO_BITS)) as usize];
        let known = slot.load(Ordering::Relaxed);
        if known & !1 == key << 1 && key >> 63 == 0 {
            return known & 1 == 1;
        }
        let spanned = (0..left.len()).any(|from| {
            (1..=right.len()).any(|to| self.crossings.contains(&crossing_key(&left[from..], &right[..to])))
        });
        if key >> 63 == 0 {
            slot.store(key << 1 | u64::from(!spanned), Ordering::Relaxed);
        }
        !spanned
    }
}

/// Both sides as one number, with their lengths where the bytes leave room: up to 4 + 4 bytes.
fn crossing_key(left: &[u8], right: &[u8]) -> u64 {
    let mut key = (left.len() * 4 + right.len()) as u64;
    for &byte in left.iter().chain(right) {
        key = key.wrapping_mul(0x0100_0000_01B3).rotate_left(23) ^ u64::from(byte);
    }
    key
}

fn pair_key(left: &[u8], right: &[u8]) -> u64 {
    left.iter().chain(right).fold(0, |key, &byte| key << 8 | u64::from(byte))
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}

/// Returns how many bytes the character with this first byte takes; 1 for a byte that can start none.
fn char_len(first: u8) -> usize {
    match first {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    }
}
