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
#[derive(Debug, Clone)]
pub(crate) struct PairTable {
    buckets: Vec<Bucket>,
    /// One bit a bucket: whether a pair of this bucket is in a later one.
    overflowed: Vec<u64>,
    shift: u32,
    len: usize,
}

/// A look-up in progress: its bucket is being prefetched.
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
        let buckets = vec![Bucket([EMPTY; ENTRIES]); count];
        Self { buckets, overflowed: vec![0; count.div_ceil(64)], shift: 64 - count.trailing_zeros(), len: 0 }
    }

    /// Sets the rank of `pair`; a later value replaces an earlier one.
    pub(crate) fn insert(&mut self, pair: (u32, u32), rank: u32) {
        debug_assert!(pair.0.max(pair.1).max(rank) < ID_BOUND);
        if (self.len + 1) * 2 > self.buckets.len() * ENTRIES {
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
        let mut at = self.bucket_of(key);
        loop {
            let slot = self.buckets[at].0.iter_mut().find(|slot| **slot == EMPTY || **slot >> RANK_BITS == key);
            if let Some(slot) = slot {
                self.len += usize::from(*slot == EMPTY);
                *slot = entry;
                return;
            }
            self.overflowed[at / 64] |= 1 << (at % 64);
            at = (at + 1) % self.buckets.len();
        }
    }

    /// Returns the rank of `pair`, or [`NO_RANK`].
    #[inline(always)]
    pub(crate) fn rank(&self, pair: (u32, u32)) -> u32 {
        let key = key_of(pair);
        self.look_up(Portable, Query { key, bucket: self.bucket_of(key) })
    }

    /// Starts to look up the rank of a pair: prefetches the bucket that [`PairTable::look_up`] reads.
    #[inline(always)]
    pub(crate) fn prefetch(&self, pair: (u32, u32)) -> Query {
        let key = key_of(pair);
        let bucket = self.bucket_of(key);
        prefetch(self.buckets.as_ptr().wrapping_add(bucket));
        Query { key, bucket }
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
            at = (at + 1) % self.buckets.len();
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

    #[inline(always)]
    fn bucket_of(&self, key: u64) -> usize {
        // Fibonacci hashing: all bits of the key reach the high bits of the product.
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }
}

/// Returns the key of a pair. With [`NO_ID`](super::NO_ID) on either side it is a key that no entry has.
#[inline(always)]
fn key_of((left, right): (u32, u32)) -> u64 {
    // Sign extension keeps all ones all ones, and does not change ids.
    u64::from(left) << ID_BITS | i64::from(right.cast_signed()).cast_unsigned()
}
