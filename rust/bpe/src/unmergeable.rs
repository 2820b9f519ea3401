//! Places inside a piece that no token of the vocabulary spans.
//!
//! Scripts without spaces give long pieces that never repeat, while their characters do. Between two characters that
//! no token holds side by side, no merge can ever happen, so the piece can be cut there and each part encoded alone.

use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashSet;

use crate::utf8::{char_len, is_continuation};
use crate::vocab::Vocab;

/// Which pairs of neighbouring characters some token holds side by side, whole or in part.
pub(crate) struct UnmergeableBoundaries {
    /// Both sides of every character boundary inside a token, each cut to what the token shows of that character.
    crossings: HashSet<u64, foldhash::fast::FixedState>,
    /// A bit for each two bytes, by the first times 256 and the second, that meet at such a boundary.
    meeting: Box<[u64; 1 << 10]>,
    /// Answers to pairs already asked for: the pair's bytes, and [`APART`] where no merge joins them.
    memo: Box<[AtomicU64]>,
}

const MEMO_BITS: u32 = 14;
const APART: u64 = 1 << 63;

impl UnmergeableBoundaries {
    pub(crate) fn new(vocab: &Vocab) -> Self {
        let mut crossings = HashSet::default();
        let mut meeting = Box::new([0; 1 << 10]);
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
                let (word, bit) = meeting_bit(token[cut - 1], token[cut]);
                meeting[word] |= bit;
            }
        }
        let memo = (0..1 << MEMO_BITS).map(|_| AtomicU64::new(0)).collect();
        Self { crossings, meeting, memo }
    }

    /// Returns the first place, within `piece`, before a character that no merge joins to the one before it.
    ///
    /// `piece` must be UTF-8. Between two ASCII characters nothing is looked up and nothing is cut: almost all of them
    /// are held by some token.
    #[inline]
    pub(crate) fn next_cut(&self, piece: &[u8]) -> Option<usize> {
        if piece.is_ascii() {
            return None;
        }
        let mut previous = 0;
        let mut at = char_len(*piece.first()?);
        while at < piece.len() {
            let end = at + char_len(piece[at]);
            if (piece[at] >= 0x80 || piece[previous] >= 0x80) && self.apart(piece, previous, at, end) {
                return Some(at);
            }
            (previous, at) = (at, end);
        }
        None
    }

    /// Returns whether no token holds any end of `piece[start..at]` and any start of `piece[at..end]` side by side.
    #[inline]
    fn apart(&self, piece: &[u8], start: usize, at: usize, end: usize) -> bool {
        // Up to 7 bytes of two characters, whose lead bytes tell where one ends: the key is the pair itself.
        let length = end - start;
        if length > 7 {
            return self.apart_unknown(&piece[start..at], &piece[at..end]);
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
        if known & !APART == key {
            return known & APART != 0;
        }
        let apart = self.apart_unknown(&piece[start..at], &piece[at..end]);
        slot.store(key | if apart { APART } else { 0 }, Ordering::Relaxed);
        apart
    }

    #[cold]
    fn apart_unknown(&self, left: &[u8], right: &[u8]) -> bool {
        let (word, bit) = meeting_bit(left[left.len() - 1], right[0]);
        if self.meeting[word] & bit == 0 {
            return true;
        }
        !(0..left.len())
            .any(|from| (1..=right.len()).any(|to| self.crossings.contains(&crossing_key(&left[from..], &right[..to]))))
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

/// Where the bit of two bytes is.
fn meeting_bit(first: u8, second: u8) -> (usize, u64) {
    (usize::from(first) << 2 | usize::from(second) >> 6, 1 << (second & 63))
}
