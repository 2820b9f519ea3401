//! Token bytes to id and id to token bytes.

use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use super::limits::{NO_ID, check_id};
use crate::Result;

/// The bytes and ids of all tokens. Ids may have gaps.
#[derive(Debug, Clone)]
pub(super) struct TokenTable {
    /// Every token's bytes, one after another in id order.
    arena: Vec<u8>,
    /// Token `id` is `arena[starts[id]..starts[id + 1]]`; an empty range is a gap.
    starts: Vec<u32>,
    /// Open addressing by the hash of a token's bytes: its id and 32 bits of the hash.
    slots: Vec<(u32, u32)>,
    /// Four bits a slot, of which each token sets one by its hash: nine of ten strings that are no token find theirs unset.
    /// It fits in the L2 cache, `slots` does not.
    filter: Vec<u64>,
    /// The number of ids that have a token.
    len: usize,
    /// The largest id plus one. Ids from here on are internal symbols, which only merging uses.
    bound: u32,
    /// Whether there are tokens that encoding never produces.
    has_decode_only: bool,
    longest: usize,
    byte_ids: [u32; 256],
}

impl TokenTable {
    /// Returns the table of these tokens. [`TokenTable::id`] does not find tokens that `is_decode_only` selects.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a token is empty or given twice, or an id is given twice or is out of
    /// range.
    pub(super) fn new<T: AsRef<[u8]>>(mut tokens: Vec<(T, u32)>, is_decode_only: impl Fn(u32) -> bool) -> Result<Self> {
        if !tokens.is_sorted_by_key(|&(_, id)| id) {
            tokens.sort_unstable_by_key(|&(_, id)| id);
        }
        let bound = tokens.last().map_or(0, |&(_, id)| id as usize + 1);
        if let Some(&(_, id)) = tokens.last() {
            check_id("a token", id)?;
            // Arrays are indexed by id, so one huge id would make them huge.
            if bound > tokens.len() * 4 + (1 << 20) {
                return Err(invalid!(
                    "id {id} is out of range for {} tokens: expected ids near their number",
                    tokens.len()
                ));
            }
        }
        let slots = (tokens.len() * 2).next_power_of_two().max(16);
        let mut table = Self {
            arena: Vec::with_capacity(tokens.iter().map(|(bytes, _)| bytes.as_ref().len()).sum()),
            starts: Vec::with_capacity(bound + 1),
            slots: vec![(NO_ID, 0); slots],
            filter: vec![0; slots / 16],
            len: tokens.len(),
            bound: bound as u32,
            has_decode_only: tokens.iter().any(|(_, id)| is_decode_only(*id)),
            longest: tokens.iter().map(|(bytes, _)| bytes.as_ref().len()).max().unwrap_or(0),
            byte_ids: [NO_ID; 256],
        };
        for (bytes, id) in &tokens {
            let bytes = bytes.as_ref();
            if bytes.is_empty() {
                return Err(invalid!("token {id} is empty"));
            }
            if table.starts.len() > *id as usize {
                return Err(invalid!("id {id} is given to two tokens"));
            }
            table.starts.resize(*id as usize + 1, table.arena.len() as u32);
            table.arena.extend_from_slice(bytes);
            if u32::try_from(table.arena.len()).is_err() {
                return Err(invalid!("the tokens take more than 4 GiB together"));
            }
        }
        table.starts.push(table.arena.len() as u32);
        for (bytes, id) in tokens.iter().filter(|(_, id)| !is_decode_only(*id)) {
            let bytes = bytes.as_ref();
            let hash = hash_bytes(bytes);
            let (word, bit) = table.filter_bit(hash);
            table.filter[word] |= bit;
            let (slot, tag) = table.slot_of(bytes, hash);
            if table.slots[slot].0 != NO_ID {
                let text = String::from_utf8_lossy(bytes);
                return Err(invalid!("token {text:?} has two ids, {} and {id}", table.slots[slot].0));
            }
            table.slots[slot] = (*id, tag);
            if let [byte] = bytes[..] {
                table.byte_ids[byte as usize] = *id;
            }
        }
        Ok(table)
    }

    /// Makes the ids from `bound` on, `count` of them, internal symbols: they have bytes, but are no tokens.
    pub(super) fn hide_from(&mut self, bound: u32, count: usize) {
        self.bound = bound;
        self.len -= count;
    }

    /// Returns the slot that holds `bytes`, or the empty slot where they belong, and their tag.
    fn slot_of(&self, bytes: &[u8], hash: u64) -> (usize, u32) {
        let mask = self.slots.len() - 1;
        let tag = (hash >> 32) as u32;
        let mut slot = hash as usize & mask;
        loop {
            let (id, found) = self.slots[slot];
            if id == NO_ID || (found == tag && &self.arena[self.range(id)] == bytes) {
                return (slot, tag);
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Returns the word and the bit of a hash in the filter.
    #[inline(always)]
    fn filter_bit(&self, hash: u64) -> (usize, u64) {
        let at = hash as usize & (self.filter.len() * 64 - 1);
        (at / 64, 1 << (at % 64))
    }

    fn range(&self, id: u32) -> Range<usize> {
        self.starts[id as usize] as usize..self.starts[id as usize + 1] as usize
    }

    /// Returns the id of the token with these bytes.
    #[inline]
    pub(super) fn id(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest {
            return None;
        }
        let hash = hash_bytes(bytes);
        let (word, bit) = self.filter_bit(hash);
        if self.filter[word] & bit == 0 {
            return None;
        }
        let (id, _) = self.slots[self.slot_of(bytes, hash).0];
        (id != NO_ID).then_some(id)
    }

    /// Returns the bytes of a token, or `None` if no token has this id.
    #[inline]
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        if id >= self.bound {
            return None;
        }
        let bytes = &self.arena[self.range(id)];
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Returns the bytes of a token or of an internal symbol.
    #[inline]
    pub(super) fn symbol_bytes(&self, id: u32) -> &[u8] {
        &self.arena[self.range(id)]
    }

    #[inline]
    pub(super) fn bound(&self) -> u32 {
        self.bound
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Returns the tokens that encoding can produce or, if `decode_only`, the others, in id order.
    pub(super) fn iter(&self, decode_only: bool) -> impl Iterator<Item = (&[u8], u32)> {
        let is_decode_only = |bytes, id| self.has_decode_only && self.id(bytes) != Some(id);
        (0..self.bound).filter_map(move |id| {
            let bytes = self.bytes(id).filter(|bytes| is_decode_only(bytes, id) == decode_only)?;
            Some((bytes, id))
        })
    }

    /// Returns the ids of all single bytes, [`NO_ID`] for a byte that is no token.
    #[inline]
    pub(super) fn byte_ids(&self) -> &[u32; 256] {
        &self.byte_ids
    }
}

/// Returns the same hash in every process; no result depends on it.
fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_found_and_no_other_string() {
        let strings: Vec<String> = (0..4_000).map(|i| format!("{i}")).collect();
        let tokens = strings.iter().step_by(2).zip(0..).map(|(string, id)| (string.as_bytes(), id)).collect();
        let table = TokenTable::new(tokens, |id| id % 10 == 0).expect("distinct tokens");
        for (i, string) in (0_u32..).zip(&strings) {
            let id = (i % 2 == 0 && i / 2 % 10 != 0).then_some(i / 2);
            assert_eq!(table.id(string.as_bytes()), id, "{string}");
        }
    }
}
