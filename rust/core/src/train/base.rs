//! Vocabularies to go on from: what training needs of one, and what becomes of it.

use super::{TieOrder, Trained, byte_order};
use crate::merge::Merger;
use crate::special::AddedToken;
use crate::vocab::Vocab;
use crate::{Error, Pretokenizer, Result, Tokenizer};

/// The 256 bytes in [`byte_order`], and no merges: where training begins unless told otherwise.
impl Default for Trained {
    fn default() -> Self {
        Self { tokens: byte_order().map(|byte| vec![byte]).collect(), merges: Vec::new() }
    }
}

impl Trained {
    /// Returns the tokens and merges of a vocabulary, numbered in the order of its ids.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the vocabulary is a plain list of merges, as training makes it: the 256 bytes have the
    /// lowest ids, each merge makes the next token, and every token's bytes encode to that token.
    pub fn from_vocab(vocab: &Vocab) -> Result<Self> {
        let ids: Vec<u32> = vocab.tokens().map(|(_, id)| id).collect();
        // Ids are in rising order; one that is missing is refused by `check`.
        let number = |id: u32| ids.binary_search(&id).unwrap_or(ids.len()) as u32;
        let trained = Self {
            tokens: vocab.tokens().map(|(token, _)| token.to_vec()).collect(),
            merges: vocab.merges().iter().map(|&(left, right)| (number(left), number(right))).collect(),
        };
        trained.check()?;
        Ok(trained)
    }

    /// Refuses all but a plain list of merges.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |why: String| {
            Err(Error::InvalidArgument(format!(
                "the base is no plain list of merges, so it cannot be trained further: {why}"
            )))
        };
        if let Some(token) = self.tokens.iter().take(256).find(|token| token.len() != 1) {
            return refuse(format!("token {:?} comes before all bytes have ids", String::from_utf8_lossy(token)));
        }
        if self.tokens.len() != 256 + self.merges.len() {
            let expected = "expected 256 bytes and a token a merge";
            return refuse(format!("it has {} tokens and {} merges; {expected}", self.tokens.len(), self.merges.len()));
        }
        let vocab = self.vocab(TieOrder::Ids)?;
        let (mut merger, mut ids) = (Merger::default(), Vec::new());
        for (rank, (token, id)) in self.tokens[256..].iter().zip(256..).enumerate() {
            if vocab.merged(rank as u32) != id {
                return refuse(format!("merge {rank} does not make token {id} but {}", vocab.merged(rank as u32)));
            }
            ids.clear();
            merger.merge(&vocab, token, &mut ids)?;
            if ids != [id] {
                return refuse(format!("the merges never make its token {:?}", String::from_utf8_lossy(token)));
            }
        }
        Ok(())
    }

    /// Returns this as a vocabulary in which a token's id is its symbol while training.
    pub(super) fn vocab(&self, tie_order: TieOrder) -> Result<Vocab> {
        let symbol = |id: u32| match (tie_order, self.tokens.get(id as usize).map(Vec::as_slice)) {
            (TieOrder::ByteValues, Some(&[byte])) => u32::from(byte),
            _ => id,
        };
        let tokens = self.tokens.iter().zip(0..).map(|(token, id)| (token.clone(), symbol(id))).collect();
        let merges = self.merges.iter().map(|&(left, right)| (symbol(left), symbol(right))).collect();
        Vocab::from_merges(tokens, merges, false)
    }

    /// Returns each byte's id.
    pub(super) fn id_of_byte(&self) -> [u32; 256] {
        let mut ids = [0; 256];
        for (token, id) in self.tokens.iter().take(256).zip(0..) {
            ids[usize::from(token[0])] = id;
        }
        ids
    }
}

impl Tokenizer {
    /// Returns this tokenizer with the tokens that further training added, and with more special tokens.
    ///
    /// `trained` began from [`Trained::from_vocab`] of this tokenizer's vocabulary. All ids stay what they are; the new tokens
    /// come after the last of them, new special tokens after those. `pretokenizer` is what cut the text of that training.
    ///
    /// # Errors
    /// As [`Tokenizer::new`]; [`Error::InvalidArgument`] if there are fewer tokens in `trained` than here.
    pub fn extended(&self, trained: &Trained, pretokenizer: Pretokenizer, special_tokens: &[String]) -> Result<Self> {
        let mut tokens: Vec<(Vec<u8>, u32)> = self.vocab().tokens().map(|(token, id)| (token.to_vec(), id)).collect();
        let first_new = self.vocab_size() as u32;
        let Some(new_tokens) = trained.tokens.get(tokens.len()..) else {
            let (few, many) = (trained.tokens.len(), tokens.len());
            return Err(Error::InvalidArgument(format!("{few} trained tokens do not extend {many}")));
        };
        tokens.extend(new_tokens.iter().cloned().zip(first_new..));
        let id = |number: u32| tokens.get(number as usize).map_or(u32::MAX, |&(_, id)| id);
        let merges = trained.merges.iter().map(|&(left, right)| (id(left), id(right))).collect();
        let mut added = self.added_tokens().to_vec();
        let first_special = first_new + new_tokens.len() as u32;
        added.extend(special_tokens.iter().zip(first_special..).map(|(token, id)| AddedToken::special(token, id)));
        let vocab = Vocab::from_merges(tokens, merges, self.vocab().whole_piece_first())?;
        let extended = Self::new(vocab, pretokenizer, added, self.normalizes())?;
        let is_new = |id: &u32| *id >= first_special;
        let bos = self.bos_id().or(extended.bos_id().filter(is_new));
        let eos = self.eos_id().or(extended.eos_id().filter(is_new));
        extended.with_bos_eos(bos, eos)
    }
}
