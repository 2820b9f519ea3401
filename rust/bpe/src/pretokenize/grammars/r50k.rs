//! `r50k`: the pattern of GPT-2, also used by `p50k` and by every "byte-level" tokenizer.json.

use crate::pretokenize::bitmask::{BitmaskGrammar, Classes, split_contractions};
use crate::pretokenize::scan::{Grammar, contraction_end, is_other, letters_end, others_end, whitespace};
use crate::pretokenize::unicode::{LETTER, NUMBER, WHITESPACE, class_at, run_end};

/// As published with GPT-2.
pub(crate) const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Other spellings with the same pieces: tiktoken's, current and former, and GPT-2's own.
pub(crate) const VARIANTS: &[&str] = &[
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
];

pub(crate) struct R50k;

impl Grammar for R50k {
    #[inline]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let (first, length) = class_at(text, at);
        if first & LETTER != 0 {
            return letters_end(text, at + length);
        }
        if text[at] == b'\'' {
            let end = contraction_end::<false>(text, at);
            if end > at {
                return end;
            }
        }
        // An optional space, then a run of one class.
        let body = at + usize::from(text[at] == b' ');
        if body < text.len() {
            let (class, length) = class_at(text, body);
            if class & LETTER != 0 {
                return letters_end(text, body + length);
            }
            if class & NUMBER != 0 {
                return run_end(text, body + length, |class| class & NUMBER != 0);
            }
            if is_other(class) {
                return others_end(text, body + length);
            }
        }
        debug_assert!(first & WHITESPACE != 0);
        let run = whitespace(text, at);
        run.piece_end(at, run.end == text.len())
    }
}

impl BitmaskGrammar for R50k {
    #[inline(always)]
    fn starts(block: &Classes<'_>) -> u64 {
        let (letter, other, first) = (block.letter(), block.other(), block.first());
        let other_starts = first & other & !((other | block.space) << 1);
        let mut starts = first & letter & !((letter | block.space) << 1);
        starts |= first & block.number & !((block.number | block.space) << 1);
        starts |= other_starts | (first & block.whitespace & !(block.whitespace << 1));
        starts |= block.before(first & !block.whitespace, block.whitespace);
        split_contractions::<false>(block, block.apostrophe & other_starts & letter >> 1, starts)
    }
}
