//! `deepseek_v3`: the pattern of `DeepSeek` V3 and R1.
//!
//! It is published as three steps, [`STEPS`], each of which splits the parts of the step before. Up to three numbers, a run of
//! Han or Kana, and the text between them are parts, and the end of a part has the effect of an end of text. Text that no step
//! matches, such as control characters, is a piece. [`PATTERN`] is one regex with the same pieces.

use crate::pretokenize::bitmask::{BitmaskGrammar, Classes, run_from};
use crate::pretokenize::scan::{Grammar, newlines_end, numbers_end, whitespace};
use crate::pretokenize::unicode::{LETTER, MARK, NEWLINE, NUMBER, SYMBOL, WHITESPACE, class_at, is_han_or_kana};

/// The steps of the published tokenizer.json.
pub(crate) const STEPS: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// One regex with the pieces of the three steps: numbers, four alternatives within Han and Kana, then the rest.
pub(crate) const PATTERN: &str = concat!(
    r"\p{N}{1,3}",
    r"|(?:(?=[一-龥぀-ゟ゠-ヿ])[^\p{L}\p{P}\p{S}])?(?:(?=[一-龥぀-ゟ゠-ヿ])[\p{L}\p{M}])+",
    r"|(?:(?=[一-龥぀-ゟ゠-ヿ])[\p{P}\p{S}])+",
    r"|(?:(?=[一-龥぀-ゟ゠-ヿ])[^\p{L}\p{M}\p{P}\p{S}](?!(?=[一-龥぀-ゟ゠-ヿ])[\p{L}\p{M}]))+",
    r##"|[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|(?:(?![一-龥぀-ゟ゠-ヿ])[^\r\n\p{L}\p{N}\p{P}\p{S}])?(?:(?![一-龥぀-ゟ゠-ヿ])[\p{L}\p{M}])+",
    r"| ?(?:(?![一-龥぀-ゟ゠-ヿ])[\p{P}\p{S}])+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?![^\s\p{N}一-龥぀-ゟ゠-ヿ])|\s+",
);

pub(crate) struct DeepSeekV3;

/// Set for every character of a part, so that unassigned characters differ from the end of the part.
const IN_PART: u16 = 1 << 8;
/// The class bits at the end of a part.
const PART_END: u16 = 0;
const WORD: u16 = (LETTER | MARK) as u16;

/// A part after the first two steps: a run of Han and Kana, or a run without Han, Kana and numbers.
struct Part<'text> {
    text: &'text [u8],
    is_han_or_kana: bool,
}

impl Part<'_> {
    /// Returns the class bits at `at` with [`IN_PART`], or [`PART_END`]; and the length of the character.
    #[inline(always)]
    fn class_at(&self, at: usize) -> (u16, usize) {
        if at == self.text.len() {
            return (PART_END, 0);
        }
        let (class, length) = class_at(self.text, at);
        if class & NUMBER != 0 || is_han_or_kana(self.text, at, length) != self.is_han_or_kana {
            return (PART_END, length);
        }
        (u16::from(class) | IN_PART, length)
    }

    #[inline(always)]
    fn run_end(&self, mut at: usize, wanted: u16) -> usize {
        loop {
            let (class, length) = self.class_at(at);
            if class & wanted == 0 {
                return at;
            }
            at += length;
        }
    }

    /// `[\p{P}\p{S}]*[\r\n]*`; a part of Han and Kana has no line breaks.
    #[inline(always)]
    fn symbols_end(&self, at: usize) -> usize {
        let end = self.run_end(at, u16::from(SYMBOL));
        if self.is_han_or_kana { end } else { newlines_end(self.text, end) }
    }

    /// Returns the end of a run that nothing matches; its last character belongs to a word that follows.
    fn unmatched_end(&self, mut at: usize) -> usize {
        loop {
            let (class, length) = self.class_at(at);
            if class != IN_PART || self.class_at(at + length).0 & WORD != 0 {
                return at;
            }
            at += length;
        }
    }
}

impl Grammar for DeepSeekV3 {
    #[inline]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let (first, length) = class_at(text, at);
        let second = at + length;
        if first & NUMBER != 0 {
            return numbers_end(text, second, 2);
        }
        let part = Part { text, is_han_or_kana: is_han_or_kana(text, at, length) };
        if u16::from(first) & WORD != 0 {
            return part.run_end(second, WORD);
        }
        if first & SYMBOL != 0 {
            let letters = text[second..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
            return if text[at] < 0x80 && letters > 0 { second + letters } else { part.symbols_end(second) };
        }
        let (next, next_length) = part.class_at(second);
        if first & NEWLINE == 0 && next & WORD != 0 {
            return part.run_end(second + next_length, WORD);
        }
        if first & WHITESPACE == 0 {
            return part.unmatched_end(second);
        }
        if text[at] == b' ' && next & u16::from(SYMBOL) != 0 {
            return part.symbols_end(second);
        }
        let run = whitespace(text, at);
        let is_last = part.class_at(run.end).0 == PART_END;
        run.after_newline.unwrap_or_else(|| run.piece_end(at, is_last))
    }
}

impl BitmaskGrammar for DeepSeekV3 {
    const LETTERS: u8 = LETTER | MARK;
    const SYMBOLS: bool = true;

    /// Truncates the block before characters that no step matches, such as control characters.
    #[inline(always)]
    fn restrict(block: &mut Classes<'_>) {
        let unmatched = block.other() & !block.symbol;
        if unmatched != 0 {
            block.truncate(unmatched.trailing_zeros());
        }
    }

    #[inline(always)]
    fn starts(block: &Classes<'_>) -> u64 {
        let (word, symbol, first) = (block.letter(), block.symbol, block.first());
        // A run of Han and Kana is a part of its own: a piece starts at both of its ends.
        let part_starts = block.han_or_kana ^ block.han_or_kana << 1;
        let symbol_starts = first & symbol & (part_starts | !((symbol | block.space) << 1));
        // `[!-~][A-Za-z]+`: such a word ends before other letters.
        let ascii_letters = word & !block.non_ascii;
        let joined = ascii_letters & (symbol_starts & !block.non_ascii) << 1;
        let ascii_words = run_from(joined, ascii_letters);
        let inline = block.whitespace & !block.newline;
        let mut starts = word & (part_starts | !((word | inline) << 1) | (ascii_words << 1 & !ascii_letters));
        starts &= first & !joined;
        starts |= symbol_starts | block.number_triples();
        let next = first & !(block.whitespace | block.number | block.han_or_kana);
        starts | block.whitespace_starts(symbol & !block.han_or_kana, next, false)
    }
}
