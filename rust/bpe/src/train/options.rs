//! What to train, and what training returns.

use super::progress::Progress;
use super::symbols::MAX_IDS;
use crate::Result;
use crate::byte_alphabet::byte_order;
use crate::vocab::Vocab;

/// How two pairs of equal count are ordered if they differ in a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TieOrder {
    /// By the bytes' ids: the rule of `tokenizers`.
    #[default]
    Ids,
    /// By the bytes' values: the rule of trainers whose ids are the byte values, such as `rustbpe`.
    ByteValues,
}

/// What to train.
#[derive(Debug, Clone, Default)]
pub struct TrainOptions {
    /// The total number of ids: the 256 bytes, merged tokens and special tokens.
    pub vocab_size: usize,
    /// The number of ids reserved for special tokens.
    pub special_tokens: usize,
    /// Pairs with a lower count do not merge; 0 and 1 mean the same.
    pub min_frequency: u64,
    /// Tokens of three bytes or more are shorter than this: `tokenizers`' rule, which always lets two bytes merge.
    pub max_token_length: Option<usize>,
    /// How pairs of equal count are ordered. It changes the merges, not the ids of the bytes.
    pub tie_order: TieOrder,
    /// The vocabulary to start from instead of the 256 bytes. Words are encoded with it, and `vocab_size` includes its
    /// tokens.
    ///
    /// A pair does not merge if its bytes already are a token of the base. In a trained vocabulary no such pair occurs,
    /// so training in two steps on the same text gives the same merges as in one.
    pub base: Option<Vocab>,
}

/// A trained vocabulary, without its special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    /// The bytes of each token by id: the 256 bytes in GPT-2's order or the tokens of the base (empty for an unused
    /// id), then one token a merge.
    pub tokens: Vec<Vec<u8>>,
    /// The learned merges in order, one for each of the last tokens: fewer than requested if the text has no more
    /// pairs.
    pub merges: Vec<(u32, u32)>,
}

impl TrainOptions {
    /// Checks the options before any text is read.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if `vocab_size` is too small for the base and the special tokens, or too large
    /// for an id; if the base is a SentencePiece vocabulary; if ties are ordered by byte values and the first 256 ids
    /// of the base are not the bytes.
    pub fn check(&self) -> Result<()> {
        self.check_base()?;
        let (base, special) = (self.base_tokens(), self.special_tokens);
        let least = base.saturating_add(special);
        if self.vocab_size < least {
            return Err(invalid!(
                "vocab_size is {}; it must be at least {least}: {base} tokens to start from and {special} special tokens",
                self.vocab_size,
            ));
        }
        if self.vocab_size > MAX_IDS {
            return Err(invalid!("vocab_size is {}; at most {MAX_IDS} ids exist", self.vocab_size));
        }
        Ok(())
    }

    fn check_base(&self) -> Result<()> {
        let Some(base) = &self.base else { return Ok(()) };
        if base.byte_fallback().is_some() {
            return Err(invalid!(
                "the base is a SentencePiece vocabulary, whose merging begins with characters: it cannot be trained further"
            ));
        }
        if self.tie_order == TieOrder::ByteValues
            && let Some(id) = (0..256).find(|&id| base.id_to_bytes(id).is_none_or(|token| token.len() != 1))
        {
            let token = String::from_utf8_lossy(base.id_to_bytes(id).unwrap_or_default());
            return Err(invalid!(
                "ties by byte value need a base whose first 256 ids are the bytes; its id {id} is {token:?}"
            ));
        }
        Ok(())
    }

    /// Returns the number of merges to learn.
    pub(super) fn merges(&self) -> usize {
        self.vocab_size - self.special_tokens - self.base_tokens()
    }

    fn base_tokens(&self) -> usize {
        self.base.as_ref().map_or(256, Vocab::len)
    }

    /// Returns the tokens to start from by id: those of the base, or the 256 bytes.
    pub(super) fn first_tokens(&self) -> Vec<Vec<u8>> {
        let Some(base) = &self.base else { return byte_order().map(|byte| vec![byte]).collect() };
        (0..base.id_bound()).map(|id| base.id_to_bytes(id).unwrap_or_default().to_vec()).collect()
    }

    /// Returns the progress after `done` merges.
    pub(super) fn progress(&self, done: usize) -> Progress {
        Progress::Merging { done, total: self.merges() }
    }
}
