//! The sampling parameters and their validation.

use crate::error::Result;

/// The parameters of a [`Sampler`](crate::Sampler). The default of each leaves the model's distribution unchanged.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Divides the logits; 0 means argmax, the lowest id among ties.
    pub temperature: f64,
    /// Keeps the `top_k` highest logits; 0, or at least the size of the vocabulary, keeps all.
    pub top_k: usize,
    /// Keeps the fewest highest logits with a probability mass of at least `top_p`; in (0, 1].
    pub top_p: f64,
    /// Drops ids with less than `min_p` times the highest probability; in [0, 1].
    pub min_p: f64,
    /// Keeps the ids of surprisal nearest to the entropy until their mass is at least `typical_p`; in (0, 1].
    pub typical_p: f64,
    /// Divides the positive and multiplies the negative logits of ids in the history; above 0.
    pub repetition_penalty: f64,
    /// Subtracted from the logit of every id in the history.
    pub presence_penalty: f64,
    /// Subtracted from an id's logit once per occurrence in the history.
    pub frequency_penalty: f64,
    /// Added to the logits of these ids, before any penalty.
    pub logit_bias: Vec<(u32, f32)>,
    /// Ids that are never drawn.
    pub banned_ids: Vec<u32>,
    /// If given, only these ids are drawn.
    pub allowed_ids: Option<Vec<u32>>,
    /// Which implementation's order of filters and tie-breaking to follow.
    pub preset: Preset,
    /// Selects the stream of random numbers.
    pub seed: u64,
}

/// The implementation to follow where implementations differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// This crate's: see [the crate](crate).
    #[default]
    Exact,
    /// Meta's reference `sample_top_p`: an id is dropped if the mass before it *exceeds* p, so one more id is kept if
    /// that mass equals p.
    Meta,
    /// Hugging Face transformers' logits warpers: top-k and typical-p keep all ids tied at the threshold, top-p the
    /// highest ids of a tie. transformers does the latter for up to 16 ids; beyond, torch's sort is not stable.
    Transformers,
    /// llama.cpp's default chain: top-k, typical-p, top-p and min-p at temperature 1, then the temperature.
    LlamaCpp,
}

impl Preset {
    /// Returns the preset of a name: `exact`, `meta`, `transformers` or `llama_cpp`.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] for any other.
    pub fn from_name(name: &str) -> Result<Self> {
        let presets = [Self::Exact, Self::Meta, Self::Transformers, Self::LlamaCpp];
        presets.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let expected = "'exact', 'meta', 'transformers' or 'llama_cpp'";
            let name: String = name.chars().take(80).collect();
            invalid!("preset must be {expected}, got '{name}'")
        })
    }

    /// Returns the name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Meta => "meta",
            Self::Transformers => "transformers",
            Self::LlamaCpp => "llama_cpp",
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            banned_ids: Vec::new(),
            allowed_ids: None,
            preset: Preset::Exact,
            seed: 0,
        }
    }
}

impl Options {
    /// Returns whether a penalty would change logits of ids in the history.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Returns whether biases, banned or allowed ids would change a logit.
    pub fn has_bias_or_bans(&self) -> bool {
        !self.logit_bias.is_empty() || !self.banned_ids.is_empty() || self.allowed_ids.is_some()
    }

    /// Checks that every parameter is in range.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] naming the first parameter out of range, its value and its range.
    pub fn validate(&self) -> Result<()> {
        let rules = [
            ("temperature", self.temperature, self.temperature >= 0.0, "finite and at least 0"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "in (0, 1]"),
            ("typical_p", self.typical_p, self.typical_p > 0.0 && self.typical_p <= 1.0, "in (0, 1]"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "in [0, 1]"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "positive and finite"),
            ("presence_penalty", self.presence_penalty, true, "finite"),
            ("frequency_penalty", self.frequency_penalty, true, "finite"),
        ];
        for (name, value, in_range, expected) in rules {
            if !(in_range && value.is_finite()) {
                return Err(invalid!("{name} must be {expected}, got {value}"));
            }
        }
        for &(id, bias) in &self.logit_bias {
            if !bias.is_finite() {
                return Err(invalid!("logit_bias of id {id} must be finite, got {bias}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn names_the_parameter_out_of_range() {
        let bad = [
            (Options { temperature: -1.0, ..Options::default() }, "temperature must be finite and at least 0, got -1"),
            (
                Options { temperature: f64::NAN, ..Options::default() },
                "temperature must be finite and at least 0, got NaN",
            ),
            (Options { temperature: f64::INFINITY, ..Options::default() }, "temperature"),
            (Options { top_p: 0.0, ..Options::default() }, "top_p must be in (0, 1], got 0"),
            (Options { top_p: 1.5, ..Options::default() }, "top_p"),
            (Options { min_p: -0.1, ..Options::default() }, "min_p"),
            (Options { repetition_penalty: 0.0, ..Options::default() }, "repetition_penalty"),
            (Options { presence_penalty: f64::INFINITY, ..Options::default() }, "presence_penalty"),
            (Options { frequency_penalty: f64::NAN, ..Options::default() }, "frequency_penalty"),
        ];
        for (options, message) in bad {
            let error = options.validate().expect_err(message).to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(Options::default().validate().is_ok());
    }
}
