//! A flat hash table from a pair of ids to its rank and merged id.

/// Marks an empty slot: no pair has both ids at their largest value.
const EMPTY: u64 = u64::MAX;

/// Open addressing with linear probing, 16 bytes an entry, at most half full.
#[derive(Debug, Clone)]
pub(crate) struct PairTable {
    entries: Vec<(u64, u32, u32)>,
    shift: u32,
    len: usize,
}

impl PairTable {
    pub(crate) fn with_capacity(pairs: usize) -> Self {
        let size = (pairs * 2).next_power_of_two().max(16);
        Self { entries: vec![(EMPTY, 0, 0); size], shift: 64 - size.trailing_zeros(), len: 0 }
    }

    /// Sets the rank and merged id of `pair`; a later value replaces an earlier one.
    pub(crate) fn insert(&mut self, pair: (u32, u32), rank: u32, id: u32) {
        if (self.len + 1) * 2 > self.entries.len() {
            let mut larger = Self::with_capacity(self.len * 2 + 1);
            for &(key, rank, id) in self.entries.iter().filter(|entry| entry.0 != EMPTY) {
                larger.insert(((key >> 32) as u32, key as u32), rank, id);
            }
            *self = larger;
        }
        let slot = self.slot_of(key_of(pair));
        self.len += usize::from(self.entries[slot].0 == EMPTY);
        self.entries[slot] = (key_of(pair), rank, id);
    }

    /// Returns the rank and merged id of `pair`.
    #[inline]
    pub(crate) fn get(&self, pair: (u32, u32)) -> Option<(u32, u32)> {
        let (key, rank, id) = self.entries[self.slot_of(key_of(pair))];
        (key != EMPTY).then_some((rank, id))
    }

    #[inline]
    fn slot_of(&self, key: u64) -> usize {
        let mask = self.entries.len() - 1;
        // Fibonacci hashing: the high bits of the product mix all bits of the key.
        let mut slot = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        loop {
            let found = self.entries[slot & mask].0;
            if found == key || found == EMPTY {
                return slot & mask;
            }
            slot += 1;
        }
    }
}

#[inline]
fn key_of((left, right): (u32, u32)) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}
