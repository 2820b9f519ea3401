//! All distinct words as symbols in one array, in which a merge costs three writes and a neighbour one or two loads.

use super::count::WordCounts;
use crate::{Error, Result};

/// Between words: a symbol that is in no pair.
const SEPARATOR: u32 = u32::MAX;

/// Set on the last slot of a symbol that spans several, so that its left end is found from its right neighbour.
const TAIL: u32 = 1 << 31;

/// The middle of a symbol.
const DEAD: u32 = SEPARATOR - 1;

/// Symbols are ids below this.
pub(super) const MAX_IDS: usize = (TAIL - 2) as usize;

/// Positions to a block in `Corpus::run_of_block`, as a power of two.
const BLOCK_BITS: u32 = 3;

/// Words that have one count, side by side.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u32,
    count: u64,
}

/// The words' symbols, and how often each word occurs.
///
/// A symbol of span 1 is its id in one slot. A longer one is its id in the first slot, `TAIL | id` in the last and `DEAD` where
/// merged symbols began between. Words are sorted by falling count, so that a count is stored once for all words that share it.
#[derive(Debug)]
pub(super) struct Corpus {
    slots: Vec<u32>,
    /// How many slots a symbol spans, by id.
    spans: Vec<u32>,
    runs: Vec<Run>,
    /// The run that holds the first position of each block.
    run_of_block: Vec<u32>,
}

impl Corpus {
    /// Lays out all words of two bytes and more; `id_of_byte` gives the symbols.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the distinct words hold 4 GiB or more together.
    pub(super) fn new(counts: &WordCounts, id_of_byte: &[u32; 256]) -> Result<Self> {
        // Counting sort is by the words' lengths: where each count's run begins follows from the slots that its words need.
        let mut slots_of_count = std::collections::BTreeMap::new();
        let mut total = 1usize;
        counts.for_each(|word, count| {
            if word.len() > 1 {
                *slots_of_count.entry(std::cmp::Reverse(count)).or_insert(0usize) += word.len() + 1;
                total += word.len() + 1;
            }
        });
        if total >= DEAD as usize {
            return Err(Error::InvalidArgument(format!(
                "the distinct words hold {total} bytes; training needs them below {DEAD}"
            )));
        }
        let mut runs = Vec::with_capacity(slots_of_count.len() + 1);
        let mut next_of_count = hashbrown::HashMap::with_capacity(slots_of_count.len());
        let mut start = 1u32;
        for (&std::cmp::Reverse(count), &slots) in &slots_of_count {
            runs.push(Run { start, count });
            next_of_count.insert(count, start);
            start += slots as u32;
        }
        let mut slots = vec![SEPARATOR; total];
        counts.for_each(|word, count| {
            if word.len() > 1
                && let Some(next) = next_of_count.get_mut(&count)
            {
                let at = *next as usize;
                for (slot, &byte) in slots[at..].iter_mut().zip(word) {
                    *slot = id_of_byte[byte as usize];
                }
                *next += word.len() as u32 + 1;
            }
        });
        let mut corpus = Self { slots, spans: vec![1; 256], runs, run_of_block: Vec::new() };
        corpus.index_runs();
        Ok(corpus)
    }

    /// Closes `runs` with a sentinel and says, for each block, where to begin looking.
    fn index_runs(&mut self) {
        if self.runs.is_empty() {
            self.runs.push(Run { start: 1, count: 0 });
        }
        self.runs.push(Run { start: u32::MAX, count: 0 });
        self.run_of_block.clear();
        let mut run = 0;
        for block in 0..=self.slots.len() >> BLOCK_BITS {
            while self.runs[run + 1].start as usize <= block << BLOCK_BITS {
                run += 1;
            }
            self.run_of_block.push(run as u32);
        }
    }

    /// How often the word that holds `position` occurs.
    #[inline]
    pub(super) fn count_at(&self, position: u32) -> u64 {
        let mut run = self.run_of_block[(position >> BLOCK_BITS) as usize] as usize;
        while self.runs[run + 1].start <= position {
            run += 1;
        }
        self.runs[run].count
    }

    /// The number of slots.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the symbols `left`, `right` stand side by side at `position`.
    #[inline]
    pub(super) fn has_pair(&self, position: u32, left: u32, right: u32) -> bool {
        let next = position as usize + self.spans[left as usize] as usize;
        (self.slots[position as usize] == left) & (self.slots.get(next) == Some(&right))
    }

    /// The symbol after the one with id `symbol` at `position`, if the word goes on.
    #[inline]
    pub(super) fn next(&self, position: u32, symbol: u32) -> Option<u32> {
        let next = self.slots[position as usize + self.spans[symbol as usize] as usize];
        (next != SEPARATOR).then_some(next)
    }

    /// The symbol before `position` and where it begins, if the word does not begin here.
    #[inline]
    pub(super) fn previous(&self, position: u32) -> Option<(u32, u32)> {
        let last = self.slots[position as usize - 1];
        if last == SEPARATOR {
            None
        } else if last & TAIL != 0 {
            let symbol = last & !TAIL;
            Some((position - self.spans[symbol as usize], symbol))
        } else {
            Some((position - 1, last))
        }
    }

    /// Adds a symbol made of `left` and `right`; its id is the number of symbols before.
    pub(super) fn add_symbol(&mut self, left: u32, right: u32) -> u32 {
        self.spans.push(self.spans[left as usize] + self.spans[right as usize]);
        self.spans.len() as u32 - 1
    }

    /// Replaces the pair that begins at `position`, whose left symbol is `left`, by `merged`.
    #[inline]
    pub(super) fn merge_at(&mut self, position: u32, left: u32, merged: u32) {
        let position = position as usize;
        let right = position + self.spans[left as usize] as usize;
        let last = position + self.spans[merged as usize] as usize - 1;
        self.slots[position] = merged;
        self.slots[right] = DEAD;
        self.slots[last] = TAIL | merged;
    }

    /// Squeezes the corpus so that every symbol spans one slot, and drops words of one symbol. Positions change.
    pub(super) fn compact(&mut self) {
        let (mut read, mut write, mut run) = (1, 1, 0);
        let mut runs: Vec<Run> = Vec::with_capacity(self.runs.len());
        while read < self.slots.len() {
            while self.runs[run + 1].start as usize <= read {
                run += 1;
            }
            let word = write;
            while self.slots[read] != SEPARATOR {
                let symbol = self.slots[read];
                self.slots[write] = symbol;
                write += 1;
                read += self.spans[symbol as usize] as usize;
            }
            read += 1;
            if write - word == 1 {
                write = word;
                continue;
            }
            self.slots[write] = SEPARATOR;
            write += 1;
            let count = self.runs[run].count;
            if runs.last().is_none_or(|last| last.count != count) {
                runs.push(Run { start: word as u32, count });
            }
        }
        self.slots.truncate(write);
        self.slots.shrink_to_fit();
        self.spans.fill(1);
        self.runs = runs;
        self.index_runs();
    }

    /// Calls `visit(position, left, right, count)` for every pair, in order of position. Every symbol must span one slot.
    pub(super) fn for_each_pair(&self, mut visit: impl FnMut(u32, u32, u32, u64)) {
        for (index, run) in self.runs.iter().enumerate() {
            let end = self.runs.get(index + 1).map_or(0, |next| self.slots.len().min(next.start as usize));
            for position in run.start as usize..end {
                let (left, right) = (self.slots[position], self.slots.get(position + 1).copied().unwrap_or(SEPARATOR));
                if left != SEPARATOR && right != SEPARATOR {
                    visit(position as u32, left, right, run.count);
                }
            }
        }
    }
}
