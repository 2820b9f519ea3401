//! `cl100k`: the pattern of GPT-3.5 and GPT-4, and the grammar that `llama3` and `qwen2` share with it.

use crate::pretokenize::bitmask::{BitmaskGrammar, Classes, split_contractions};
use crate::pretokenize::scan::{
    Grammar, contraction_end, is_other, letters_end, newlines_end, numbers_end, others_end, whitespace,
};
use crate::pretokenize::unicode::{LETTER, NEWLINE, NUMBER, WHITESPACE, class_at};

/// tiktoken's pattern, without `{1,3}+`, which is possessive in `regex` for Python but a repeated repetition in Oniguruma.
pub(crate) const PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s++$|\s*[\r\n]|\s+(?!\S)|\s";

/// Other spellings with the same pieces: tiktoken's own.
pub(crate) const VARIANTS: &[&str] = &[
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
];

/// A piece has at most `NUMBERS` numbers. With `WHOLE_TAIL` the white space at the end of a text is one piece (`\s++$`).
pub(crate) struct Family<const NUMBERS: usize, const WHOLE_TAIL: bool>;

pub(crate) type Cl100k = Family<3, true>;

impl<const NUMBERS: usize, const WHOLE_TAIL: bool> Grammar for Family<NUMBERS, WHOLE_TAIL> {
    #[inline]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let (first, length) = class_at(text, at);
        let second = at + length;
        if first & LETTER != 0 {
            return letters_end(text, second);
        }
        if first & NUMBER != 0 {
            return numbers_end(text, second, NUMBERS - 1);
        }
        if text[at] == b'\'' {
            let end = contraction_end::<true>(text, at);
            if end > at {
                return end;
            }
        }
        if first & NEWLINE == 0 && second < text.len() {
            let (class, length) = class_at(text, second);
            if class & LETTER != 0 {
                return letters_end(text, second + length);
            }
            if text[at] == b' ' && is_other(class) {
                return newlines_end(text, others_end(text, second + length));
            }
        }
        if first & WHITESPACE == 0 {
            return newlines_end(text, others_end(text, second));
        }
        let run = whitespace(text, at);
        let is_last = run.end == text.len();
        match run.after_newline {
            Some(end) if !(WHOLE_TAIL && is_last) => end,
            _ => run.piece_end(at, is_last),
        }
    }
}

impl<const NUMBERS: usize, const WHOLE_TAIL: bool> BitmaskGrammar for Family<NUMBERS, WHOLE_TAIL> {
    #[inline(always)]
    fn starts(block: &Classes<'_>) -> u64 {
        let (letter, other, first) = (block.letter(), block.other(), block.first());
        let other_starts = first & other & !((other | block.space) << 1);
        // A word includes one preceding character: white space other than a line break, or the first of a piece.
        let prefix = (block.whitespace & !block.newline) | block.whole(other_starts);
        let mut starts = first & letter & !((letter | prefix) << 1);
        starts |= other_starts;
        starts |= if NUMBERS == 1 { first & block.number } else { block.number_triples() };
        starts |= block.whitespace_starts(other, first & !block.whitespace, WHOLE_TAIL);
        split_contractions::<true>(block, block.apostrophe & other_starts & letter >> 1, starts)
    }
}
