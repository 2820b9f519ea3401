//! [`Vocab`]: a token table, a merge table and how they are used.

use super::limits::{ID_BOUND, NO_ID};
use super::merge_table::MergeTable;
use super::pair_table::PairTable;
use super::token_table::TokenTable;
use crate::Result;

/// The tokens of a byte-level BPE and its merges, without special tokens.
///
/// Ids may have gaps: [`Vocab::id_to_bytes`] of a gap is `None`.
#[derive(Debug, Clone)]
pub struct Vocab {
    pub(super) tokens: TokenTable,
    pub(super) merges: MergeTable,
    /// The byte tokens of a SentencePiece vocabulary, to which unknown characters fall back.
    pub(super) byte_fallback: Option<Box<[u32; 256]>>,
    pub(super) whole_piece_first: bool,
    /// Whether bytes that are no token are dropped instead of being an error.
    drops_unknown: bool,
}

impl Vocab {
    /// Returns the vocabulary of a token list and a merge list, best merge first, as in `tokenizer.json`.
    ///
    /// With `whole_piece_first` (`ignore_merges` in `tokenizer.json`) a piece that is a token becomes that token without
    /// any merge.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] as for [`Vocab::from_ranks`], and if a merge names an unknown id or its result
    /// is no token.
    pub fn from_merges(tokens: Vec<(Vec<u8>, u32)>, merges: Vec<(u32, u32)>, whole_piece_first: bool) -> Result<Self> {
        let mut vocab = Self::from_tokens(tokens, |_| false)?;
        vocab.whole_piece_first = whole_piece_first;
        vocab.push_merges(merges)?;
        Ok(vocab)
    }

    /// As [`Vocab::from_merges`], with more tokens that encoding never produces.
    pub(crate) fn from_merges_and_decode_only(
        tokens: Vec<(Vec<u8>, u32)>,
        decode_only: Vec<(Vec<u8>, u32)>,
        merges: Vec<(u32, u32)>,
        whole_piece_first: bool,
    ) -> Result<Self> {
        let ids: hashbrown::HashSet<u32> = decode_only.iter().map(|&(_, id)| id).collect();
        let all = tokens.into_iter().chain(decode_only).collect();
        let mut vocab = Self::from_tokens(all, |id| ids.contains(&id))?;
        vocab.whole_piece_first = whole_piece_first;
        vocab.push_merges(merges)?;
        Ok(vocab)
    }

    /// Returns these tokens without merges. Tokens that `is_decode_only` selects are never produced by encoding.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] as for [`Vocab::from_ranks`].
    pub(crate) fn from_tokens<T: AsRef<[u8]>>(
        tokens: Vec<(T, u32)>,
        is_decode_only: impl Fn(u32) -> bool,
    ) -> Result<Self> {
        let merges = MergeTable::with_capacity(tokens.len());
        let tokens = TokenTable::new(tokens, is_decode_only)?;
        Ok(Self { tokens, merges, byte_fallback: None, whole_piece_first: false, drops_unknown: false })
    }

    /// Returns this vocabulary with more tokens, from id `first` on, and their merges, ranked after all others.
    ///
    /// # Errors
    /// As [`Vocab::from_merges`]; [`crate::Error::InvalidArgument`] for a SentencePiece vocabulary.
    pub(crate) fn extended(&self, tokens: &[Vec<u8>], first: u32, merges: &[(u32, u32)]) -> Result<Self> {
        if self.byte_fallback.is_some() {
            return Err(invalid!(
                "a SentencePiece vocabulary, whose merging begins with characters, cannot be extended"
            ));
        }
        let decode_only: hashbrown::HashSet<u32> = self.decode_only_tokens().map(|(_, id)| id).collect();
        let all = self.tokens().chain(self.decode_only_tokens()).chain(tokens.iter().map(Vec::as_slice).zip(first..));
        let mut vocab = Self::from_tokens(all.collect(), |id| decode_only.contains(&id))?;
        vocab.whole_piece_first = self.whole_piece_first;
        for &(left, right) in self.merges() {
            vocab.add_ranked_pair((left, right), self.rank(left, right));
        }
        match self.merges.merged_ids() {
            [] => vocab.merges.extend_merged(0..self.id_bound()),
            ids => vocab.merges.extend_merged(ids.iter().copied()),
        };
        vocab.push_merges(merges.iter().copied())?;
        Ok(vocab)
    }

    /// Returns the vocabulary that drops bytes without a token, as `tokenizers` does without an unknown token.
    pub(crate) fn dropping_unknown(mut self) -> Self {
        self.drops_unknown = true;
        self
    }

    pub(crate) fn set_whole_piece_first(&mut self) {
        self.whole_piece_first = true;
    }

    /// Adds merges with the next ranks.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if there are too many, a merge names an unknown id or its result is no token.
    pub(super) fn push_merges(
        &mut self,
        merges: impl IntoIterator<Item = (u32, u32), IntoIter: ExactSizeIterator>,
    ) -> Result<()> {
        let merges = merges.into_iter();
        let room = (ID_BOUND as usize).saturating_sub(self.merges.next_rank());
        if merges.len() > room {
            return Err(invalid!("{} merges: expected at most {room}", merges.len()));
        }
        for (index, (left, right)) in merges.enumerate() {
            let mut merged = Vec::new();
            for id in [left, right] {
                merged.extend_from_slice(
                    self.id_to_bytes(id)
                        .ok_or_else(|| invalid!("merge {index} names id {id}, which is not in the vocabulary"))?,
                );
            }
            let id = self.bytes_to_id(&merged).ok_or_else(|| {
                invalid!("merge {index} gives {:?}, which is not in the vocabulary", String::from_utf8_lossy(&merged))
            })?;
            let rank = self.merges.extend_merged([id]);
            self.add_ranked_pair((left, right), rank);
        }
        Ok(())
    }

    /// Lists a pair as a merge of this rank, whose merged id is known.
    pub(crate) fn add_ranked_pair(&mut self, pair: (u32, u32), rank: u32) {
        self.set_rank(pair, rank);
        self.merges.push_pair(pair);
    }

    pub(super) fn set_rank(&mut self, pair: (u32, u32), rank: u32) {
        let bytes = match (self.id_to_bytes(pair.0), self.id_to_bytes(pair.1)) {
            (Some(&[first]), Some(&[second])) => Some((first, second)),
            _ => None,
        };
        self.merges.set_rank(pair, bytes, rank);
    }

    /// Appends merged ids for the next ranks, and returns the first of these ranks.
    pub(crate) fn extend_merged(&mut self, ids: impl IntoIterator<Item = u32>) -> u32 {
        self.merges.extend_merged(ids)
    }

    /// Returns the id of the token with these bytes.
    pub fn bytes_to_id(&self, bytes: &[u8]) -> Option<u32> {
        self.tokens.id(bytes)
    }

    /// Returns the bytes of a token, or `None` if no token has this id.
    pub fn id_to_bytes(&self, id: u32) -> Option<&[u8]> {
        self.tokens.bytes(id)
    }

    /// Returns the largest id plus one, or 0 for an empty vocabulary.
    pub fn id_bound(&self) -> u32 {
        self.tokens.bound()
    }

    /// Returns the number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Returns whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.len() == 0
    }

    /// Returns the length in bytes of the longest token.
    pub fn longest_token(&self) -> usize {
        self.tokens.longest()
    }

    /// Returns the tokens that encoding can produce with their ids, in id order.
    pub fn tokens(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.tokens.iter(false)
    }

    /// Returns the tokens that encoding never produces with their ids, in id order.
    pub(crate) fn decode_only_tokens(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.tokens.iter(true)
    }

    /// Returns the merges, best first, as pairs of ids.
    pub fn merges(&self) -> &[(u32, u32)] {
        self.merges.pairs()
    }

    /// Returns whether a piece that is a token becomes that token without any merge.
    pub fn whole_piece_first(&self) -> bool {
        self.whole_piece_first
    }

    /// Returns whether bytes that are no token are dropped instead of being an error.
    pub fn drops_unknown(&self) -> bool {
        self.drops_unknown
    }

    /// Returns the bytes of a token or of an internal symbol.
    #[inline]
    pub(crate) fn symbol_bytes(&self, id: u32) -> &[u8] {
        self.tokens.symbol_bytes(id)
    }

    /// Returns the ids of all single bytes, [`NO_ID`] for a byte that is no token.
    #[inline]
    pub(crate) fn byte_ids(&self) -> &[u32; 256] {
        self.tokens.byte_ids()
    }

    /// Returns the id of the token that is this one byte.
    #[inline]
    pub(crate) fn byte_id(&self, byte: u8) -> Option<u32> {
        let id = self.byte_ids()[byte as usize];
        (id != NO_ID).then_some(id)
    }

    /// Returns the id of the token that is this one byte.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if there is none.
    #[inline]
    pub(crate) fn require_byte(&self, byte: u8) -> Result<u32> {
        self.byte_id(byte)
            .ok_or_else(|| invalid!("byte 0x{byte:02X} has no token in this vocabulary: the text cannot be encoded"))
    }

    /// Returns the rank of the pair of these bytes' tokens, or [`NO_RANK`](super::NO_RANK).
    #[inline]
    pub(crate) fn byte_rank(&self, first: u8, second: u8) -> u32 {
        self.merges.byte_rank(first, second)
    }

    /// Returns the rank of a pair, or [`NO_RANK`](super::NO_RANK) if it does not merge.
    #[inline(always)]
    pub(crate) fn rank(&self, left: u32, right: u32) -> u32 {
        self.merges.rank(left, right)
    }

    /// Returns the ranks of all pairs.
    #[inline(always)]
    pub(crate) fn pair_table(&self) -> &PairTable {
        self.merges.pair_table()
    }

    /// Returns the id that the pair of this rank merges to.
    #[inline]
    pub(crate) fn merged(&self, rank: u32) -> u32 {
        self.merges.merged(rank)
    }
}
