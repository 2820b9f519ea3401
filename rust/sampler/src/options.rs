//! What a sampler is asked to do, checked once.

use crate::{Error, Result};

/// The parameters of a [`Sampler`](super::Sampler). Each is off at the value [`Options::default`] gives it,
/// but for `temperature`, which is then 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Divides the logits; 0 takes the highest logit, the lowest id among equals.
    pub temperature: f64,
    /// Keeps the `top_k` highest; 0, or the vocabulary's size and more, keeps all.
    pub top_k: usize,
    /// Keeps the fewest highest whose mass reaches `top_p`; in (0, 1].
    pub top_p: f64,
    /// Drops what has less than `min_p` times the highest probability; in [0, 1].
    pub min_p: f64,
    /// Keeps the ids whose surprise is nearest to the row's entropy, until their mass reaches `typical_p`; in (0, 1].
    pub typical_p: f64,
    /// Divides the positive and multiplies the negative logits of ids in the history; above 0.
    pub repetition_penalty: f64,
    /// Is subtracted from the logit of every id in the history.
    pub presence_penalty: f64,
    /// Is subtracted from an id's logit once for each time the history holds it.
    pub frequency_penalty: f64,
    /// Is added to the logits of these ids, before any penalty.
    pub logit_bias: Vec<(u32, f32)>,
    /// Never drawn.
    pub banned_ids: Vec<u32>,
    /// If given, only these are ever drawn; one alone is forced.
    pub allowed_ids: Option<Vec<u32>>,
    /// Whose order of filters, and whose boundaries.
    pub preset: Preset,
    /// Names the stream of random numbers.
    pub seed: u64,
}

/// Whose semantics the filters follow where implementations differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// This crate's: see [the module](super).
    #[default]
    Exact,
    /// Meta's reference `sample_top_p`: an id is dropped where the mass before it *exceeds* p, so a mass that hits p
    /// exactly lets one more id in.
    Meta,
    /// Hugging Face transformers' warpers: all ids that tie with the k-th stay, and all that tie at typical-p's boundary;
    /// of those that tie at top-p's the highest ids do, as there for up to 16 ids. Beyond, torch's sort leaves equals in no
    /// order that it promises.
    Transformers,
    /// llama.cpp's default chain: top-k, typical-p, top-p, min-p judge the distribution at temperature 1, and the
    /// temperature comes last.
    LlamaCpp,
}

impl Preset {
    /// Returns the preset of a name: `exact`, `meta`, `transformers` or `llama_cpp`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for any other.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "exact" => Ok(Self::Exact),
            "meta" => Ok(Self::Meta),
            "transformers" => Ok(Self::Transformers),
            "llama_cpp" => Ok(Self::LlamaCpp),
            _ => Err(Error::InvalidArgument(format!(
                "preset must be 'exact', 'meta', 'transformers' or 'llama_cpp', got '{name}'"
            ))),
        }
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
    /// Returns whether any penalty would change a logit.
    pub fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Returns whether a bias, a ban or a choice of ids would change a logit.
    pub fn adjusts(&self) -> bool {
        !self.logit_bias.is_empty() || !self.banned_ids.is_empty() || self.allowed_ids.is_some()
    }

    /// Returns nothing if every parameter is in range.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first parameter that is not, its value and its range.
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
                return Err(Error::InvalidArgument(format!("{name} must be {expected}, got {value}")));
            }
        }
        for &(id, bias) in &self.logit_bias {
            if !bias.is_finite() {
                return Err(Error::InvalidArgument(format!("logit_bias of id {id} must be finite, got {bias}")));
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
