//! The word map: a hash map from words to 64-bit counts. Short words are stored inline, so a word needs no allocation
//! and a look-up one or two cache lines.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use crate::Result;
use crate::inline_key::{INLINE_BYTES, inline_key};
use crate::interrupt::Interrupt;
use crate::memory::{filled, reserve};

/// Words between two interrupt checks: some milliseconds.
const CHECK_WORDS: usize = 1 << 16;

/// A word of so many bytes has an interrupt check of its own.
const LONG_WORD: u64 = 1 << 16;

/// The top byte of [`Word::high`] if the word is in the arena.
const IN_ARENA: u64 = 0xFF;

/// A word, packed and hashed.
#[derive(Clone, Copy, Default)]
pub(in crate::train) struct Key<'a> {
    low: u64,
    high: u64,
    hash: u64,
    bytes: &'a [u8],
}

impl<'a> Key<'a> {
    /// Packs and hashes `text[start..end]`. With the whole text at hand, packing a short word is one 16-byte load and a
    /// mask.
    #[inline]
    pub(in crate::train) fn new(text: &'a [u8], start: usize, end: usize) -> Self {
        let bytes = &text[start..end];
        if bytes.len() <= INLINE_BYTES {
            let [low, high] = inline_key(text, start, bytes.len());
            Self { low, high, hash: fold(low, high), bytes }
        } else {
            let hash = FixedState::with_seed(0).hash_one(bytes);
            Self { low: 0, high: IN_ARENA << 56 | bytes.len() as u64, hash, bytes }
        }
    }

    /// Returns the shard of the word, of `1 << bits`: the top bits of the hash.
    #[inline]
    pub(in crate::train) fn shard(&self, bits: u32) -> usize {
        (self.hash >> (64 - bits)) as usize
    }
}

/// Mixes 128 bits into 64: the two halves of one 128-bit product.
#[inline]
fn fold(low: u64, high: u64) -> u64 {
    // Digits of pi, so that no likely key makes a factor zero.
    let wide = u128::from(low ^ 0x243F_6A88_85A3_08D3) * u128::from(high ^ 0x1319_8A2E_0370_7344);
    let mixed = wide as u64 ^ (wide >> 64) as u64;
    // The low bits select the slot, the high bits the shard: both must depend on all input bits.
    mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (mixed >> 29)
}

/// A distinct word and its count: 24 bytes.
#[derive(Debug, Clone, Copy)]
struct Word {
    /// The first 8 bytes, or the offset of the word in the arena.
    low: u64,
    /// The next 7 bytes and the length, or the length and [`IN_ARENA`].
    high: u64,
    count: u64,
}

/// Word counts. Iteration is in order of first occurrence, so results do not depend on hashes.
#[derive(Debug, Clone, Default)]
pub(in crate::train) struct WordMap {
    /// `tag << 32 | index into words + 1`, or 0 if empty. The length is a power of two; at most two thirds are in use.
    slots: Vec<u64>,
    words: Vec<Word>,
    arena: Vec<u8>,
}

impl WordMap {
    /// Returns the number of distinct words.
    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    /// Returns the first slot that a look-up of the word probes, for [`WordMap::add_from`].
    #[inline]
    pub(in crate::train) fn peek(&self, key: &Key<'_>) -> u64 {
        let mask = self.slots.len().wrapping_sub(1);
        self.slots.get(key.hash as usize & mask).copied().unwrap_or(0)
    }

    /// Adds 1 to the count of the word. `slot` comes from [`WordMap::peek`]; other words may have been added since.
    #[inline]
    pub(in crate::train) fn add_from(&mut self, key: Key<'_>, slot: u64) {
        if slot != 0 && (slot ^ key.hash) >> 32 == 0 {
            let index = (slot as u32 - 1) as usize;
            if self.holds(index, &key) {
                self.words[index].count += 1;
                return;
            }
        }
        self.add(key, 1);
    }

    /// Adds `count` to the count of the word, saturating.
    #[inline]
    pub(super) fn add(&mut self, key: Key<'_>, count: u64) {
        if (self.words.len() + 1) * 3 > self.slots.len() * 2 {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let tag = key.hash & 0xFFFF_FFFF_0000_0000;
        let mut at = key.hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            if slot & 0xFFFF_FFFF_0000_0000 == tag {
                let index = (slot as u32 - 1) as usize;
                if self.holds(index, &key) {
                    let total = &mut self.words[index].count;
                    *total = total.saturating_add(count);
                    return;
                }
            }
            at = (at + 1) & mask;
        }
        let low = if key.high >> 56 == IN_ARENA { self.arena.len() as u64 } else { key.low };
        if key.high >> 56 == IN_ARENA {
            reserve(&mut self.arena, key.bytes.len());
            self.arena.extend_from_slice(key.bytes);
        }
        self.words.push(Word { low, high: key.high, count });
        self.slots[at] = tag | self.words.len() as u64;
    }

    #[inline]
    fn holds(&self, index: usize, key: &Key<'_>) -> bool {
        let word = &self.words[index];
        if word.high != key.high {
            return false;
        }
        if key.high >> 56 == IN_ARENA { self.arena_bytes(word) == key.bytes } else { word.low == key.low }
    }

    fn arena_bytes(&self, word: &Word) -> &[u8] {
        let start = word.low as usize;
        &self.arena[start..start + (word.high & !(IN_ARENA << 56)) as usize]
    }

    #[cold]
    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(64);
        let mask = size - 1;
        // Free the old table first, to lower the peak of memory.
        self.slots = Vec::new();
        let mut slots = filled(0_u64, size);
        let room = size * 2 / 3 - self.words.len();
        reserve(&mut self.words, room);
        for (index, word) in self.words.iter().enumerate() {
            let hash = if word.high >> 56 == IN_ARENA {
                FixedState::with_seed(0).hash_one(self.arena_bytes(word))
            } else {
                fold(word.low, word.high)
            };
            let mut at = hash as usize & mask;
            while slots[at] != 0 {
                at = (at + 1) & mask;
            }
            slots[at] = hash & 0xFFFF_FFFF_0000_0000 | (index as u64 + 1);
        }
        self.slots = slots;
    }

    /// Calls `visit` with each word and its count, in order of first occurrence.
    pub(super) fn for_each(&self, interrupt: Interrupt<'_>, mut visit: impl FnMut(&[u8], u64)) -> Result<()> {
        for (index, word) in self.words.iter().enumerate() {
            if index.is_multiple_of(CHECK_WORDS) {
                interrupt.check()?;
            }
            if word.high >> 56 == IN_ARENA {
                if (word.high & !(IN_ARENA << 56)) >= LONG_WORD {
                    interrupt.check()?;
                }
                visit(self.arena_bytes(word), word.count);
            } else {
                let packed = u128::from(word.low) | u128::from(word.high) << 64;
                visit(&packed.to_le_bytes()[..(word.high >> 56) as usize], word.count);
            }
        }
        Ok(())
    }

    /// Adds all counts of `other`.
    ///
    /// # Errors
    /// The error of the interrupt check, after part of the counts is added.
    pub(in crate::train) fn merge(&mut self, other: &Self, interrupt: Interrupt<'_>) -> Result<()> {
        other.for_each(interrupt, |bytes, count| self.add(Key::new(bytes, 0, bytes.len()), count))
    }

    /// Returns the sum of all counts.
    pub(super) fn total(&self) -> u64 {
        self.words.iter().fold(0, |total, word| total.saturating_add(word.count))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the standard map, with words shorter and longer than an inline key, zero bytes included.
        #[test]
        fn counts_like_a_btree_map(words in prop::collection::vec(prop::collection::vec(0u8..3, 0..20), 0..300)) {
            let (mut map, mut expected) = (WordMap::default(), BTreeMap::new());
            for word in &words {
                // With text after the word and without: two ways to load it.
                for tail in [&b"0123456789abcdef"[..], b""] {
                    let text = [&word[..], tail].concat();
                    let key = Key::new(&text, 0, word.len());
                    let slot = map.peek(&key);
                    map.add(Key::new(b"another", 0, 7), 0);
                    if tail.is_empty() { map.add(key, 1) } else { map.add_from(key, slot) }
                    *expected.entry(word.clone()).or_insert(0u64) += 1;
                }
            }
            if !words.is_empty() {
                expected.entry(b"another".to_vec()).or_insert(0);
            }
            let mut got = BTreeMap::new();
            let go_on = Interrupt::NEVER;
            map.for_each(go_on, |bytes, count| assert!(got.insert(bytes.to_vec(), count).is_none())).expect("not stopped");
            prop_assert_eq!(&got, &expected);
            let mut twice = map.clone();
            twice.merge(&map, go_on).expect("not stopped");
            twice.for_each(go_on, |bytes, count| assert_eq!(count, 2 * expected[bytes])).expect("not stopped");
            prop_assert_eq!(twice.total(), 2 * expected.values().sum::<u64>());
            prop_assert_eq!(twice.len(), expected.len());
        }
    }
}
