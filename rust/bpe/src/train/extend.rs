//! Training that continues from a tokenizer.

use std::sync::Arc;

use super::options::Trained;
use crate::special::AddedToken;
use crate::{Pretokenizer, Result, SpecialIds, Tokenizer, Vocab};

impl Tokenizer {
    /// Returns the vocabulary that training can continue from.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if training cannot split and merge text as this tokenizer does.
    pub fn base(&self) -> Result<Vocab> {
        match self.general_because() {
            Some(because) => {
                Err(invalid!("the base asks for {because}, which training does not know: it cannot be trained further"))
            }
            None => Ok(self.vocab().clone()),
        }
    }

    /// Returns this tokenizer with the tokens of further training and with more special tokens.
    ///
    /// `trained` started from this tokenizer's vocabulary ([`TrainOptions::base`](super::TrainOptions::base)) and
    /// `pretokenizer` split its text. Existing ids do not change: new tokens follow the last id, new special tokens
    /// follow them.
    ///
    /// # Errors
    /// As [`Tokenizer::new`]; [`crate::Error::InvalidArgument`] if `trained` is not from this vocabulary, or if this is
    /// a SentencePiece vocabulary.
    pub fn extended(&self, trained: &Trained, pretokenizer: Pretokenizer, special_tokens: &[String]) -> Result<Self> {
        let (bound, first_new) = (self.vocab().id_bound(), self.vocab_size() as u32);
        let Some(new_tokens) = trained.tokens.get(bound as usize..) else {
            let few = trained.tokens.len();
            return Err(invalid!("{few} trained tokens do not extend {bound}"));
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
            // The components of the base's file also apply to the new tokens, except for a new pre-tokenizer.
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
