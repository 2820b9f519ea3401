//! Token bytes to id, id to token bytes, and pair to merged id.

mod characters;

pub use self::characters::Pieces;

use std::hash::{BuildHasher, Hasher};

use crate::merge::Merger;
use crate::pairs::{ID_BOUND, NO_RANK, PairTable};
use crate::{Error, Result};

/// Stands for "no id" in flat tables. No vocabulary may use it as an id.
pub(crate) const NO_ID: u32 = u32::MAX;

/// The tokens of a byte-level BPE and how they merge. Special tokens are not part of it.
///
/// Ids may have holes: `id_to_bytes` of a hole is `None`.
#[derive(Debug, Clone)]
pub struct Vocab {
    /// Every token's bytes, one after another in id order.
    arena: Vec<u8>,
    /// Token `id` is `arena[starts[id]..starts[id + 1]]`; an empty range is a hole.
    starts: Vec<u32>,
    /// Open addressing over ids, by the hash of their bytes, of which 32 bits stand beside the id.
    slots: Vec<(u32, u32)>,
    /// How many ids have a token.
    token_count: usize,
    /// The largest id plus one. Ids from here on are stand-ins that only merging sees.
    bound: u32,
    /// The ids of single bytes where merging begins with characters; see `vocab/characters.rs`.
    byte_fallback: Option<Box<[u32; 256]>>,
    /// Whether there are tokens that text never becomes.
    has_silent: bool,
    longest: usize,
    byte_ids: [u32; 256],
    pairs: PairTable,
    /// The ranks of pairs of bytes, by the first times 256 and the second: with them every merging begins.
    byte_pairs: Vec<u32>,
    /// The id that the pair of a rank merges to; empty where ranks are ids.
    merged: Vec<u32>,
    /// Pairs in rank order.
    merges: Vec<(u32, u32)>,
    whole_piece_first: bool,
    /// Whether a byte that is no token is left out of a piece, instead of being an error.
    drops_unknown: bool,
}

impl Vocab {
    /// Returns the vocabulary whose ranks are its ids, as `.tiktoken` files hold it.
    ///
    /// A piece that is itself a token becomes that token, even where no sequence of merges reaches it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a token is empty or given twice, or an id is given twice or is out of range.
    ///
    /// # Cost
    /// One run of BPE for each token, over the merges of lower rank.
    pub fn from_ranks<T: AsRef<[u8]>>(ranks: Vec<(T, u32)>) -> Result<Self> {
        let mut vocab = Self::from_tokens(ranks, |_| false)?;
        vocab.whole_piece_first = true;
        vocab.merges = Vec::with_capacity(vocab.token_count);
        let mut merger = Merger::default();
        let mut parts = Vec::new();
        for id in 0..vocab.id_bound() {
            let range = vocab.range(id);
            if range.len() < 2 {
                continue;
            }
            // A token forms in any text just as it forms from its own bytes, so one pair a token is enough: the one
            // that is left when all merges of lower rank are done.
            parts.clear();
            let token = &vocab.arena[range.clone()];
            let known = merger.merge(&vocab, token, &mut parts).is_ok();
            if known && parts.len() == 2 {
                vocab.insert_pair((parts[0], parts[1]), id);
                vocab.merges.push((parts[0], parts[1]));
                continue;
            }
            // Not reached by lower ranks: every way to cut it in two might still be used, so all are kept.
            for cut in 1..range.len() {
                let (left, right) = vocab.arena[range.clone()].split_at(cut);
                if let (Some(left), Some(right)) = (vocab.bytes_to_id(left), vocab.bytes_to_id(right)) {
                    vocab.insert_pair((left, right), id);
                    vocab.merges.push((left, right));
                }
            }
        }
        Ok(vocab)
    }

    /// Returns the vocabulary given by its tokens and a list of merges, best first, as `tokenizer.json` files hold it.
    ///
    /// With `whole_piece_first` (`ignore_merges` in `tokenizer.json`) a piece that is itself a token becomes that token
    /// before any merge is tried.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] as for [`Vocab::from_ranks`], and if a merge names an unknown id or its result is no
    /// token.
    pub fn from_merges(tokens: Vec<(Vec<u8>, u32)>, merges: Vec<(u32, u32)>, whole_piece_first: bool) -> Result<Self> {
        Self::from_tokens(tokens, |_| false)?.with_merges(merges, whole_piece_first)
    }

    /// Returns the vocabulary that leaves out bytes which are no token, as `tokenizers` does without an unknown token.
    pub(crate) fn dropping_unknown(mut self) -> Self {
        self.drops_unknown = true;
        self
    }

    /// Returns whether bytes that are no token are left out of an encoding, instead of an error.
    pub fn drops_unknown(&self) -> bool {
        self.drops_unknown
    }

    /// As [`Vocab::from_merges`], with more tokens that text never becomes.
    pub(crate) fn from_merges_and_silent(
        tokens: Vec<(Vec<u8>, u32)>,
        silent: Vec<(Vec<u8>, u32)>,
        merges: Vec<(u32, u32)>,
        whole_piece_first: bool,
    ) -> Result<Self> {
        let ids: hashbrown::HashSet<u32> = silent.iter().map(|&(_, id)| id).collect();
        let all = tokens.into_iter().chain(silent).collect();
        Self::from_tokens(all, |id| ids.contains(&id))?.with_merges(merges, whole_piece_first)
    }

    fn with_merges(mut self, merges: Vec<(u32, u32)>, whole_piece_first: bool) -> Result<Self> {
        self.whole_piece_first = whole_piece_first;
        if merges.len() > ID_BOUND as usize {
            let count = merges.len();
            return Err(Error::InvalidArgument(format!("{count} merges: expected at most {ID_BOUND}")));
        }
        for (index, pair) in merges.into_iter().enumerate() {
            self.push_merge(pair, index)?;
        }
        Ok(self)
    }

    /// Adds the merge that comes after all others; errors call it by its index in the caller's list.
    fn push_merge(&mut self, (left, right): (u32, u32), index: usize) -> Result<()> {
        let rank = self.merged.len();
        let mut merged = Vec::new();
        for id in [left, right] {
            merged.extend_from_slice(self.id_to_bytes(id).ok_or_else(|| {
                Error::InvalidArgument(format!("merge {index} names id {id}, which is not in the vocabulary"))
            })?);
        }
        let id = self.bytes_to_id(&merged).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "merge {index} gives {:?}, which is not in the vocabulary",
                String::from_utf8_lossy(&merged)
            ))
        })?;
        self.insert_pair((left, right), rank as u32);
        self.merged.push(id);
        self.merges.push((left, right));
        Ok(())
    }

    /// Returns this vocabulary with more tokens, from id `first` on, and their merges, which come after all others.
    ///
    /// # Errors
    /// As [`Vocab::from_merges`]; [`Error::InvalidArgument`] if this is a SentencePiece vocabulary.
    pub(crate) fn extended(&self, tokens: &[Vec<u8>], first: u32, merges: &[(u32, u32)]) -> Result<Self> {
        if self.byte_fallback.is_some() {
            return Err(Error::InvalidArgument(
                "a SentencePiece vocabulary, whose merging begins with characters, cannot be extended".to_owned(),
            ));
        }
        let silent: hashbrown::HashSet<u32> = self.silent_tokens().map(|(_, id)| id).collect();
        let all = self.tokens().chain(self.silent_tokens()).chain(tokens.iter().map(Vec::as_slice).zip(first..));
        let mut vocab = Self::from_tokens(all.collect(), |id| silent.contains(&id))?;
        vocab.whole_piece_first = self.whole_piece_first;
        for &(left, right) in &self.merges {
            vocab.insert_pair((left, right), self.rank(left, right));
        }
        vocab.merged = if self.merged.is_empty() { (0..self.id_bound()).collect() } else { self.merged.clone() };
        vocab.merges.clone_from(&self.merges);
        for (index, &pair) in merges.iter().enumerate() {
            vocab.push_merge(pair, index)?;
        }
        Ok(vocab)
    }

    /// Returns the tokens without a merge. Silent ones have bytes, but text never becomes them and they are not found.
    fn from_tokens<T: AsRef<[u8]>>(mut tokens: Vec<(T, u32)>, is_silent: impl Fn(u32) -> bool) -> Result<Self> {
        if !tokens.is_sorted_by_key(|&(_, id)| id) {
            tokens.sort_unstable_by_key(|&(_, id)| id);
        }
        let bound = tokens.last().map_or(0, |&(_, id)| id as usize + 1);
        // Ids index flat tables: a stray huge id must not make them huge.
        if bound > tokens.len() * 4 + (1 << 20) || bound > ID_BOUND as usize {
            let id = bound - 1;
            return Err(Error::InvalidArgument(format!(
                "id {id} is out of range for {} tokens: expected ids near their number, and below {ID_BOUND}",
                tokens.len()
            )));
        }
        let mut vocab = Self {
            arena: Vec::with_capacity(tokens.iter().map(|(bytes, _)| bytes.as_ref().len()).sum()),
            starts: Vec::with_capacity(bound + 1),
            slots: vec![(NO_ID, 0); (tokens.len() * 2).next_power_of_two().max(16)],
            token_count: tokens.len(),
            bound: bound as u32,
            byte_fallback: None,
            has_silent: tokens.iter().any(|(_, id)| is_silent(*id)),
            longest: tokens.iter().map(|(bytes, _)| bytes.as_ref().len()).max().unwrap_or(0),
            byte_ids: [NO_ID; 256],
            pairs: PairTable::with_capacity(tokens.len()),
            byte_pairs: vec![NO_RANK; 1 << 16],
            merged: Vec::new(),
            merges: Vec::new(),
            whole_piece_first: false,
            drops_unknown: false,
        };
        for (bytes, id) in &tokens {
            let bytes = bytes.as_ref();
            if bytes.is_empty() {
                return Err(Error::InvalidArgument(format!("token {id} is empty")));
            }
            if vocab.starts.len() > *id as usize {
                return Err(Error::InvalidArgument(format!("id {id} is given to two tokens")));
            }
            vocab.starts.resize(*id as usize + 1, vocab.arena.len() as u32);
            vocab.arena.extend_from_slice(bytes);
            if u32::try_from(vocab.arena.len()).is_err() {
                return Err(Error::InvalidArgument("the tokens take more than 4 GiB together".to_owned()));
            }
        }
        vocab.starts.push(vocab.arena.len() as u32);
        for (bytes, id) in tokens.iter().filter(|(_, id)| !is_silent(*id)) {
            let bytes = bytes.as_ref();
            let (slot, tag) = vocab.slot_of(bytes);
            if vocab.slots[slot].0 != NO_ID {
                let text = String::from_utf8_lossy(bytes);
                return Err(Error::InvalidArgument(format!(
                    "token {text:?} has two ids, {} and {id}",
                    vocab.slots[slot].0
                )));
            }
            vocab.slots[slot] = (*id, tag);
            if let [byte] = bytes[..] {
                vocab.byte_ids[byte as usize] = *id;
            }
        }
        Ok(vocab)
    }

    fn insert_pair(&mut self, pair: (u32, u32), rank: u32) {
        if let (Some(&[first]), Some(&[second])) = (self.id_to_bytes(pair.0), self.id_to_bytes(pair.1)) {
            self.byte_pairs[usize::from(first) << 8 | usize::from(second)] = rank;
        }
        self.pairs.insert(pair, rank);
    }

    /// Returns the slot that holds `bytes`, or the empty one where they would go, and the tag that stands in it.
    fn slot_of(&self, bytes: &[u8]) -> (usize, u32) {
        let mask = self.slots.len() - 1;
        let hash = hash_bytes(bytes);
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

    fn range(&self, id: u32) -> std::ops::Range<usize> {
        self.starts[id as usize] as usize..self.starts[id as usize + 1] as usize
    }

    /// Returns the id of a token, if `bytes` are one.
    pub fn bytes_to_id(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest {
            return None;
        }
        let (id, _) = self.slots[self.slot_of(bytes).0];
        (id != NO_ID).then_some(id)
    }

    /// Returns the bytes of a token, or `None` if no token has this id.
    pub fn id_to_bytes(&self, id: u32) -> Option<&[u8]> {
        if id >= self.id_bound() {
            return None;
        }
        let bytes = &self.arena[self.range(id)];
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Returns the largest id plus one, or 0 for an empty vocabulary.
    pub fn id_bound(&self) -> u32 {
        self.bound
    }

    /// Returns how many tokens there are.
    pub fn len(&self) -> usize {
        self.token_count
    }

    /// Returns whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.token_count == 0
    }

    /// Returns the length in bytes of the longest token.
    pub fn longest_token(&self) -> usize {
        self.longest
    }

    /// Returns the merges, best first, as pairs of ids.
    pub fn merges(&self) -> &[(u32, u32)] {
        &self.merges
    }

    /// Returns whether a piece that is itself a token is taken before any merge is tried.
    pub fn whole_piece_first(&self) -> bool {
        self.whole_piece_first
    }

    /// Returns the tokens that text never becomes with their ids, in id order.
    pub(crate) fn silent_tokens(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let is_silent = |bytes, id| self.has_silent && self.bytes_to_id(bytes) != Some(id);
        (0..self.bound).filter_map(move |id| Some((self.id_to_bytes(id).filter(|bytes| is_silent(bytes, id))?, id)))
    }

    /// Returns every token that text can become with its id, in id order.
    pub fn tokens(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let found = |bytes, id| !self.has_silent || self.bytes_to_id(bytes) == Some(id);
        (0..self.bound).filter_map(move |id| Some((self.id_to_bytes(id).filter(|bytes| found(bytes, id))?, id)))
    }

    /// Returns the bytes of what merging makes: a token's, or a stand-in's.
    #[inline]
    pub(crate) fn symbol_bytes(&self, id: u32) -> &[u8] {
        &self.arena[self.range(id)]
    }

    /// Returns the rank of the pair of these two bytes' tokens, or [`NO_RANK`].
    #[inline]
    pub(crate) fn byte_rank(&self, first: u8, second: u8) -> u32 {
        self.byte_pairs[usize::from(first) << 8 | usize::from(second)]
    }

    /// Returns the rank of a pair, or [`NO_RANK`] if it does not merge.
    #[inline(always)]
    pub(crate) fn rank(&self, left: u32, right: u32) -> u32 {
        self.pairs.rank((left, right))
    }

    /// Returns the ranks of all pairs.
    #[inline(always)]
    pub(crate) fn pairs(&self) -> &PairTable {
        &self.pairs
    }

    /// Returns the id that the pair of this rank merges to.
    #[inline]
    pub(crate) fn merged(&self, rank: u32) -> u32 {
        self.merged.get(rank as usize).copied().unwrap_or(rank)
    }

    /// Returns the ids of all single bytes, [`NO_ID`] where a byte is no token.
    #[inline]
    pub(crate) fn byte_ids(&self) -> &[u32; 256] {
        &self.byte_ids
    }

    /// Returns the id of the token that is this one byte.
    #[inline]
    pub(crate) fn byte_id(&self, byte: u8) -> Option<u32> {
        let id = self.byte_ids[byte as usize];
        (id != NO_ID).then_some(id)
    }
}

/// The same hash in every process: nothing that depends on it leaves the tables it fills.
fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    hasher.write(bytes);
    hasher.finish()
}
