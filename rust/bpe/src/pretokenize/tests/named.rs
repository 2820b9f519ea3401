//! Every grammar against each spelling of its regex, in both regex engines.

use proptest::prelude::*;

use crate::pretokenize::grammars::{deepseek_v3, r50k};
use crate::pretokenize::named::{ALL, DIGIT, Named};
use crate::pretokenize::pretokenizer::Splitter;
use crate::pretokenize::regex::{FancyRegex, Oniguruma};
use crate::pretokenize::{Pretokenizer, SUPERWORD_PATTERN};

/// Returns every grammar with each spelling of its regex.
fn pairs() -> Vec<(Pretokenizer, Pretokenizer)> {
    let spellings = |named: Named| {
        named.spellings().map(move |spelling| {
            let splitter = Splitter::Fancy(FancyRegex::new(spelling).expect("a valid regex"));
            (named.into(), Pretokenizer { splitter, pattern: spelling.to_owned() })
        })
    };
    ALL.into_iter().flat_map(spellings).collect()
}

/// Returns every grammar with each of its spellings for a tokenizer.json, in Oniguruma.
fn oniguruma_pairs() -> Vec<(Pretokenizer, Pretokenizer)> {
    let spellings = |named: Named| {
        let known = named.spellings().filter(|regex| Named::find_oniguruma(regex).is_some());
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
        sequence("deepseek_v3", &deepseek_v3::STEPS),
        sequence("smollm", &[r"\p{N}", r50k::PATTERN]),
        sequence("smollm_digits", &[DIGIT, r50k::PATTERN]),
    ];
    let superwords = Pretokenizer::new(SUPERWORD_PATTERN).expect("a pattern");
    let splitter = Splitter::Oniguruma(Oniguruma::new(SUPERWORD_PATTERN).expect("a valid regex"));
    let superwords = (superwords, Pretokenizer { splitter, pattern: SUPERWORD_PATTERN.to_owned() });
    ALL.into_iter().flat_map(spellings).chain(sequences).chain([superwords]).collect()
}

#[test]
fn grammars_split_every_character_as_oniguruma_does() {
    let contexts = ["{}", "a{}a", " {}", "1{}1", "{}{} ", ".{}\n", "A{}'s"];
    for (grammar, regex) in oniguruma_pairs() {
        // Long texts of many characters, far enough apart that they do not affect one another.
        for context in contexts {
            let mut text = String::new();
            // Of ideographs, Hangul and private use, every 97th suffices.
            let is_alike = |c: char| matches!(c, '㐀'..='鿿' | '가'..='힣' | '\u{e000}'..='\u{f8ff}' | '\u{20000}'..);
            for c in ('\0'..=char::MAX).filter(|&c| !is_alike(c) || (c as u32).is_multiple_of(97) || c == char::MAX) {
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
    fn spellings_split_as_their_grammar_does(text in "([a-cſs'é中A1²٣!., \t\r\n\u{301}\u{a0}]|'s|'LL|'ve|  |123){0,40}") {
        for pairs in [&PAIRS, &ONIGURUMA_PAIRS] {
            pairs.with(|pairs| {
                for (grammar, regex) in pairs {
                    assert_eq!(grammar.split(&text).ok(), regex.split(&text).ok(), "{}", regex.pattern());
                }
            });
        }
    }
}
