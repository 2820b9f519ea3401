//! `smollm`: the pattern of `SmolLM2`, whose tokenizer.json isolates every number and applies GPT-2's pattern to the rest.
//!
//! The two steps are `Digits(individual_digits)` and `ByteLevel(use_regex)`. The second splits each part alone, so a number
//! has the effect of an end of text. [`PATTERN`] is one regex with the same pieces.

use crate::pretokenize::bitmask::{BitmaskGrammar, Classes, split_contractions};
use crate::pretokenize::scan::{Grammar, contraction_end, is_other, letters_end, others_end, whitespace};
use crate::pretokenize::unicode::{LETTER, NUMBER, WHITESPACE, class_at};

/// One regex with the pieces of both steps: white space before a number stays whole.
pub(crate) const PATTERN: &str = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+";

pub(crate) const VARIANTS: &[&str] = &[];

pub(crate) struct SmolLm;

impl Grammar for SmolLm {
    #[inline]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let (first, length) = class_at(text, at);
        if first & LETTER != 0 {
            return letters_end(text, at + length);
        }
        if first & NUMBER != 0 {
            return at + length;
        }
        if text[at] == b'\'' {
            let end = contraction_end::<false>(text, at);
            if end > at {
                return end;
            }
        }
        let body = at + usize::from(text[at] == b' ');
        if body < text.len() {
            let (class, length) = class_at(text, body);
            if class & LETTER != 0 {
                return letters_end(text, body + length);
            }
            if is_other(class) {
                return others_end(text, body + length);
            }
        }
        debug_assert!(first & WHITESPACE != 0);
        let run = whitespace(text, at);
        let is_last = run.end == text.len() || class_at(text, run.end).0 & NUMBER != 0;
        run.piece_end(at, is_last)
    }
}

impl BitmaskGrammar for SmolLm {
    #[inline(always)]
    fn starts(block: &Classes<'_>) -> u64 {
        let (letter, other, first) = (block.letter(), block.other(), block.first());
        let other_starts = first & other & !((other | block.space) << 1);
        let mut starts = first & letter & !((letter | block.space) << 1);
        starts |= first & block.number;
        starts |= other_starts | (first & block.whitespace & !(block.whitespace << 1));
        starts |= block.before(first & !(block.whitespace | block.number), block.whitespace);
        split_contractions::<false>(block, block.apostrophe & other_starts & letter >> 1, starts)
    }
}
