//! A flat hash table from a pair of ids to its rank.

/// Ids and ranks must be below this: two ids and a rank share an entry of 64 bits.
pub(crate) const ID_BOUND: u32 = 1 << ID_BITS;
const ID_BITS: u32 = 21;

/// How many bits of an entry are below those of its pair.
const RANK_BITS: u32 = 64 - 2 * ID_BITS;

/// The rank of a pair that does not merge.
pub(crate) const NO_RANK: u32 = (1 << RANK_BITS) - 1;

/// Marks an empty slot: no pair has both ids and the rank at their largest values.
const EMPTY: u64 = u64::MAX;

/// Entries of a bucket, half a cache line.
const WIDTH: usize = 4;

/// Buckets of four entries of 8 bytes, at most half full.
///
/// A look-up compares all of a bucket without a branch: whether a pair merges, and where it lies, cannot be foreseen, and
/// a branch on it would be mispredicted more often than not.
#[derive(Debug, Clone)]
pub(crate) struct PairTable {
    buckets: Vec<[u64; WIDTH]>,
    shift: u32,
    len: usize,
}

impl PairTable {
    pub(crate) fn with_capacity(pairs: usize) -> Self {
        let count = (pairs * 2 / WIDTH).next_power_of_two().max(2);
        Self { buckets: vec![[EMPTY; WIDTH]; count], shift: 64 - count.trailing_zeros(), len: 0 }
    }

    /// Sets the rank of `pair`; a later value replaces an earlier one.
    pub(crate) fn insert(&mut self, pair: (u32, u32), rank: u32) {
        debug_assert!(pair.0.max(pair.1).max(rank) < ID_BOUND);
        if (self.len + 1) * 2 > self.buckets.len() * WIDTH {
            let mut larger = Self::with_capacity(self.len * 2 + 1);
            for &entry in self.buckets.iter().flatten().filter(|&&entry| entry != EMPTY) {
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
            let slot = self.buckets[at].iter_mut().find(|slot| **slot == EMPTY || **slot >> RANK_BITS == key);
            if let Some(slot) = slot {
                self.len += usize::from(*slot == EMPTY);
                *slot = entry;
                return;
            }
            at = (at + 1) % self.buckets.len();
        }
    }

    /// Returns the rank of `pair`, or [`NO_RANK`].
    #[inline]
    pub(crate) fn rank(&self, pair: (u32, u32)) -> u32 {
        let key = key_of(pair);
        let mut at = self.bucket_of(key);
        loop {
            let bucket = &self.buckets[at];
            let mut rank = NO_RANK;
            for &entry in bucket {
                rank = if entry >> RANK_BITS == key { entry as u32 & NO_RANK } else { rank };
            }
            // Buckets fill from the front: only behind a full one may the pair be in the next.
            if rank != NO_RANK || bucket[WIDTH - 1] == EMPTY {
                return rank;
            }
            at = (at + 1) % self.buckets.len();
        }
    }

    #[inline]
    fn bucket_of(&self, key: u64) -> usize {
        // Fibonacci hashing: the high bits of the product mix all bits of the key.
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }
}

#[inline]
fn key_of((left, right): (u32, u32)) -> u64 {
    u64::from(left) << ID_BITS | u64::from(right)
}
