//! Superwords: text split at digits, punctuation and line ends, but not at words.

use crate::pretokenize::scan::{is_other as is_unspaced, newlines_end, numbers_end};
use crate::pretokenize::unicode::{LETTER, MARK, NEWLINE, NUMBER, WHITESPACE, class_at, run_end};

/// The pattern of superwords (`SuperBPE`): its matches, and the text between them, are the pieces.
///
/// As in the second stage of the authors' published tokenizers, runs of digits are split in threes, and runs of punctuation and of
/// spaces are separate from words. Two things differ: a line break ends a piece, which keeps pieces short, and combining marks
/// are letters.
///
/// # Source
/// Liu et al. 2025, arXiv:2503.13423.
pub const PATTERN: &str = r"\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]{2,}[\r\n/]*| ?[^\s\p{L}\p{M}\p{N}]?[\r\n]+| +(?!\S)";

/// Appends the ends of the next pieces, within the capacity of `ends`: matches, and the text between them.
pub(crate) fn fill_ends(text: &[u8], start: usize, ends: &mut Vec<usize>) {
    let (mut start, mut at) = (start, start);
    while at < text.len() && ends.len() < ends.capacity() {
        let (class, length) = class_at(text, at);
        if class & (LETTER | MARK) != 0 {
            at += length;
            continue;
        }
        let end = match_end(text, at, class, length);
        if end == at {
            at += length;
        } else if at > start {
            // The next iteration finds the match again: `ends` may be full now.
            ends.push(at);
            start = at;
        } else {
            ends.push(end);
            (start, at) = (end, end);
        }
    }
    if at > start && ends.len() < ends.capacity() {
        ends.push(at);
    }
}

/// `[^\s\p{L}\p{M}\p{N}]`
#[inline(always)]
fn is_other(class: u8) -> bool {
    is_unspaced(class) && class & MARK == 0
}

/// Returns the end of the match at `at`, whose first character has this class and length; `at` if there is none.
#[inline]
fn match_end(text: &[u8], at: usize, class: u8, length: usize) -> usize {
    if class & NUMBER != 0 {
        return numbers_end(text, at, 3);
    }
    if class & NEWLINE != 0 {
        return newlines_end(text, at);
    }
    let class_of = |at: usize| if at < text.len() { class_at(text, at) } else { (WHITESPACE, 0) };
    let is_space = text[at] == b' ';
    let body = at + usize::from(is_space);
    let (body_class, body_length) = if is_space { class_of(body) } else { (class, length) };
    if body < text.len() && is_other(body_class) {
        let second = body + body_length;
        let (second_class, second_length) = class_of(second);
        if second < text.len() && is_other(second_class) {
            let mut end = run_end(text, second + second_length, is_other);
            while matches!(text.get(end), Some(b'\r' | b'\n' | b'/')) {
                end += 1;
            }
            return end;
        }
        return if second_class & NEWLINE != 0 { newlines_end(text, second) } else { at };
    }
    if !is_space {
        return at;
    }
    if body_class & NEWLINE != 0 {
        return newlines_end(text, body);
    }
    let end = body + text[body..].iter().take_while(|&&byte| byte == b' ').count();
    if class_of(end).0 & WHITESPACE != 0 {
        end
    } else if end - at > 1 {
        end - 1
    } else {
        at
    }
}

/// Returns a chunk boundary at or after `from`: after a line break that ends a match.
///
/// White space may not follow: a special token before the line break may include all white space after it.
pub(crate) fn chunk_boundary(text: &[u8], from: usize) -> Option<usize> {
    let from = from.max(1);
    let newlines = memchr::memchr2_iter(b'\r', b'\n', text.get(from - 1..)?);
    newlines
        .map(|newline| from + newline)
        .find(|&at| at < text.len() && text[at] != b'/' && class_at(text, at).0 & WHITESPACE == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{PATTERN, chunk_boundary, fill_ends};
    use crate::pretokenize::tests::oracle::{all_ends, ends_of_regex};

    fn expected(text: &str) -> Vec<usize> {
        ends_of_regex(PATTERN, text)
    }

    proptest! {
        #[test]
        fn pieces_are_those_of_the_regex(
            text in "([a-cé中\u{301}1²٣!./,😀\u{0} \t\r\n\u{a0}\u{85}]|  |\\PC){0,40}| {0,20}",
            room in 1usize..8,
        ) {
            prop_assert_eq!(all_ends(fill_ends, &text, room), expected(&text));
        }

        #[test]
        fn a_chunk_boundary_changes_no_piece(text in "([a1./ \t\r\n]|\u{301}|\u{a0}){0,40}", from in 0usize..40) {
            if let Some(cut) = chunk_boundary(text.as_bytes(), from) {
                prop_assert!(cut >= from && cut < text.len());
                let mut ends = expected(&text[..cut]);
                ends.extend(expected(&text[cut..]).iter().map(|end| cut + end));
                prop_assert_eq!(ends, expected(&text));
            }
        }
    }

    /// Each character alone, and beside characters of every alternative of the regex.
    #[test]
    fn every_character_is_split_as_the_regex_does() {
        let text: String =
            ('\0'..=char::MAX).flat_map(|it| ['a', it, ' ', it, '.', it, '\n', it, it, ' ', ' ']).collect();
        assert_eq!(all_ends(fill_ends, &text, 1024), expected(&text));
    }
}
