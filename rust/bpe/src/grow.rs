//! More added tokens, and merges left out by chance.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::byte_alphabet::to_bytes;
use crate::formats::pipeline_of;
use crate::normalize::SPACE;
use crate::pipeline::Pipeline;
use crate::special::{AddedToken, AddedTokens, SpecialSet};
use crate::{Error, Interrupt, Result, Tokenizer};

impl Tokenizer {
    /// Returns this tokenizer with more added tokens; the ids of `tokens` are not looked at.
    ///
    /// A token that is there already, added or not, keeps its id; the others follow the last id in the order given. Flags
    /// given again replace the earlier ones.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a token is empty, or two are one when normalized.
    pub fn with_added_tokens(&self, tokens: Vec<AddedToken>) -> Result<Self> {
        let mut all = self.added_tokens().to_vec();
        let mut places: HashMap<String, usize> =
            all.iter().enumerate().map(|(place, token)| (token.content.clone(), place)).collect();
        let mut next = self.vocab_size() as u32;
        for mut token in tokens {
            if let Some(&place) = places.get(&token.content) {
                token.id = all[place].id;
                all[place] = token;
                continue;
            }
            token.id = self.id_of_name(&token.content).unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            places.insert(token.content.clone(), all.len());
            all.push(token);
        }
        let mut grown = self.clone();
        let is_changed = |token: &AddedToken| token.normalized || token.content.contains(SPACE);
        if self.spaces().is_some() && all.iter().any(is_changed) {
            if self.pipeline.is_none() {
                return Err(Error::InvalidArgument(
                    "a SentencePiece tokenizer finds added tokens in text as it stands: they can be neither normalized \
                     nor hold \u{2581}"
                        .to_owned(),
                ));
            }
            grown = grown.encoding_by_pipeline("added tokens that are normalized");
        }
        grown.added = match &self.pipeline {
            Some(pipeline) => AddedTokens::new(all, |text| pipeline.normalize(text))?,
            None => AddedTokens::new(all, |text| self.normalizer.normal_form(text))?,
        };
        if self.spaces().is_some() {
            grown.added.decode_by(|name| name.replace(SPACE, " ").into_bytes());
        } else if let Some(pipeline) = &self.pipeline {
            grown.added.decode_by(|name| pipeline.token_bytes(name));
        } else if self.components.is_some() {
            grown.added.decode_by(|name| to_bytes(name).unwrap_or_else(|| name.as_bytes().to_vec()));
        }
        if self.components.is_some() {
            grown.prefer_added_tokens();
        }
        Ok(grown)
    }

    /// Returns the id of the ordinary token that a `tokenizer.json` spells so; where no file defines the tokenizer, if it is
    /// decoded to this text.
    fn id_of_name(&self, name: &str) -> Option<u32> {
        if let Some(pipeline) = &self.pipeline {
            return pipeline.token_to_id(name);
        }
        let bytes = if self.spaces().is_some() { name.replace(SPACE, " ").into_bytes() } else { to_bytes(name)? };
        let is_same = self.components.is_some() || self.spaces().is_some() || bytes == name.as_bytes();
        self.vocab.bytes_to_id(&bytes).filter(|_| is_same)
    }

    /// Returns the ids of `text` where each merge is left out with probability `dropout`: BPE-dropout, for training.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `dropout` is not between 0 and 1; as [`Tokenizer::encode`]; as
    /// [`Tokenizer::to_huggingface`] for a vocabulary that a `tokenizer.json` cannot hold; and what the interrupt check returns.
    ///
    /// # Source
    /// Provilkov et al. 2020, arXiv:1910.13267.
    pub fn encode_with_dropout(
        &self,
        text: &str,
        allowed: SpecialSet<'_>,
        dropout: f64,
        seed: u64,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<u32>> {
        if !(0.0..=1.0).contains(&dropout) {
            return Err(Error::InvalidArgument(format!("dropout is {dropout}; expected 0 to 1")));
        }
        let pipeline = self.equivalent_pipeline()?;
        let mut state = seed;
        let mut drops = || uniform(&mut state) < dropout;
        let mut ids = Vec::new();
        let added = (&self.added, allowed);
        pipeline.encode(text, added, interrupt, Some(&mut drops), &mut |new| ids.extend_from_slice(new))?;
        Ok(ids)
    }

    /// The probability with which the file wants merges left out in training.
    pub fn dropout(&self) -> Option<f32> {
        self.components.as_ref().and_then(|components| components.model.dropout)
    }

    /// Returns the pipeline that spells out what this tokenizer does.
    fn equivalent_pipeline(&self) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = self.pipeline.as_ref().or_else(|| self.equivalent.get()) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(pipeline_of(self.to_own_json()?.as_bytes())?);
        Ok(Arc::clone(self.equivalent.get_or_init(|| pipeline)))
    }
}

/// Returns a number in [0, 1), the next of the sequence that a state begins.
///
/// Source: `SplitMix64` (Steele, Lea, Flood 2014).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((mixed ^ mixed >> 31) >> 11) as f64 / (1u64 << 53) as f64
}
