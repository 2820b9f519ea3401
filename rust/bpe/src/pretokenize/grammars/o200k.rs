//! `o200k`: the pattern of GPT-4o and later; Llama 4's is the same.
//!
//! A word ends before upper case that follows lower case, includes its contraction, and can contain marks.

use crate::pretokenize::bitmask::{BitmaskGrammar, Classes, run_from};
use crate::pretokenize::scan::{Grammar, contraction_end, newlines_end, numbers_end, whitespace};
use crate::pretokenize::unicode::{
    CASELESS, LETTER, LOWER, MARK, NEWLINE, NUMBER, UPPER, WHITESPACE, class_at, run_end,
};

/// As published in tiktoken.
pub(crate) const PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

pub(crate) struct O200k;

impl Grammar for O200k {
    #[inline]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let (first, length) = class_at(text, at);
        let second = at + length;
        if first & LETTER != 0 {
            return word(text, at).end(text);
        }
        if first & NUMBER != 0 {
            return numbers_end(text, second, 2);
        }
        if first & NEWLINE == 0 {
            // A word includes one preceding character of any other class.
            let next = if second < text.len() { class_at(text, second).0 } else { 0 };
            if next & (LETTER | MARK) != 0 {
                let word = word(text, second);
                if !(first & MARK != 0 && word.is_upper) {
                    return word.end(text);
                }
            }
            if first & MARK != 0 {
                // A mark alone is a word, which the first alternative prefers to a word of capitals.
                return contraction_end::<true>(text, second);
            }
            if text[at] == b' ' && next & (WHITESPACE | LETTER | NUMBER) == 0 && second < text.len() {
                return others_end(text, second);
            }
        }
        if first & WHITESPACE == 0 {
            return others_end(text, second);
        }
        let run = whitespace(text, at);
        run.after_newline.unwrap_or_else(|| run.piece_end(at, run.end == text.len()))
    }
}

/// `[^\s\p{L}\p{N}]*[\r\n/]*`. The first class has the slash as well, so the second matters only from a line break on.
fn others_end(text: &[u8], at: usize) -> usize {
    let mut end = crate::pretokenize::scan::others_end(text, at);
    loop {
        let next = newlines_end(text, end);
        if next == end {
            return end;
        }
        end = next;
        while text.get(end) == Some(&b'/') {
            end += 1;
        }
    }
}

/// A word without its contraction.
struct Word {
    letters_end: usize,
    /// Whether only the second alternative matches: a word of capitals.
    is_upper: bool,
}

impl Word {
    fn end(&self, text: &[u8]) -> usize {
        contraction_end::<true>(text, self.letters_end)
    }
}

/// Matches `U*L+|U+L*` at `at`, where at least one character is in U or L.
///
/// U is upper case, L is lower case, and caseless letters and marks are in both. If no lower case follows the run of U,
/// `U*` backtracks to the last character that is in L as well.
fn word(text: &[u8], at: usize) -> Word {
    let mut end = at;
    let mut after_shared = None;
    while end < text.len() {
        let (class, length) = class_at(text, end);
        if class & (UPPER | CASELESS | MARK) == 0 {
            if class & LOWER != 0 {
                let letters_end = run_end(text, end + length, |class| class & (LOWER | CASELESS | MARK) != 0);
                return Word { letters_end, is_upper: false };
            }
            break;
        }
        end += length;
        if class & UPPER == 0 {
            after_shared = Some(end);
        }
    }
    Word { letters_end: after_shared.unwrap_or(end), is_upper: after_shared.is_none() }
}

impl BitmaskGrammar for O200k {
    const CASED: bool = true;

    /// Truncates the block before characters whose piece the masks do not determine: capitals after a caseless letter or mark,
    /// whose word depends on its end, and marks after other characters, which belong to the word before or after.
    #[inline(always)]
    fn restrict(block: &mut Classes<'_>) {
        let other = block.other() & !block.mark;
        let rare = (block.upper & (block.caseless | block.mark) << 1) | (block.mark & other << 1);
        if rare != 0 {
            block.truncate(rare.trailing_zeros());
        }
    }

    #[inline(always)]
    fn starts(block: &Classes<'_>) -> u64 {
        let first = block.first();
        let word = block.letter() | block.mark;
        let any_other = block.other() & !block.mark;
        // `[\r\n/]*`: slashes after a line break after punctuation.
        let breaks = block.newline & any_other << 1;
        let absorbed = (run_from(breaks, block.newline | block.slash) | breaks) & block.slash;
        let other = any_other & !absorbed;
        let other_starts = first & other & !((other | block.space) << 1);
        let prefix = (block.whitespace & !block.newline) | block.whole(other_starts);
        // A capital after lower case starts a word.
        let mut starts = first & ((word & !((word | prefix) << 1)) | (block.upper & block.lower << 1));
        starts |= other_starts
            | block.number_triples()
            | block.whitespace_starts(any_other, first & !block.whitespace, false);
        split_suffixes(block, block.apostrophe & word << 1, starts)
    }
}

/// As [`crate::pretokenize::bitmask::split_contractions`], for contractions that belong to the word before them.
#[inline(always)]
fn split_suffixes(block: &Classes<'_>, apostrophes: u64, mut starts: u64) -> u64 {
    let mut remaining = apostrophes;
    let mut word_start = 0;
    while remaining != 0 {
        let at = remaining.trailing_zeros() as usize;
        remaining &= remaining - 1;
        let end = contraction_end::<true>(block.bytes, at);
        // A word has at most one contraction.
        if end > at && at != word_start {
            let after = 1_u64.checked_shl(end as u32).unwrap_or(0);
            starts = starts & !after.wrapping_sub(1 << at) | after;
            word_start = end;
        } else if !block.is_end && block.text >> at >> 2 == 0 {
            // The next block may complete a contraction.
            starts &= (1 << at) - 1;
        }
    }
    starts
}
