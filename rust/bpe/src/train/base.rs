//! Vocabularies to go on from: what training needs of one, and what becomes of it.

use super::{TieOrder, TrainOptions, Trained, byte_order};
use std::sync::Arc;

use crate::special::AddedToken;
use crate::{Error, Pretokenizer, Result, SpecialIds, Tokenizer, Vocab};

impl TrainOptions {
    /// Returns the tokens that training begins with, by id: those of the base, or the 256 bytes.
    pub(super) fn first_tokens(&self) -> Vec<Vec<u8>> {
        let Some(base) = &self.base else { return byte_order().map(|byte| vec![byte]).collect() };
        (0..base.id_bound()).map(|id| base.id_to_bytes(id).unwrap_or_default().to_vec()).collect()
    }

    /// Refuses a base that is not byte-level, and an order of ties that its ids do not allow.
    pub(super) fn check_base(&self) -> Result<()> {
        let Some(base) = &self.base else { return Ok(()) };
        if base.byte_fallback().is_some() {
            return Err(Error::InvalidArgument(
                "the base is a SentencePiece vocabulary, whose merging begins with characters: it cannot be trained further"
                    .to_owned(),
            ));
        }
        if self.tie_order == TieOrder::ByteValues
            && let Some(id) = (0..256).find(|&id| base.id_to_bytes(id).is_none_or(|token| token.len() != 1))
        {
            let token = String::from_utf8_lossy(base.id_to_bytes(id).unwrap_or_default());
            return Err(Error::InvalidArgument(format!(
                "ties by byte value need a base whose first 256 ids are the bytes; its id {id} is {token:?}"
            )));
        }
        Ok(())
    }
}

impl Tokenizer {
    /// Returns the vocabulary that training may go on from.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the text would not be cut and merged as this tokenizer does.
    pub fn base(&self) -> Result<Vocab> {
        match self.general_because() {
            Some(because) => Err(Error::InvalidArgument(format!(
                "the base asks for {because}, which training does not know: it cannot be trained further"
            ))),
            None => Ok(self.vocab().clone()),
        }
    }

    /// Returns this tokenizer with the tokens that further training added, and with more special tokens.
    ///
    /// `trained` began from this tokenizer's vocabulary ([`TrainOptions::base`]). All ids stay what they are; the new tokens come
    /// after the last of them, new special tokens after those. `pretokenizer` is what cut the text of that training.
    ///
    /// # Errors
    /// As [`Tokenizer::new`]; [`Error::InvalidArgument`] if `trained` is not from this vocabulary, or if this is a SentencePiece vocabulary.
    pub fn extended(&self, trained: &Trained, pretokenizer: Pretokenizer, special_tokens: &[String]) -> Result<Self> {
        let (bound, first_new) = (self.vocab().id_bound(), self.vocab_size() as u32);
        let Some(new_tokens) = trained.tokens.get(bound as usize..) else {
            let few = trained.tokens.len();
            return Err(Error::InvalidArgument(format!("{few} trained tokens do not extend {bound}")));
        };
        let id = |id: u32| if id < bound { id } else { id - bound + first_new };
        let merges: Vec<_> = trained.merges.iter().map(|&(left, right)| (id(left), id(right))).collect();
        let vocab = self.vocab().extended(new_tokens, first_new, &merges)?;
        let mut added = self.added_tokens().to_vec();
        let first_special = first_new + new_tokens.len() as u32;
        added.extend(special_tokens.iter().zip(first_special..).map(|(token, id)| AddedToken::special(token, id)));
        let mut extended = Self::new(vocab, pretokenizer, added, self.normalizes())?;
        extended.post_processor.clone_from(&self.post_processor);
        extended.template.clone_from(&self.template);
        if let Some(components) = &self.components {
            // What the file of the base says holds for the new tokens too, but for how text is split, where that is new.
            let mut components = (**components).clone();
            if extended.pretokenizer().pattern() != self.pretokenizer().pattern() {
                components.pre_tokenizer = extended.describe(false)?.pre_tokenizer;
            }
            extended.components = Some(Arc::new(components));
            extended = Self::from_own_json(extended.to_own_json()?.as_bytes())?;
        }
        let is_new = |id: &u32| *id >= first_special;
        let bos = self.bos_id().or(extended.bos_id().filter(is_new));
        let eos = self.eos_id().or(extended.eos_id().filter(is_new));
        extended.with_special_ids(SpecialIds { bos, eos, ..self.special_ids() })
    }
}
