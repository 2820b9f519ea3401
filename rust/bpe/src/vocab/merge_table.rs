//! Pairs of ids to their rank, and ranks to the merged id.

use super::limits::NO_RANK;
use super::pair_table::PairTable;

/// The merges of a vocabulary. The rank of a merge is its priority: the lowest rank merges first.
#[derive(Debug, Clone)]
pub(super) struct MergeTable {
    ranks: PairTable,
    /// The ranks of pairs of single-byte tokens, by `first << 8 | second`: every encoding begins with them.
    byte_ranks: Vec<u32>,
    /// The merged id by rank; empty if ranks are ids.
    merged: Vec<u32>,
    /// Pairs in rank order.
    pairs: Vec<(u32, u32)>,
}

impl MergeTable {
    pub(super) fn with_capacity(pairs: usize) -> Self {
        Self {
            ranks: PairTable::with_capacity(pairs),
            byte_ranks: vec![NO_RANK; 1 << 16],
            merged: Vec::new(),
            pairs: Vec::new(),
        }
    }

    /// Sets the rank of a pair. `bytes` are those of the two tokens if both are single bytes.
    pub(super) fn set_rank(&mut self, pair: (u32, u32), bytes: Option<(u8, u8)>, rank: u32) {
        if let Some((first, second)) = bytes {
            self.byte_ranks[usize::from(first) << 8 | usize::from(second)] = rank;
        }
        self.ranks.insert(pair, rank);
    }

    /// Appends merged ids for the next ranks, and returns the first of these ranks.
    pub(super) fn extend_merged(&mut self, ids: impl IntoIterator<Item = u32>) -> u32 {
        let first = self.merged.len() as u32;
        self.merged.extend(ids);
        first
    }

    /// Appends a pair to the list of merges.
    pub(super) fn push_pair(&mut self, pair: (u32, u32)) {
        self.pairs.push(pair);
    }

    /// Returns the next free rank, if ranks are not ids.
    pub(super) fn next_rank(&self) -> usize {
        self.merged.len()
    }

    /// Returns the pairs in rank order.
    pub(super) fn pairs(&self) -> &[(u32, u32)] {
        &self.pairs
    }

    /// Returns the merged id by rank; empty if ranks are ids.
    pub(super) fn merged_ids(&self) -> &[u32] {
        &self.merged
    }

    /// Returns the rank of a pair, or [`NO_RANK`].
    #[inline(always)]
    pub(super) fn rank(&self, left: u32, right: u32) -> u32 {
        self.ranks.rank((left, right))
    }

    /// Returns the rank of the pair of these bytes' tokens, or [`NO_RANK`].
    #[inline]
    pub(super) fn byte_rank(&self, first: u8, second: u8) -> u32 {
        self.byte_ranks[usize::from(first) << 8 | usize::from(second)]
    }

    /// Returns the id that the pair of this rank merges to.
    #[inline]
    pub(super) fn merged(&self, rank: u32) -> u32 {
        self.merged.get(rank as usize).copied().unwrap_or(rank)
    }

    /// Returns the ranks of all pairs.
    #[inline(always)]
    pub(super) fn pair_table(&self) -> &PairTable {
        &self.ranks
    }
}
