//! A flat hash table from a pair of ids to its rank.

/// Ids and ranks must be below this: two ids and a rank share an entry of 64 bits.
pub(crate) const ID_BOUND: u32 = 1 << ID_BITS;
const ID_BITS: u32 = 21;

/// The rank of a pair that does not merge.
pub(crate) const NO_RANK: u32 = u32::MAX;

/// Marks an empty slot: no pair has both ids and the rank at their largest values.
const EMPTY: u64 = u64::MAX;

/// Open addressing with linear probing, 8 bytes an entry, at most half full.
#[derive(Debug, Clone)]
pub(crate) struct PairTable {
    entries: Vec<u64>,
    shift: u32,
    len: usize,
}

impl PairTable {
    pub(crate) fn with_capacity(pairs: usize) -> Self {
        let size = (pairs * 2).next_power_of_two().max(16);
        Self { entries: vec![EMPTY; size], shift: 64 - size.trailing_zeros(), len: 0 }
    }

    /// Sets the rank of `pair`; a later value replaces an earlier one.
    pub(crate) fn insert(&mut self, pair: (u32, u32), rank: u32) {
        debug_assert!(pair.0.max(pair.1).max(rank) < ID_BOUND);
        if (self.len + 1) * 2 > self.entries.len() {
            let mut larger = Self::with_capacity(self.len * 2 + 1);
            for &entry in self.entries.iter().filter(|&&entry| entry != EMPTY) {
                let slot = larger.slot_of(entry >> (64 - 2 * ID_BITS));
                larger.entries[slot] = entry;
            }
            (self.entries, self.shift) = (larger.entries, larger.shift);
        }
        let key = key_of(pair);
        let slot = self.slot_of(key);
        self.len += usize::from(self.entries[slot] == EMPTY);
        self.entries[slot] = key << (64 - 2 * ID_BITS) | u64::from(rank);
    }

    /// Returns the rank of `pair`, or [`NO_RANK`].
    #[inline]
    pub(crate) fn rank(&self, pair: (u32, u32)) -> u32 {
        let entry = self.entries[self.slot_of(key_of(pair))];
        if entry == EMPTY { NO_RANK } else { entry as u32 & ((1 << (64 - 2 * ID_BITS)) - 1) }
    }

    #[inline]
    fn slot_of(&self, key: u64) -> usize {
        let mask = self.entries.len() - 1;
        // Fibonacci hashing: the high bits of the product mix all bits of the key.
        let mut slot = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        loop {
            let found = self.entries[slot & mask];
            if found >> (64 - 2 * ID_BITS) == key || found == EMPTY {
                return slot & mask;
            }
            slot += 1;
        }
    }
}

#[inline]
fn key_of((left, right): (u32, u32)) -> u64 {
    u64::from(left) << ID_BITS | u64::from(right)
}
