//! Named patterns: their names, their published regexes, and other spellings of the same regex.

use super::bitmask;
use super::grammars::{cl100k, deepseek_v3, llama3, o200k, qwen2, r50k, smollm};

/// The pattern that makes a text one piece.
pub(crate) const WHOLE: &str = "(?s:.+)";

/// `\p{N}` of Unicode 17, as in `Digits` of `tokenizers`: thirteen characters more than Oniguruma's `\p{N}`.
pub(crate) const DIGIT: &str = r"[\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}]";

/// A pattern with a grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    R50k,
    Cl100k,
    Llama3,
    O200k,
    Qwen2,
    DeepSeekV3,
    SmolLm,
    SmolLmDigits,
}

/// Every named pattern, in the order in which errors list them.
pub(super) const ALL: [Named; 8] = [
    Named::R50k,
    Named::Cl100k,
    Named::Llama3,
    Named::O200k,
    Named::Qwen2,
    Named::DeepSeekV3,
    Named::SmolLm,
    Named::SmolLmDigits,
];

impl Named {
    /// The name and its aliases; the regex; other spellings with the same pieces.
    fn definition(self) -> (&'static [&'static str], &'static str, &'static [&'static str]) {
        match self {
            Self::R50k => {
                (&["r50k", "r50k_base", "gpt2", "p50k", "p50k_base", "p50k_edit"], r50k::PATTERN, r50k::VARIANTS)
            }
            Self::Cl100k => (&["cl100k", "cl100k_base"], cl100k::PATTERN, cl100k::VARIANTS),
            Self::Llama3 => (&["llama3"], llama3::PATTERN, llama3::VARIANTS),
            Self::O200k => (&["o200k", "o200k_base", "o200k_harmony", "llama4"], o200k::PATTERN, &[]),
            Self::Qwen2 => (&["qwen2", "qwen", "qwen3"], qwen2::PATTERN, &[]),
            Self::DeepSeekV3 => (&["deepseek_v3"], deepseek_v3::PATTERN, &[]),
            Self::SmolLm => (&["smollm", "smollm2"], smollm::PATTERN, &[]),
            Self::SmolLmDigits => (&["smollm_digits"], smollm::DIGITS_PATTERN, &[]),
        }
    }

    pub(super) fn name(self) -> &'static str {
        self.definition().0[0]
    }

    pub(super) fn pattern(self) -> &'static str {
        self.definition().1
    }

    /// Returns the regex and its other spellings.
    pub(super) fn spellings(self) -> impl Iterator<Item = &'static str> {
        let (_, pattern, variants) = self.definition();
        variants.iter().copied().chain([pattern])
    }

    /// Returns the pattern with this name or spelling.
    pub(super) fn find(name_or_regex: &str) -> Option<Self> {
        let is_name = |named: &Self| named.definition().0.contains(&name_or_regex);
        ALL.into_iter().find(is_name).or_else(|| Self::find_spelling(name_or_regex))
    }

    /// Returns the pattern with this spelling.
    pub(super) fn find_spelling(regex: &str) -> Option<Self> {
        ALL.into_iter().find(|named| named.spellings().any(|spelling| spelling == regex))
    }

    /// Returns the pattern with this spelling, if the spelling has the same pieces in Oniguruma.
    ///
    /// Spellings with `{1,3}+` do not: it is possessive elsewhere, but a repeated repetition in Oniguruma.
    pub(super) fn find_oniguruma(regex: &str) -> Option<Self> {
        Self::find_spelling(regex).filter(|_| !regex.contains("{1,3}+"))
    }

    /// Returns the pattern that is equal to a sequence of patterns.
    pub(super) fn find_sequence(steps: &[&str]) -> Option<Self> {
        if steps == deepseek_v3::STEPS {
            return Some(Self::DeepSeekV3);
        }
        match steps {
            [number, gpt2] if Self::find(gpt2) == Some(Self::R50k) => match *number {
                r"\p{N}" => Some(Self::SmolLm),
                DIGIT => Some(Self::SmolLmDigits),
                _ => None,
            },
            _ => None,
        }
    }

    /// Appends the ends of the next pieces, within the capacity of `ends`.
    pub(super) fn fill_ends(self, text: &str, start: usize, ends: &mut Vec<usize>) {
        let text = text.as_bytes();
        match self {
            Self::R50k => bitmask::fill_ends::<r50k::R50k>(text, start, ends),
            Self::Cl100k => bitmask::fill_ends::<cl100k::Cl100k>(text, start, ends),
            Self::Llama3 => bitmask::fill_ends::<llama3::Llama3>(text, start, ends),
            Self::O200k => bitmask::fill_ends::<o200k::O200k>(text, start, ends),
            Self::Qwen2 => bitmask::fill_ends::<qwen2::Qwen2>(text, start, ends),
            Self::DeepSeekV3 => bitmask::fill_ends::<deepseek_v3::DeepSeekV3>(text, start, ends),
            Self::SmolLm => bitmask::fill_ends::<smollm::SmolLm<false>>(text, start, ends),
            Self::SmolLmDigits => bitmask::fill_ends::<smollm::SmolLm<true>>(text, start, ends),
        }
    }
}
