//! The symbol array: the symbols of all distinct words, in which a merge takes three stores and a neighbour one or two
//! loads.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::counts::WordCounts;
use crate::Result;
use crate::interrupt::Interrupt;
use crate::memory::filled;
use crate::merge::Merger as Encoder;
use crate::vocab::Vocab;

/// Between words: no symbol, and in no pair.
const SEPARATOR: u32 = u32::MAX;

/// The slot within a symbol where the right symbol of its merge began.
const TOMBSTONE: u32 = SEPARATOR - 1;

/// The limit on ids, which symbols are.
pub(super) const MAX_IDS: usize = TOMBSTONE as usize;

/// The logarithm of the slots in a block. All words of a block have the same count.
const BLOCK_BITS: u32 = 6;

/// Blocks between two interrupt checks: some milliseconds.
const CHECK_BLOCKS: usize = 1 << 13;

/// The symbols of all distinct words, and the counts of the words.
///
/// The first slot and the last slot of a symbol hold its id. The position of a pair is the first slot of its right
/// symbol: with the slot before, it determines the pair. A merge overwrites its position with [`TOMBSTONE`] or with the
/// id of the new symbol, which is newer than both, so a stale position never matches its pair again.
///
/// Words are sorted by descending count, and each count begins in a new block, so that the count at a position is one
/// load.
#[derive(Debug)]
pub(super) struct SymbolArray {
    slots: Vec<u32>,
    /// The number of slots that each symbol spans.
    spans: Vec<u32>,
    /// The count of the words of each block.
    counts: Vec<u64>,
}

impl SymbolArray {
    /// Returns the array of all words of at least two bytes; `symbols` maps bytes to symbols.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if the distinct words hold 4 GiB or more in total; the error of the interrupt
    /// check.
    pub(super) fn new(counts: &WordCounts, symbols: &[u32; 256], interrupt: Interrupt<'_>) -> Result<Self> {
        // A counting sort: the slots of each count determine where the next count begins.
        let mut slots_of_count = BTreeMap::new();
        counts.for_each(interrupt, |word, count| {
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
        if total >= TOMBSTONE as usize {
            return Err(invalid!("the distinct words hold about {total} bytes; training needs them below {TOMBSTONE}"));
        }
        let mut slots = filled(SEPARATOR, total);
        counts.for_each(interrupt, |word, count| {
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

    /// Encodes each word with `vocab`; `symbol` maps ids to symbols. Symbols must be byte values.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a byte of some word has no token; the error of the interrupt check.
    pub(super) fn encode_words(
        &mut self,
        vocab: &Vocab,
        symbol: impl Fn(u32) -> u32,
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        let (mut encoder, mut word, mut symbols) = (Encoder::default(), Vec::new(), Vec::new());
        for slots in self.slots.split_mut(|&slot| slot == SEPARATOR).filter(|slots| !slots.is_empty()) {
            interrupt.check()?;
            word.clear();
            symbols.clear();
            word.extend(slots.iter().map(|&byte| byte as u8));
            match vocab.bytes_to_id(&word).filter(|_| vocab.whole_piece_first()) {
                Some(id) => symbols.push(id),
                None => encoder.merge(vocab, &word, interrupt, &mut symbols)?,
            }
            slots.fill(SEPARATOR);
            for (slot, &id) in slots.iter_mut().zip(&symbols) {
                *slot = symbol(id);
            }
        }
        self.spans = vec![1; vocab.id_bound() as usize];
        self.compact(interrupt)
    }

    /// Returns the count of the word at `position`.
    #[inline]
    pub(super) fn count_at(&self, position: u32) -> u64 {
        self.counts[(position >> BLOCK_BITS) as usize]
    }

    /// Returns the number of slots.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns whether the pair is still at `position`, where it was once.
    #[inline]
    pub(super) fn has_pair(&self, position: u32, left: u32, right: u32) -> bool {
        let position = position as usize;
        (self.slots[position - 1] ^ left) | (self.slots[position] ^ right) == 0
    }

    /// Adds the symbol that a pair merges to; its id is the number of symbols before.
    pub(super) fn add_symbol(&mut self, left: u32, right: u32) -> Merge {
        let (left, right) = (self.spans[left as usize], self.spans[right as usize]);
        self.spans.push(left + right);
        Merge { left, right, merged: self.spans.len() as u32 - 1 }
    }

    /// Merges the pair at `position`.
    #[inline]
    pub(super) fn merge_at(&mut self, position: u32, merge: Merge) {
        let (start, end) = merge.extent(position);
        self.slots[position as usize] = TOMBSTONE;
        self.slots[end as usize - 1] = merge.merged;
        self.slots[start as usize] = merge.merged;
    }

    /// Returns the neighbours within the word of the symbol merged at `position`, each with the position of its pair.
    #[inline]
    pub(super) fn around(&self, position: u32, merge: Merge) -> [Option<(u32, u32)>; 2] {
        let (start, end) = merge.extent(position);
        let (previous, next) = (self.slots[start as usize - 1], self.slots[end as usize]);
        [(previous != SEPARATOR).then_some((previous, start)), (next != SEPARATOR).then_some((next, end))]
    }

    /// Compacts the array so that every symbol spans one slot, and drops words of one symbol. Positions change.
    ///
    /// # Errors
    /// The error of the interrupt check; the array is unusable then.
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
                // Each count began in a new block before, so `write` does not overtake `read`.
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

    /// Calls `visit(position, left, right)` for every pair, in order. Every symbol must span one slot.
    pub(super) fn for_each_pair(&self, interrupt: Interrupt<'_>, mut visit: impl FnMut(u32, u32, u32)) -> Result<()> {
        let mut left = SEPARATOR;
        let mut positions = 0..;
        for slots in self.slots.chunks(CHECK_BLOCKS << BLOCK_BITS) {
            interrupt.check()?;
            for (&right, position) in slots.iter().zip(&mut positions) {
                if left != SEPARATOR && right != SEPARATOR {
                    visit(position, left, right);
                }
                left = right;
            }
        }
        Ok(())
    }
}

/// A merge: the slots that its two symbols span, and the id of the merged symbol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merge {
    left: u32,
    right: u32,
    pub(super) merged: u32,
}

impl Merge {
    /// Returns the first slot of the symbol merged at `position`, and the slot after it.
    #[inline]
    fn extent(self, position: u32) -> (u32, u32) {
        (position - self.left, position + self.right)
    }
}
