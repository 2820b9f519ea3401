//! A hash table from a pair of ids to its rank.

use super::limits::{ID_BITS, ID_BOUND, NO_RANK, RANK_BITS};
use super::simd_search::{ENTRIES, Portable, SimdSearch};
use bpe_llama_simd::prefetch::prefetch;

/// An empty slot: no pair has both ids and the rank at their largest values.
const EMPTY: u64 = u64::MAX;

/// One cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Bucket([u64; ENTRIES]);

/// Buckets of eight 8-byte entries, at most half of them used.
///
/// A look-up compares all entries of a bucket without a branch: whether a pair merges is unpredictable, so a branch would
/// be mispredicted more often than not. One bit a bucket records that pairs overflowed into the next one. The bits fit in
/// the CPU's cache, so a look-up reads its bit long before the bucket arrives from memory.
///
/// Nine of ten look-ups find no pair. For nine of ten such look-ups the filter (32 bits a bucket, in the L2 cache) already
/// says so, and an empty bucket in the L1 cache is searched instead. Where many look-ups overlap, reading the filter costs
/// more than waiting for the buckets: [`PairTable::prefetch`] omits it.
#[derive(Debug, Clone)]
pub(crate) struct PairTable {
    /// The buckets, and an empty one after them.
    buckets: Vec<Bucket>,
    /// The filter of each bucket: [`PairTable::filter_bit`] of its pairs, overflowed ones too.
    filters: Vec<u32>,
    /// One bit a bucket: whether a pair of this bucket is in a later one.
    overflowed: Vec<u64>,
    shift: u32,
    len: usize,
}

/// A look-up in progress.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query {
    key: u64,
    bucket: usize,
}

impl Query {
    /// Finds nothing: no entry has this key.
    pub(crate) const NONE: Self = Self { key: u64::MAX, bucket: 0 };
}

impl PairTable {
    pub(crate) fn with_capacity(pairs: usize) -> Self {
        let count = (pairs * 2 / ENTRIES).next_power_of_two().max(2);
        Self {
            buckets: vec![Bucket([EMPTY; ENTRIES]); count + 1],
            filters: vec![0; count],
            overflowed: vec![0; count / 64 + 1],
            shift: 64 - count.trailing_zeros(),
            len: 0,
        }
    }

    /// Sets the rank of `pair`; a later value replaces an earlier one.
    pub(crate) fn insert(&mut self, pair: (u32, u32), rank: u32) {
        debug_assert!(pair.0.max(pair.1).max(rank) < ID_BOUND);
        if (self.len + 1) * 2 > self.filters.len() * ENTRIES {
            let mut larger = Self::with_capacity(self.len * 2 + 1);
            for &entry in self.buckets.iter().flat_map(|bucket| &bucket.0).filter(|&&entry| entry != EMPTY) {
                larger.put(entry);
            }
            *self = larger;
        }
        self.put(key_of(pair) << RANK_BITS | u64::from(rank));
    }

    fn put(&mut self, entry: u64) {
        let key = entry >> RANK_BITS;
        let hash = hash_of(key);
        let mut at = self.home(hash);
        self.filters[at] |= self.filter_bit(hash);
        loop {
            let slot = self.buckets[at].0.iter_mut().find(|slot| **slot == EMPTY || **slot >> RANK_BITS == key);
            if let Some(slot) = slot {
                self.len += usize::from(*slot == EMPTY);
                *slot = entry;
                return;
            }
            self.overflowed[at / 64] |= 1 << (at % 64);
            at = (at + 1) % self.filters.len();
        }
    }

    /// Returns the rank of `pair`, or [`NO_RANK`].
    #[inline(always)]
    pub(crate) fn rank(&self, pair: (u32, u32)) -> u32 {
        self.look_up(Portable, self.filter(pair))
    }

    /// Starts to look up the rank of a pair: prefetches the bucket that [`PairTable::look_up`] reads.
    #[inline(always)]
    pub(crate) fn prefetch(&self, pair: (u32, u32)) -> Query {
        let key = key_of(pair);
        let bucket = self.home(hash_of(key));
        prefetch(self.buckets.as_ptr().wrapping_add(bucket));
        Query { key, bucket }
    }

    /// Starts to look up the rank of a pair: selects the empty bucket if the filter tells that no bucket has it.
    #[inline(always)]
    pub(crate) fn filter(&self, pair: (u32, u32)) -> Query {
        let key = key_of(pair);
        let hash = hash_of(key);
        let home = self.home(hash);
        let may_have = self.filters[home] & self.filter_bit(hash) != 0;
        Query { key, bucket: if may_have { home } else { self.filters.len() } }
    }

    /// Returns the rank of the pair of `query`, or [`NO_RANK`].
    #[inline(always)]
    pub(crate) fn look_up(&self, search: impl SimdSearch, query: Query) -> u32 {
        let rank = self.rank_in(search, query.bucket, query.key);
        if self.overflowed(query.bucket) { self.look_up_overflow(query, rank) } else { rank }
    }

    /// Searches the overflow buckets too. A function of its own, so that the compiler does not branch on `rank` first.
    #[cold]
    fn look_up_overflow(&self, query: Query, mut rank: u32) -> u32 {
        let mut at = query.bucket;
        while rank == NO_RANK && self.overflowed(at) {
            at = (at + 1) % self.filters.len();
            rank = self.rank_in(Portable, at, query.key);
        }
        rank
    }

    #[inline(always)]
    fn rank_in(&self, search: impl SimdSearch, bucket: usize, key: u64) -> u32 {
        search.find::<RANK_BITS>(&self.buckets[bucket].0, key) as u32 & NO_RANK
    }

    #[inline(always)]
    fn overflowed(&self, bucket: usize) -> bool {
        self.overflowed[bucket / 64] >> (bucket % 64) & 1 != 0
    }

    /// Returns the bucket that a pair is in unless that is full.
    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        (hash >> self.shift) as usize
    }

    #[inline(always)]
    fn filter_bit(&self, hash: u64) -> u32 {
        1 << (hash >> (self.shift - u32::BITS.ilog2()) & u64::from(u32::BITS - 1))
    }
}

/// Fibonacci hashing: all bits of the key reach the high bits of the product.
#[inline(always)]
fn hash_of(key: u64) -> u64 {
    key.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Returns the key of a pair. With [`NO_ID`](super::NO_ID) on either side it is a key that no entry has.
#[inline(always)]
fn key_of((left, right): (u32, u32)) -> u64 {
    // Sign extension keeps all ones all ones, and does not change ids.
    u64::from(left) << ID_BITS | i64::from(right.cast_signed()).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::NO_ID;
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_pair_is_found_and_no_other(
            pairs in prop::collection::hash_map((0..60_u32, 0..60_u32), 0..ID_BOUND, 0..900),
            capacity in 0..900_usize,
        ) {
            let pairs: HashMap<_, _> = pairs;
            let mut table = PairTable::with_capacity(capacity);
            for (&pair, &rank) in &pairs {
                table.insert(pair, rank);
            }
            for pair in (0..60).flat_map(|left| (0..60).map(move |right| (left, right))) {
                let rank = pairs.get(&pair).copied().unwrap_or(NO_RANK);
                prop_assert_eq!(table.rank(pair), rank);
                prop_assert_eq!(table.look_up(Portable, table.prefetch(pair)), rank);
            }
            for id in 0..60 {
                prop_assert_eq!((table.rank((NO_ID, id)), table.rank((id, NO_ID))), (NO_RANK, NO_RANK));
            }
        }
    }
}
