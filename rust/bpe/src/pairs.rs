//! A flat hash table from a pair of ids to its rank.

use crate::search::{ENTRIES, Portable, Search};
use bpe_llama_simd::prefetch::prefetch;

/// Ids and ranks must be below this: two ids and a rank share an entry of 64 bits.
pub(crate) const ID_BOUND: u32 = 1 << ID_BITS;
const ID_BITS: u32 = 21;

/// How many bits of an entry are below those of its pair.
const RANK_BITS: u32 = 64 - 2 * ID_BITS;

/// The rank of a pair that does not merge.
pub(crate) const NO_RANK: u32 = (1 << RANK_BITS) - 1;

/// Marks an empty slot: no pair has both ids and the rank at their largest values.
const EMPTY: u64 = u64::MAX;

/// One line of the CPU's cache.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([u64; ENTRIES]);

/// Lines of eight entries of 8 bytes, at most half full.
///
/// A look-up compares all of a line without a branch: whether a pair merges, and where it lies, cannot be foreseen, and
/// a branch on it would be mispredicted more often than not. Where a pair found its line full, a bit says so: this the
/// CPU knows long before the line has come from memory.
#[derive(Debug, Clone)]
pub(crate) struct PairTable {
    lines: Vec<Line>,
    /// A bit for each line: whether some pair that belongs there went to the next.
    is_passed: Vec<u64>,
    shift: u32,
    len: usize,
}

/// A look-up under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query {
    key: u64,
    line: usize,
}

impl Query {
    /// Asks for no pair at all: entries have no such key.
    pub(crate) const NONE: Self = Self { key: u64::MAX, line: 0 };
}

impl PairTable {
    pub(crate) fn with_capacity(pairs: usize) -> Self {
        let count = (pairs * 2 / ENTRIES).next_power_of_two().max(2);
        let lines = vec![Line([EMPTY; ENTRIES]); count];
        Self { lines, is_passed: vec![0; count.div_ceil(64)], shift: 64 - count.trailing_zeros(), len: 0 }
    }

    /// Sets the rank of `pair`; a later value replaces an earlier one.
    pub(crate) fn insert(&mut self, pair: (u32, u32), rank: u32) {
        debug_assert!(pair.0.max(pair.1).max(rank) < ID_BOUND);
        if (self.len + 1) * 2 > self.lines.len() * ENTRIES {
            let mut larger = Self::with_capacity(self.len * 2 + 1);
            for &entry in self.lines.iter().flat_map(|line| &line.0).filter(|&&entry| entry != EMPTY) {
                larger.put(entry);
            }
            *self = larger;
        }
        self.put(key_of(pair) << RANK_BITS | u64::from(rank));
    }

    fn put(&mut self, entry: u64) {
        let key = entry >> RANK_BITS;
        let mut at = self.line_of(key);
        loop {
            let slot = self.lines[at].0.iter_mut().find(|slot| **slot == EMPTY || **slot >> RANK_BITS == key);
            if let Some(slot) = slot {
                self.len += usize::from(*slot == EMPTY);
                *slot = entry;
                return;
            }
            self.is_passed[at / 64] |= 1 << (at % 64);
            at = (at + 1) % self.lines.len();
        }
    }

    /// Returns the rank of `pair`, or [`NO_RANK`].
    #[inline(always)]
    pub(crate) fn rank(&self, pair: (u32, u32)) -> u32 {
        let key = key_of(pair);
        self.look_up(Portable, Query { key, line: self.line_of(key) })
    }

    /// Begins to look up the rank of a pair: the CPU loads what [`PairTable::look_up`] will read.
    #[inline(always)]
    pub(crate) fn ask(&self, pair: (u32, u32)) -> Query {
        let key = key_of(pair);
        let line = self.line_of(key);
        prefetch(self.lines.as_ptr().wrapping_add(line));
        Query { key, line }
    }

    /// Returns the rank of the pair of `query`, or [`NO_RANK`].
    #[inline(always)]
    pub(crate) fn look_up(&self, search: impl Search, query: Query) -> u32 {
        let rank = self.rank_in(search, query.line, query.key);
        if self.is_passed(query.line) { self.look_further(query, rank) } else { rank }
    }

    /// Looks into the lines behind that of `query`, too. Apart, lest a compiler should test first whether there is a rank.
    #[cold]
    fn look_further(&self, query: Query, mut rank: u32) -> u32 {
        let mut at = query.line;
        while rank == NO_RANK && self.is_passed(at) {
            at = (at + 1) % self.lines.len();
            rank = self.rank_in(Portable, at, query.key);
        }
        rank
    }

    #[inline(always)]
    fn rank_in(&self, search: impl Search, line: usize, key: u64) -> u32 {
        search.find::<RANK_BITS>(&self.lines[line].0, key) as u32 & NO_RANK
    }

    #[inline(always)]
    fn is_passed(&self, line: usize) -> bool {
        self.is_passed[line / 64] >> (line % 64) & 1 != 0
    }

    #[inline(always)]
    fn line_of(&self, key: u64) -> usize {
        // Fibonacci hashing: the high bits of the product mix all bits of the key.
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }
}

/// Beside [`NO_ID`](crate::vocab::NO_ID), on either side, no entry has the key.
#[inline(always)]
fn key_of((left, right): (u32, u32)) -> u64 {
    // All ones stay so when the sign is extended; to ids that does nothing.
    u64::from(left) << ID_BITS | i64::from(right.cast_signed()).cast_unsigned()
}
