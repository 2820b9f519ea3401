//! The patterns that have a hand-written splitter: their names, their published regexes, and other spellings of these.

use super::{DIGIT, cl100k, deepseek_v3, llama3, o200k, qwen2, r50k, smollm};

/// A pattern with a hand-written splitter.
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
    /// The name, and other names in use for the same pattern.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::R50k => &["r50k", "r50k_base", "gpt2", "p50k", "p50k_base", "p50k_edit"],
            Self::Cl100k => &["cl100k", "cl100k_base"],
            Self::Llama3 => &["llama3"],
            Self::O200k => &["o200k", "o200k_base", "o200k_harmony", "llama4"],
            Self::Qwen2 => &["qwen2", "qwen", "qwen3"],
            Self::DeepSeekV3 => &["deepseek_v3"],
            Self::SmolLm => &["smollm", "smollm2"],
            Self::SmolLmDigits => &["smollm_digits"],
        }
    }

    pub(super) fn name(self) -> &'static str {
        self.names()[0]
    }

    /// The regex whose pieces the splitter gives, and other spellings of the same meaning.
    fn patterns(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::R50k => (r50k::PATTERN, r50k::VARIANTS),
            Self::Cl100k => (cl100k::PATTERN, cl100k::VARIANTS),
            Self::Llama3 => (llama3::PATTERN, llama3::VARIANTS),
            Self::O200k => (o200k::PATTERN, o200k::VARIANTS),
            Self::Qwen2 => (qwen2::PATTERN, qwen2::VARIANTS),
            Self::DeepSeekV3 => (deepseek_v3::PATTERN, deepseek_v3::VARIANTS),
            Self::SmolLm => (smollm::PATTERN, smollm::VARIANTS),
            Self::SmolLmDigits => (smollm::DIGITS_PATTERN, smollm::VARIANTS),
        }
    }

    pub(super) fn pattern(self) -> &'static str {
        self.patterns().0
    }

    /// Finds a pattern by one of its names or by one of its spellings.
    pub(super) fn find(name_or_regex: &str) -> Option<Self> {
        ALL.into_iter().find(|named| {
            let (pattern, variants) = named.patterns();
            named.names().contains(&name_or_regex) || pattern == name_or_regex || variants.contains(&name_or_regex)
        })
    }

    /// Finds a pattern by one of its spellings that Oniguruma reads as it is meant.
    ///
    /// The spelling of `cl100k` with `{1,3}+` is not one: to Oniguruma that is no possessive quantifier, but repeats again.
    pub(super) fn find_oniguruma(regex: &str) -> Option<Self> {
        let is_spelling = |named: &Self| {
            let (pattern, variants) = named.patterns();
            (pattern == regex || variants.contains(&regex)) && !regex.contains("{1,3}+")
        };
        ALL.into_iter().find(is_spelling)
    }

    /// Finds the pattern that a sequence of steps amounts to.
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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Pretokenizer, SUPERWORD_PATTERN, Splitter, custom::Custom, oniguruma::Oniguruma};
    use super::{ALL, Named};

    /// Every grammar beside each spelling of its regex.
    fn pairs() -> Vec<(Pretokenizer, Pretokenizer)> {
        let spellings = |named: Named| {
            let (pattern, variants) = named.patterns();
            variants.iter().copied().chain([pattern]).map(move |spelling| {
                let splitter = Splitter::Custom(Custom::new(spelling).expect("a valid regex"));
                (named.into(), Pretokenizer { splitter, pattern: spelling.to_owned() })
            })
        };
        ALL.into_iter().flat_map(spellings).collect()
    }

    /// Every grammar beside each spelling that it is found by in a tokenizer.json, as Oniguruma reads it.
    fn oniguruma_pairs() -> Vec<(Pretokenizer, Pretokenizer)> {
        let spellings = |named: Named| {
            let (pattern, variants) = named.patterns();
            let known =
                variants.iter().copied().chain([pattern]).filter(|regex| Named::find_oniguruma(regex).is_some());
            known.map(move |regex| {
                let splitter = Splitter::Oniguruma(Oniguruma::new(regex).expect("a valid regex"));
                (named.into(), Pretokenizer { splitter, pattern: regex.to_owned() })
            })
        };
        let sequence = |name: &str, steps: &[&str]| {
            let steps = steps.iter().map(|regex| Splitter::Oniguruma(Oniguruma::new(regex).expect("a valid regex")));
            let steps = steps.map(|splitter| Pretokenizer { splitter, pattern: String::new() }).collect();
            let splitter = Splitter::Sequence(steps);
            (Pretokenizer::new(name).expect("a name"), Pretokenizer { splitter, pattern: format!("steps of {name}") })
        };
        let sequences = [
            sequence("deepseek_v3", &super::deepseek_v3::STEPS),
            sequence("smollm", &[r"\p{N}", super::r50k::PATTERN]),
            sequence("smollm_digits", &[super::DIGIT, super::r50k::PATTERN]),
        ];
        let superwords = Pretokenizer::new(SUPERWORD_PATTERN).expect("a pattern");
        let splitter = Splitter::Oniguruma(Oniguruma::new(SUPERWORD_PATTERN).expect("a valid regex"));
        let superwords = (superwords, Pretokenizer { splitter, pattern: SUPERWORD_PATTERN.to_owned() });
        ALL.into_iter().flat_map(spellings).chain(sequences).chain([superwords]).collect()
    }

    #[test]
    fn oniguruma_reads_every_character_as_the_grammars_do() {
        let contexts = ["{}", "a{}a", " {}", "1{}1", "{}{} ", ".{}\n", "A{}'s"];
        for (grammar, regex) in oniguruma_pairs() {
            // Long texts of many characters, apart enough that what is split in one place has no bearing on the next.
            for context in contexts {
                let mut text = String::new();
                // Of the long runs of characters alike, ideographs, Hangul and private use, every 97th will do.
                let is_alike =
                    |c: char| matches!(c, '㐀'..='鿿' | '가'..='힣' | '\u{e000}'..='\u{f8ff}' | '\u{20000}'..);
                for c in ('\0'..=char::MAX).filter(|&c| !is_alike(c) || (c as u32).is_multiple_of(97) || c == char::MAX)
                {
                    text.push_str(&context.replace("{}", c.encode_utf8(&mut [0; 4])));
                    text.push_str(" x\n");
                    if text.len() > 1 << 16 || c == char::MAX {
                        let (ours, theirs) = (grammar.split(&text), regex.split(&text));
                        let (ours, theirs) = (ours.expect("linear"), theirs.expect("no backtracking"));
                        let differs = ours.iter().zip(&theirs).find(|(a, b)| a != b);
                        assert_eq!(differs, None, "{} in {context:?}", regex.pattern());
                        text.clear();
                    }
                }
            }
        }
    }

    thread_local! {
        static ONIGURUMA_PAIRS: Vec<(Pretokenizer, Pretokenizer)> = oniguruma_pairs();
        static PAIRS: Vec<(Pretokenizer, Pretokenizer)> = pairs();
    }

    proptest! {
        #[test]
        fn spellings_mean_what_their_name_does(text in "([a-cſs'é中A1²٣!., \t\r\n\u{301}\u{a0}]|'s|'LL|'ve|  |123){0,40}") {
            PAIRS.with(|pairs| {
                for (grammar, regex) in pairs {
                    assert_eq!(grammar.split(&text).ok(), regex.split(&text).ok(), "{}", regex.pattern());
                }
            });
            ONIGURUMA_PAIRS.with(|pairs| {
                for (grammar, regex) in pairs {
                    assert_eq!(grammar.split(&text).ok(), regex.split(&text).ok(), "{}", regex.pattern());
                }
            });
        }
    }
}
