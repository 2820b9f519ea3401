//! `o200k`: the pattern of GPT-4o and later; Llama 4's is the same.
//!
//! Words break where upper case follows lower case, carry their contraction with them, and may hold marks.

use super::scan::{Grammar, contraction_end, newlines_end, numbers_end, whitespace};
use super::unicode::{CASELESS, LETTER, LOWER, MARK, NEWLINE, NUMBER, SPACE, UPPER, class_at, run_end};

/// As published in tiktoken.
pub(super) const PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

pub(super) const VARIANTS: &[&str] = &[];

pub(super) struct O200k;

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
            // One character of any other kind may stand before a word.
            let next = if second < text.len() { class_at(text, second).0 } else { 0 };
            if next & (LETTER | MARK) != 0 {
                let word = word(text, second);
                if !(first & MARK != 0 && word.is_upper) {
                    return word.end(text);
                }
            }
            if first & MARK != 0 {
                // A mark is a word by itself, and the first alternative prefers it to a word of capitals.
                return contraction_end::<true>(text, second);
            }
            if text[at] == b' ' && next & (SPACE | LETTER | NUMBER) == 0 && second < text.len() {
                return others_end(text, second);
            }
        }
        if first & SPACE == 0 {
            return others_end(text, second);
        }
        let run = whitespace(text, at);
        run.after_newline.unwrap_or_else(|| run.piece_end(at, run.end == text.len()))
    }
}

/// `[^\s\p{L}\p{N}]*[\r\n/]*`: a slash is in the first class too, so the second only matters from a line break on.
fn others_end(text: &[u8], at: usize) -> usize {
    let mut end = super::scan::others_end(text, at);
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
    /// Only the second alternative matches: capitals and nothing else.
    is_upper: bool,
}

impl Word {
    fn end(&self, text: &[u8]) -> usize {
        contraction_end::<true>(text, self.letters_end)
    }
}

/// Matches `U*L+|U+L*` at `at`, where at least one character belongs to U or L.
///
/// U holds capitals, L lower case, and caseless letters and marks belong to both. Where no lower case follows the run
/// of U, `L+` makes `U*` give back as far as the last character that is in L too.
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
