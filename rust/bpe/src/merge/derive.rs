//! Vocabularies given as a ranked token list: each token's merge is derived by encoding the token's own bytes.
//!
//! A token forms in any text as it forms from its own bytes alone, since no merge crosses its ends before it is complete.
//! So one pair a token is enough: the two symbols that are left when all merges of lower rank are done. A token that lower
//! ranks do not reduce to two symbols gets every split into two symbols as a merge.

use super::Merger;
use super::splits::Splits;
use crate::Result;
use crate::interrupt::Interrupt;
use crate::utf8::{char_count, is_continuation};
use crate::vocab::{SentencePieceTokens, Vocab};

/// More lengths of tokens than these are not looked up one by one: published vocabularies have up to 130.
const MANY_LENGTHS: usize = 256;

impl Vocab {
    /// Returns the vocabulary whose ranks are its ids, as in `.tiktoken` files.
    ///
    /// A piece that is a token becomes that token, even if no sequence of merges reaches it.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if a token is empty or given twice, or an id is given twice or is out of
    /// range.
    ///
    /// # Cost
    /// One run of BPE for each token, over the merges of lower rank. Where that leaves more than two symbols, every split of
    /// the token into two lengths of tokens is looked up; if there are many such lengths, the tokens that it begins and ends
    /// with are.
    pub fn from_ranks<T: AsRef<[u8]>>(ranks: Vec<(T, u32)>) -> Result<Self> {
        Self::from_ranks_of_lengths(ranks, MANY_LENGTHS)
    }

    /// As [`Vocab::from_ranks`]; more lengths than `many` are many.
    pub(super) fn from_ranks_of_lengths<T: AsRef<[u8]>>(ranks: Vec<(T, u32)>, many: usize) -> Result<Self> {
        let mut vocab = Self::from_tokens(ranks, |_| false)?;
        vocab.set_whole_piece_first();
        let mut is_length = vec![false; vocab.longest_token() + 1];
        vocab.tokens().for_each(|(token, _)| is_length[token.len()] = true);
        let is_many = is_length.iter().filter(|&&is| is).count() > many;
        let mut splits = None;
        let mut merger = Merger::default();
        let mut symbols = Vec::new();
        let mut token = Vec::new();
        for id in 0..vocab.id_bound() {
            token.clear();
            token.extend_from_slice(vocab.symbol_bytes(id));
            if token.len() < 2 {
                continue;
            }
            symbols.clear();
            let is_known = merger.merge(&vocab, &token, Interrupt::NEVER, &mut symbols).is_ok();
            if is_known && let [left, right] = symbols[..] {
                vocab.add_ranked_pair((left, right), id);
                continue;
            }
            if is_many {
                for pair in splits.get_or_insert_with(|| Splits::new(&vocab)).of(id) {
                    vocab.add_ranked_pair(pair, id);
                }
                continue;
            }
            for at in (1..token.len()).filter(|&at| is_length[at] && is_length[token.len() - at]) {
                let (left, right) = token.split_at(at);
                if let (Some(left), Some(right)) = (vocab.bytes_to_id(left), vocab.bytes_to_id(right)) {
                    vocab.add_ranked_pair((left, right), id);
                }
            }
        }
        Ok(vocab)
    }

    /// Returns the vocabulary in which two neighbours merge if they make one of `tokens.merged`, a token earlier in that
    /// list first; of the same token, the leftmost first.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] as for [`Vocab::from_sentencepiece_merges`]; and if there are whole tokens,
    /// and a merged token that merging its own text does not produce.
    ///
    /// # Cost
    /// One run of BPE for each token, over the merges before it.
    ///
    /// # Source
    /// The encoder of SentencePiece, `src/bpe_model.cc`.
    pub fn from_sentencepiece_tokens(tokens: &SentencePieceTokens) -> Result<Self> {
        let (mut vocab, internal) = Self::over_characters(tokens)?;
        let several = tokens.merged.iter().filter(|(bytes, _)| char_count(bytes) > 1);
        let first = vocab.extend_merged(several.clone().map(|&(_, id)| id));
        let (mut merger, mut symbols) = (Merger::default(), Vec::new());
        for ((bytes, _), rank) in several.zip(first..) {
            symbols.clear();
            merger.merge(&vocab, bytes, Interrupt::NEVER, &mut symbols)?;
            if let [left, right] = symbols[..] {
                vocab.add_ranked_pair((left, right), rank);
                continue;
            }
            let symbol = |part: &[u8]| {
                let byte = || if part.len() == 1 { vocab.byte_id(part[0]) } else { None };
                vocab.bytes_to_id(part).or_else(|| internal.get(part).copied()).or_else(byte)
            };
            let splits = (1..bytes.len()).filter(|&at| !is_continuation(bytes[at])).map(|at| bytes.split_at(at));
            let pairs: Vec<_> = splits.filter_map(|(left, right)| Some((symbol(left)?, symbol(right)?))).collect();
            for pair in pairs {
                vocab.add_ranked_pair(pair, rank);
            }
        }
        if vocab.whole_piece_first() {
            let merged = tokens.merged.iter().map(|(bytes, id)| (&bytes[..], *id));
            if let Some(bytes) = vocab.first_not_merged(merged)? {
                let text = String::from_utf8_lossy(bytes);
                return Err(invalid!(
                    "the text of token {text:?} becomes other tokens, which is not supported beside user-defined tokens"
                ));
            }
        }
        Ok(vocab)
    }

    /// Returns whether merging the text of every token that `is_meant` selects produces that token.
    pub(crate) fn merges_reach_all(&self, is_meant: impl Fn(&[u8]) -> bool) -> Result<bool> {
        let tokens = self.tokens().filter(|(bytes, _)| is_meant(bytes));
        self.first_not_merged(tokens).map(|token| token.is_none())
    }

    /// Returns the first of these tokens that merging its own bytes does not produce.
    fn first_not_merged<'t>(&self, tokens: impl Iterator<Item = (&'t [u8], u32)>) -> Result<Option<&'t [u8]>> {
        let (mut merger, mut symbols) = (Merger::default(), Vec::new());
        for (bytes, id) in tokens {
            symbols.clear();
            merger.merge(self, bytes, Interrupt::NEVER, &mut symbols)?;
            if symbols[..] != [id] {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}
