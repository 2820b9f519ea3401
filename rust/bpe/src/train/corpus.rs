//! All distinct words as symbols in one array, in which a merge costs three writes and a neighbour one or two loads.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::counts::WordCounts;
use crate::interrupt::Interrupt;
use crate::merge::Merger;
use crate::vocab::Vocab;
use crate::{Error, Result};

/// Between words: a symbol that is in no pair.
const SEPARATOR: u32 = u32::MAX;

/// A slot within a symbol, where the right half of a merge began.
const DEAD: u32 = SEPARATOR - 1;

/// Symbols are ids below this.
pub(super) const MAX_IDS: usize = DEAD as usize;

/// Slots to a block, as a power of two. All words of a block occur equally often.
const BLOCK_BITS: u32 = 6;

/// Blocks between two looks whether to stop: some milliseconds.
const CHECK_BLOCKS: usize = 1 << 13;

/// The words' symbols, and how often each word occurs.
///
/// A symbol has its id in its first slot and in its last one. A place is where two symbols meet: the first slot of the right one,
/// behind the last of the left one, so that a pair is told from two slots side by side. Merging at a place makes its slot `DEAD`, or
/// gives it the id of the new symbol, which is newer than both: no pair is ever seen again where two of its symbols no longer meet.
///
/// Words are sorted by falling count, and words of another count begin in another block, so that the count at a place is one load.
#[derive(Debug)]
pub(super) struct Corpus {
    slots: Vec<u32>,
    /// How many slots a symbol spans, by id.
    spans: Vec<u32>,
    /// How often each block's words occur.
    counts: Vec<u64>,
}

impl Corpus {
    /// Lays out all words of two bytes and more; `symbols` gives the symbol of each byte.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the distinct words hold 4 GiB or more together; what `interrupt` returns.
    pub(super) fn new(counts: &WordCounts, symbols: &[u32; 256], interrupt: Interrupt<'_>) -> Result<Self> {
        // A counting sort: where the words of each count begin follows from the slots that they need.
        let mut slots_of_count = BTreeMap::new();
        counts.for_each_until(interrupt, |word, count| {
            if word.len() > 1 {
                *slots_of_count.entry(Reverse(count)).or_insert(0usize) += word.len() + 1;
            }
        })?;
        let mut block_counts = vec![0];
        let mut next_of_count = HashMap::with_capacity(slots_of_count.len());
        for (Reverse(count), slots) in slots_of_count {
            next_of_count.insert(count, block_counts.len() << BLOCK_BITS);
            block_counts.resize(block_counts.len() + (slots >> BLOCK_BITS) + 1, count);
        }
        let total = block_counts.len() << BLOCK_BITS;
        if total >= DEAD as usize {
            return Err(Error::InvalidArgument(format!(
                "the distinct words hold about {total} bytes; training needs them below {DEAD}"
            )));
        }
        let mut slots = vec![SEPARATOR; total];
        counts.for_each_until(interrupt, |word, count| {
            if word.len() > 1
                && let Some(next) = next_of_count.get_mut(&count)
            {
                for (slot, &byte) in slots[*next..].iter_mut().zip(word) {
                    *slot = symbols[byte as usize];
                }
                *next += word.len() + 1;
            }
        })?;
        Ok(Self { slots, spans: vec![1; 256], counts: block_counts })
    }

    /// Encodes each word, so far in byte values, with `vocab`; `symbol` gives the symbol of an id.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a byte of some word has no token; what `interrupt` returns.
    pub(super) fn encode_words(
        &mut self,
        vocab: &Vocab,
        symbol: impl Fn(u32) -> u32,
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        let (mut merger, mut word, mut symbols) = (Merger::default(), Vec::new(), Vec::new());
        for slots in self.slots.split_mut(|&slot| slot == SEPARATOR).filter(|slots| !slots.is_empty()) {
            interrupt.check()?;
            word.clear();
            symbols.clear();
            word.extend(slots.iter().map(|&byte| byte as u8));
            match vocab.bytes_to_id(&word).filter(|_| vocab.whole_piece_first()) {
                Some(id) => symbols.push(id),
                None => merger.merge(vocab, &word, &mut symbols)?,
            }
            slots.fill(SEPARATOR);
            for (slot, &id) in slots.iter_mut().zip(&symbols) {
                *slot = symbol(id);
            }
        }
        self.spans = vec![1; vocab.id_bound() as usize];
        self.compact(interrupt)
    }

    /// How often the word that holds `place` occurs.
    #[inline]
    pub(super) fn count_at(&self, place: u32) -> u64 {
        self.counts[(place >> BLOCK_BITS) as usize]
    }

    /// The number of slots.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the symbols `left` and `right` meet at `place`, where they once did.
    #[inline]
    pub(super) fn has_pair(&self, place: u32, left: u32, right: u32) -> bool {
        let place = place as usize;
        (self.slots[place - 1] ^ left) | (self.slots[place] ^ right) == 0
    }

    /// Adds a symbol made of `left` and `right`; its id is the number of symbols before.
    pub(super) fn add_symbol(&mut self, left: u32, right: u32) -> Joint {
        let (left, right) = (self.spans[left as usize], self.spans[right as usize]);
        self.spans.push(left + right);
        Joint { left, right, merged: self.spans.len() as u32 - 1 }
    }

    /// Replaces the two symbols that meet at `place` by the one they make.
    #[inline]
    pub(super) fn merge_at(&mut self, place: u32, joint: Joint) {
        let (start, end) = joint.extent(place);
        self.slots[place as usize] = DEAD;
        self.slots[end as usize - 1] = joint.merged;
        self.slots[start as usize] = joint.merged;
    }

    /// The symbols before and after the one made at `place`, each with the place where they meet, within the word.
    #[inline]
    pub(super) fn around(&self, place: u32, joint: Joint) -> [Option<(u32, u32)>; 2] {
        let (start, end) = joint.extent(place);
        let (previous, next) = (self.slots[start as usize - 1], self.slots[end as usize]);
        [(previous != SEPARATOR).then_some((previous, start)), (next != SEPARATOR).then_some((next, end))]
    }

    /// Squeezes the corpus so that every symbol spans one slot, and drops words of one symbol. Positions change.
    ///
    /// # Errors
    /// What `interrupt` returns, which is called now and then: the corpus is of no use then.
    pub(super) fn compact(&mut self, interrupt: Interrupt<'_>) -> Result<()> {
        let block = 1 << BLOCK_BITS;
        let mut counts = vec![0];
        let (mut read, mut write, mut next_check) = (block, block, 0);
        while read < self.slots.len() {
            if self.slots[read] == SEPARATOR {
                read += 1;
                continue;
            }
            let count = self.counts[read >> BLOCK_BITS];
            if read >= next_check {
                interrupt.check()?;
                next_check = read + (CHECK_BLOCKS << BLOCK_BITS);
            }
            if counts.last() != Some(&count) {
                // Words of another count began in another block before, so this is not beyond `read`.
                while write % block != 0 {
                    self.slots[write] = SEPARATOR;
                    write += 1;
                }
                counts.truncate(write >> BLOCK_BITS);
                counts.push(count);
            }
            let word = write;
            while self.slots[read] != SEPARATOR {
                let symbol = self.slots[read];
                self.slots[write] = symbol;
                write += 1;
                read += self.spans[symbol as usize] as usize;
            }
            if write - word == 1 {
                write = word;
                continue;
            }
            self.slots[write] = SEPARATOR;
            counts.resize((write >> BLOCK_BITS) + 1, count);
            write += 1;
        }
        self.slots.truncate(write);
        self.slots.resize(counts.len() << BLOCK_BITS, SEPARATOR);
        self.slots.shrink_to_fit();
        self.counts = counts;
        self.spans.fill(1);
        Ok(())
    }

    /// Calls `visit(place, left, right)` wherever two symbols meet, in order. Every symbol must span one slot.
    ///
    /// # Errors
    /// What `interrupt` returns, which is called now and then.
    pub(super) fn for_each_pair(&self, interrupt: Interrupt<'_>, mut visit: impl FnMut(u32, u32, u32)) -> Result<()> {
        let mut left = SEPARATOR;
        let mut places = 0..;
        for slots in self.slots.chunks(CHECK_BLOCKS << BLOCK_BITS) {
            interrupt.check()?;
            for (&right, place) in slots.iter().zip(&mut places) {
                if left != SEPARATOR && right != SEPARATOR {
                    visit(place, left, right);
                }
                left = right;
            }
        }
        Ok(())
    }
}

/// A merge: how many slots its two symbols span, and the id of the one they make.
#[derive(Debug, Clone, Copy)]
pub(super) struct Joint {
    left: u32,
    right: u32,
    pub(super) merged: u32,
}

impl Joint {
    /// The first slot of the symbol made at `place`, and the slot behind it.
    #[inline]
    fn extent(self, place: u32) -> (u32, u32) {
        (place - self.left, place + self.right)
    }
}
