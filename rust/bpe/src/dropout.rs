//! BPE-dropout: merges skipped at random.

use std::sync::Arc;

use crate::formats::pipeline_of;
use crate::normalize::After;
use crate::pipeline::Pipeline;
use crate::special::SpecialSet;
use crate::{Interrupt, Result, Tokenizer};

impl Tokenizer {
    /// Returns the ids of `text` with BPE-dropout: each merge is skipped with probability `dropout`.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if `dropout` is not between 0 and 1; as [`Tokenizer::encode`]; as
    /// [`Tokenizer::to_huggingface`] for a vocabulary that a `tokenizer.json` cannot express; the error of the
    /// interrupt check.
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
            return Err(invalid!("dropout is {dropout}; expected 0 to 1"));
        }
        let pipeline = self.equivalent_pipeline()?;
        let mut state = seed;
        let mut drops = || uniform(&mut state) < dropout;
        let mut ids = Vec::new();
        let added = (&self.added, allowed);
        // 0 is no dropout, with which `ignore_merges` holds.
        let drops: Option<&mut dyn FnMut() -> bool> = if dropout > 0.0 { Some(&mut drops) } else { None };
        pipeline.encode(text, After::Nothing, added, interrupt, drops, &mut |new| ids.extend_from_slice(new))?;
        Ok(ids)
    }

    /// Returns the dropout probability of the `tokenizer.json`.
    pub fn dropout(&self) -> Option<f32> {
        self.components.as_ref().and_then(|components| components.model.dropout)
    }

    /// Returns the pipeline equivalent to this tokenizer.
    fn equivalent_pipeline(&self) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = self.pipeline.as_ref().or_else(|| self.equivalent.get()) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(pipeline_of(self.to_own_json()?.as_bytes())?);
        Ok(Arc::clone(self.equivalent.get_or_init(|| pipeline)))
    }
}

/// Returns the next random number in [0, 1).
///
/// Source: `SplitMix64` (Steele, Lea, Flood 2014).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((mixed ^ mixed >> 31) >> 11) as f64 / (1u64 << 53) as f64
}
